"""The masking network: its losses against NumPy, its gradients, its file, and what it refuses."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxplain.methods import masker
from jaxplain.methods.masker import Weights
from jaxplain.model import Layer, Model

RANDOM = np.random.default_rng(0)
MASKS = RANDOM.random((3, 5, 6)).astype(np.float32)
TINY = ((16, 8), (4, 16))
"""Sides and channels of the layers that are read of the tiny network."""
BLACK, WHITE = jnp.full(3, -2.0), jnp.full(3, 3.0)


@pytest.fixture(scope="module")
def model():
    return tiny.linen_model()


@pytest.fixture(scope="module")
def fresh(model):
    return masker.first(model, jax.random.key(0), widths=(4, 6))


def explained(model, images, targets, trained):
    """As `masker.explain`, inside of another compiled function."""
    return inspect.unwrap(masker.explain)(model, images, targets, importance=trained)


def test_the_loss_is_the_sum_of_the_paper():
    """Pixel by pixel, as it is written down."""
    weights = Weights(smooth=10.0, area=1e-3, destroy=5.0, power=0.3, presence=0.7)
    probabilities = RANDOM.random((3, 3)).astype(np.float32)
    kept, left = np.log(probabilities[:2])
    presence = np.log(probabilities[2] / (1 - probabilities[2]))
    shown = np.array([True, True, False])
    arrays = (jnp.asarray(array) for array in (MASKS, presence, kept, left))
    found = masker.terms(*arrays, weights.power)
    losses = masker.masking_loss(found, jnp.asarray(shown), weights)
    _, height, width = MASKS.shape
    for picture, mask in enumerate(MASKS.astype(np.float64)):
        down = sum(
            (mask[i, j] - mask[i + 1, j]) ** 2 for i in range(height - 1) for j in range(width)
        )
        across = sum(
            (mask[i, j] - mask[i, j + 1]) ** 2 for i in range(height) for j in range(width - 1)
        )
        smooth = down / ((height - 1) * width) + across / (height * (width - 1))
        expected = 10 * smooth + 1e-3 * mask.mean()
        there = float(probabilities[2, picture])
        if shown[picture]:
            expected -= np.log(probabilities[0, picture])
            expected += 5 * probabilities[1, picture] ** 0.3
            expected -= 0.7 * np.log(there)
        else:
            expected -= 0.7 * np.log(1 - there)
        assert losses[picture] == pytest.approx(expected, rel=1e-4)


def test_what_a_mask_shows_and_what_it_leaves_are_the_picture_and_the_other():
    images, other = jnp.asarray(RANDOM.random((2, 3, 5, 6, 2)), jnp.float32)
    shown = masker.under(images, jnp.asarray(MASKS), other)
    left = masker.under(images, 1 - jnp.asarray(MASKS), other)
    np.testing.assert_allclose(shown + left, images + other, rtol=1e-5)
    np.testing.assert_allclose(shown, MASKS[..., None] * (images - other) + other, rtol=1e-4)


def test_others_are_blurred_or_of_one_colour_near_grey():
    images = jnp.asarray(RANDOM.normal(size=(40, 8, 8, 3)), jnp.float32)
    key, between = jax.random.key(3), {"low": BLACK, "high": WHITE, "sigma": 2.0}
    plain = masker.others(images, key, blurred=0.0, **between)
    # Between black and white lie 5; colours are even, the noise is normal.
    assert float(plain.mean()) == pytest.approx(0.5, abs=0.1)
    assert float(plain.std((1, 2)).mean()) == pytest.approx(5 * 0.03, rel=0.15)
    assert float(plain.mean((1, 2)).std()) == pytest.approx(5 * 0.08 / 3**0.5, rel=0.15)
    blurred = masker.others(images, key, blurred=1.0, **between)
    mixed = masker.others(images, key, blurred=0.5, **between)
    one, two = ((mixed == each).all((1, 2, 3)) for each in (plain, blurred))
    assert bool((one ^ two).all())
    assert 8 < int(two.sum()) < 32


def test_masks_are_shares_at_the_size_of_the_picture(model, fresh):
    images, targets = tiny.inputs()
    found = masker.explain(model, images, targets, importance=fresh)
    assert fresh.layers == ("features.2", "features.6")
    assert found.shape == images.shape[:3]
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert float(found.std()) > 0
    # Another class, another filter, another mask.
    other = masker.explain(model, images, (targets + 1) % 10, importance=fresh)
    assert float(jnp.abs(found - other).max()) > 1e-4


def test_an_explanation_is_one_forward_run_and_the_small_network(model, fresh):
    images, targets = tiny.inputs()
    features = [jnp.zeros((2, n, n, c)) for n, c in TINY]

    def convolutions(function, *inputs):
        return str(jax.make_jaxpr(function)(*inputs)).count("conv_general_dilated[")

    whole = convolutions(lambda x: explained(model, x, targets, fresh), images)
    own = convolutions(
        lambda *x: masker.apply_masker(fresh.network, fresh.params, x, targets, (32, 32)).masks,
        *features,
    )
    assert (whole, own) == (convolutions(model, images) + own, 2)


def test_the_filter_lets_through_what_looks_like_the_class(model, fresh):
    """An embedding far along the features opens the gate and says yes; far against them, no."""
    features = (jnp.zeros((1, 16, 16, 8)), jnp.ones((1, 4, 4, 16)))
    projected = (features[1] @ fresh.params["deepest"]["kernel"])[0, 0, 0]
    embedding = jnp.stack([100 * projected, -100 * projected, *[0 * projected] * 8])
    params = {**fresh.params, "embedding": {"embedding": embedding}}
    opened, closed, half = (
        masker.apply_masker(fresh.network, params, features, jnp.array([target]), (32, 32))
        for target in range(3)
    )
    assert float(opened.presence[0]) > 10
    assert float(closed.presence[0]) == -float(opened.presence[0])
    assert float(half.presence[0]) == 0
    # Without features behind the gate, only biases are left: they are zero, and both ends alike.
    np.testing.assert_allclose(closed.masks, 0.5, atol=1e-3)
    assert float(jnp.abs(opened.masks - 0.5).max()) > 0.05


def test_the_gradient_of_the_loss_is_that_of_finite_differences(model, fresh):
    images, targets = tiny.inputs()
    other = jnp.zeros_like(images)
    features = tuple(jnp.asarray(RANDOM.random((2, n, n, c)), jnp.float32) for n, c in TINY)

    def loss(change):
        params = {**fresh.params, "ends": {**fresh.params["ends"], "bias": change}}
        masks, presence = masker.apply_masker(fresh.network, params, features, targets, (32, 32))
        both = [masker.under(images, m, other) for m in (masks, 1 - masks)]
        kept, left = (jax.nn.log_softmax(model(x))[jnp.arange(2), targets] for x in both)
        found = masker.terms(masks, presence, kept, left)
        return masker.masking_loss(found, jnp.ones(2, bool)).mean()

    run = jax.jit(jax.value_and_grad(loss))
    # Far from zero, where the ends have a kink.
    start = jnp.array([6.0, 7.0])
    slope = run(start)[1]
    for axis in range(2):
        step = jnp.zeros(2).at[axis].set(2e-2)
        measured = (run(start + step)[0] - run(start - step)[0]) / 4e-2
        assert slope[axis] == pytest.approx(float(measured), rel=0.02, abs=1e-3)


def test_every_parameter_learns(model, fresh):
    images, targets = tiny.inputs()

    def area(params):
        trained = dataclasses.replace(fresh, params=params)
        return (explained(model, images, targets, trained) ** 2).mean()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(area))(fresh.params)):
        assert float(jnp.abs(leaf).max()) > 0


def test_layers_of_nearly_one_size_are_one_scale(model, monkeypatch):
    """Where convolutions do not pad, sizes differ by a border."""
    sides = {"a": 149, "b": 147, "c": 147, "d": 73, "e": 71, "f": 35, "g": 17, "h": 8, "i": 1}
    found = [Layer(name, (side, side, 4), None) for name, side in sides.items()]
    monkeypatch.setattr(Model, "layers", lambda self: found)
    wide = dataclasses.replace(model, input_shape=(299, 299, 3))
    assert masker.scales(wide) == ("c", "e", "f", "g", "h")


def test_a_file_holds_all_of_a_masker(model, fresh, tmp_path):
    path = tmp_path / "own" / "tiny.masker.safetensors"
    masker.save(path, fresh)
    found = masker.load(path)
    assert (found.layers, found.classes, found.widths) == (fresh.layers, 10, (4, 6))
    assert found.fingerprint == fresh.fingerprint
    jax.tree.map(np.testing.assert_array_equal, dict(found.params), dict(fresh.params))
    masker.check_model(model, found, "no reason")


def test_other_files_are_refused(tmp_path):
    from jaxplain.models.weights.safetensors_file import write_safetensors

    path = tmp_path / "other.safetensors"
    write_safetensors(path, {"a": np.zeros(1, np.float32)}, {"kind": "chip"})
    with pytest.raises(ValueError, match=r"holds no masker; expected what `jaxplain train masker`"):
        masker.load(path)
    write_safetensors(path, {"a": np.zeros(1, np.float32)}, {"kind": "masker", "masker": "{}"})
    with pytest.raises(ValueError, match="another version"):
        masker.load(path)
    with pytest.raises(FileNotFoundError):
        masker.load(tmp_path / "none.safetensors")


def test_what_does_not_belong_together_is_refused(model, fresh):
    images, targets = tiny.inputs()
    with pytest.raises(ValueError, match="none ship with it"):
        masker.shipped(model)
    other = Model.from_function(lambda _, x: x.mean((1, 2)), input_shape=(32, 32, 3))
    with pytest.raises(ValueError, match="no layer with positions"):
        masker.scales(other)
    with pytest.raises(ValueError, match="it is for others"):
        masker.check_model(other, fresh, "it is for others")
    with pytest.raises(ValueError, match=r"features\.2"):
        masker.explain(other, images, jnp.array([0, 1]), importance=fresh)
    with pytest.raises(ValueError, match="expected 2, one for each"):
        masker.first(model, jax.random.key(0), widths=(4,))
    with pytest.raises((TypeError, ValueError), match=r"Masker|Type-check"):
        masker.explain(model, images, targets, importance={})
