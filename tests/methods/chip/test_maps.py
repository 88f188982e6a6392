"""Maps made of importances, their files, and what classes share."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chip_networks import CLASSES, images, small
from fitted import importances

import jaxplain
from jaxplain.methods import METHODS, chip
from jaxplain.methods.chip.importance import pick
from jaxplain.methods.fingerprint import fingerprint
from jaxplain.models import load_model
from jaxplain.trace import backpropagate, capture, rules

TARGETS = jnp.array([0, 3, 1])
IMAGES = jnp.asarray(images(3))


@pytest.fixture(scope="module")
def found():
    signs = jnp.where(jnp.arange(CLASSES)[:, None] % 2 == 0, 1, -1)
    drawn = importances(small(), CLASSES)
    return {
        layer: dataclasses.replace(i, weights=i.weights * jnp.where(i.weights > 0.5, signs, 1))
        for layer, i in drawn.items()
    }


def by_hand(found, layer, relu):
    """Eq. (10), one channel after the other."""
    activation = np.asarray(capture(small(), IMAGES, [layer])[layer], float)
    weights = np.asarray(found[layer].weights, float)[np.asarray(TARGETS)]
    maps = sum(weights[:, k, None, None] * activation[..., k] for k in range(activation.shape[-1]))
    return np.maximum(maps, 0) if relu else maps


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv2"])
def test_a_map_is_the_weighted_sum_of_its_channels(found, layer, relu):
    run = functools.partial(chip.heatmap, small(), IMAGES, TARGETS, layer=layer, relu=relu)
    own = run(importance=found, upsample=False)
    expected = by_hand(found, layer, relu)
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run(importance=found[layer], upsample=False), own)
    whole = run(importance=found)
    resized = jax.image.resize(jnp.asarray(expected, jnp.float32), IMAGES.shape[:3], "bilinear")
    np.testing.assert_allclose(whole, resized, rtol=1e-4, atol=1e-5)
    assert relu or float(whole.min()) < 0


@pytest.mark.parametrize("relu", [False, True])
def test_refined_is_the_product_of_the_first_and_the_last_map(found, relu):
    options = {"importance": found, "relu": relu}
    refined = chip.refined(small(), IMAGES, TARGETS, **options)
    one, other = (
        chip.heatmap(small(), IMAGES, TARGETS, layer=layer, **options)
        for layer in ("conv1", "conv2")
    )
    np.testing.assert_allclose(refined, one * other, rtol=1e-5, atol=1e-6)
    small_one = chip.refined(small(), IMAGES, TARGETS, last="pool1", upsample=False, **options)
    assert small_one.shape == (3, 8, 6)


def test_guided_is_guided_backprop_times_the_map(found):
    own = chip.guided(small(), IMAGES, TARGETS, importance=found)
    sharp = backpropagate(small(), IMAGES, TARGETS, rules.GUIDED_BACKPROP)
    coarse = chip.heatmap(small(), IMAGES, TARGETS, importance=found, relu=True)
    expected = sharp.attribution * coarse[..., None]
    np.testing.assert_allclose(own.attribution, expected, rtol=1e-5, atol=1e-6)
    assert own.audit.rows()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv_2", "unknown layer 'conv_2'; nearest: conv2"),
        ("fc", "layer 'fc' has no fitted importances; fitted: conv1, conv2, pool1"),
        ("logits", "layer 'logits' has no positions"),
    ],
)
def test_layers_without_a_map_are_refused_by_name(found, layer, message):
    also = {**found, "logits": dataclasses.replace(found["conv2"], layer="logits")}
    given = also if layer == "logits" else found
    with pytest.raises(ValueError, match=message):
        chip.heatmap(small(), IMAGES, TARGETS, importance=given, layer=layer)


def test_something_else_than_importances_is_refused():
    with pytest.raises(TypeError, match="importance is a dict; expected ChipImportance, or a map"):
        pick({"conv2": 3}, "conv2", ("conv2",))


def test_importances_of_another_model_are_refused(found):
    narrow = dataclasses.replace(found["conv2"], weights=found["conv2"].weights[:, :4])
    with pytest.raises(ValueError, match="for 4 channels, the layer has 6"):
        chip.heatmap(small(), IMAGES, TARGETS, importance=narrow)
    with pytest.raises(ValueError, match=r"needs a first and a last layer .*; fitted: conv2"):
        chip.refined(small(), IMAGES, TARGETS, importance={"conv2": found["conv2"]})


def test_a_file_gives_back_what_was_saved(found, tmp_path):
    path = tmp_path / "new" / "chip.safetensors"
    chip.save(path, found)
    again = chip.load(path)
    assert list(again) == list(found)
    for layer, importance in found.items():
        own, structure = jax.tree.flatten(again[layer])
        leaves, expected = jax.tree.flatten(importance)
        assert structure == expected
        for one, other in zip(own, leaves, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + b"x" + whole[-8:])
    with pytest.raises(ValueError, match="is damaged"):
        chip.load(path)


def test_a_file_of_something_else_is_refused():
    path = Path(jaxplain.__file__).parent / "models" / "weights" / "digits.safetensors"
    with pytest.raises(ValueError, match="holds no importances of CHIP"):
        chip.load(path)


@pytest.mark.parametrize("name", ["digits", "an8flower-single-6c", "an8flower-double-12c"])
def test_importances_ship_with_the_shipped_models(name):
    model = load_model(name)
    shipped = chip.shipped(model)
    assert model.default_layer in shipped
    for layer, importance in shipped.items():
        assert importance.layer == layer
        assert importance.settings.fingerprint == fingerprint(model)
        assert importance.fitted.all()
        assert importance.converged.all()
        assert float(importance.kkt.max()) < 1e-5


def test_other_weights_have_none_and_say_how_to_get_them():
    model = load_model("digits", weights="random")
    method = METHODS["chip"]
    reason = method.inapplicable(model)
    assert "those that ship are for other weights" in reason
    assert "jaxplain fit chip" in reason
    assert "none ship with it" in method.inapplicable(small())
    with pytest.raises(ValueError, match="not known while it is traced"):
        jax.jit(lambda m: method.explain(m, IMAGES, TARGETS).heatmap)(load_model("digits"))


def test_what_is_important_is_positive_and_large():
    weights = jnp.array([[5.0, 0.004, 0.006, -7.0, 0.0], [0.0, 0.0, -1.0, -2.0, 0.0]])
    ones = jnp.ones(2)
    drawn = importances(small(), 2)["conv2"]
    importance = dataclasses.replace(drawn, weights=weights, predicted=ones.astype(int))
    assert chip.important(importance).tolist() == [[1, 0, 1, 0, 0], [0] * 5]
    assert chip.important(importance, top=1).tolist() == [[1, 0, 0, 0, 0], [0] * 5]
    assert chip.important(importance, top=4).sum(1).tolist() == [3, 0]
    for options, message in (({"top": 0}, "top is 0"), ({"share": 1.0}, "share is 1.0")):
        with pytest.raises(ValueError, match=message):
            chip.important(importance, **options)


def test_overlaps_are_counted_between_classes(found):
    table = chip.overlap(found["conv2"], [0, 2, 4])
    sets = [set(np.flatnonzero(row)) for row in chip.important(found["conv2"])[[0, 2, 4]]]
    expected = [[len(one & other) for other in sets] for one in sets]
    assert table.above.tolist() == expected
    rows = table.rows(["a", "b", "c", "d", "e"])
    assert [(row["class"], row["other"]) for row in rows] == [("a", "c"), ("a", "e"), ("c", "e")]
    assert rows[1]["important"] == expected[0][2]
    with pytest.raises(ValueError, match="expected numbers from 0 to 4"):
        chip.overlap(found["conv2"], [5])
