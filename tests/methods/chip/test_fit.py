"""Fits: what they find, on any mesh, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chip_networks import (
    CHANNELS,
    CLASSES,
    PLANTED,
    SHARE,
    images,
    planted,
    planted_images,
    small,
    summing,
)
from flax import linen as nn
from jax.sharding import AxisType

from jaxplain.data.loaders import ArraySource
from jaxplain.data.loaders import batches as loader
from jaxplain.methods.chip import fit, gather, solve
from jaxplain.model import Model
from jaxplain.models.layers import tap
from jaxplain.sharding import data_mesh

KEY = jax.random.key(0)
FIELDS = ("packed", "corr", "energy", "weight", "predicted")


def same(found, expected, tolerance=1e-5):
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=tolerance, err_msg=name)


def test_a_planted_network_gets_exactly_its_channels():
    """With all defaults: no channel is missed, none is added, and each gets its share."""
    found = fit(summing(), [planted_images(30)], "units", key=KEY)["units"]
    assert found.settings.penalty == 0.01
    weights = np.asarray(found.weights)
    for label, channels in PLANTED.items():
        assert set(np.flatnonzero(weights[label])) == set(channels)
        expected = SHARE / len(channels)
        np.testing.assert_allclose(weights[label, list(channels)], expected, rtol=0.02)


def test_a_network_that_saturates_gets_its_channels_and_little_else():
    """What bends, a model of channels alone cannot follow: others make up for it, a little."""
    pictures = planted_images(30)
    statistics = gather(planted(), [pictures[:16], pictures[16:]], "units", key=KEY)["units"]
    for penalty, little in ((0.1, 0.0), (0.03, 0.0), (0.01, 0.07)):
        found = solve(statistics, penalty=penalty)
        assert found.fitted.tolist() == [True, True, True, False]
        weights = np.asarray(found.weights)
        for label, channels in PLANTED.items():
            own = weights[label, list(channels)]
            others = np.delete(weights[label], list(channels))
            assert (own > 0).all()
            assert np.abs(others).max() <= little * own.min()


@pytest.fixture(scope="module")
def alone():
    return gather(small(), [images(11)], ("conv1", "conv2"), key=KEY, num_gates=8)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_eight_devices_find_what_one_does(alone, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    pictures = images(11)
    batches = [pictures[:3], pictures[3:]]  # neither fills the devices
    found = gather(small(), batches, ("conv1", "conv2"), key=KEY, num_gates=8, mesh=mesh, chunk=5)
    for layer in alone:
        same(found[layer], alone[layer])


def test_pictures_are_normalised_as_the_model_says_and_come_from_loaders():
    model = small()
    pictures = np.random.default_rng(0).integers(0, 256, (6, *model.input_shape), np.uint8)
    options = {"key": KEY, "num_gates": 8}
    floats = gather(model, [model.preprocessing.batch(pictures)], "conv2", **options)["conv2"]
    source = ArraySource(image=pictures, label=np.arange(6))
    loaded = gather(model, loader(source, 4), "conv2", **options)["conv2"]
    same(loaded, floats)


def test_a_class_that_is_never_predicted_has_zero_weights_and_is_told():
    model = small()
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["params"]["logits"]["bias"] = params["params"]["logits"]["bias"].at[2].set(-1e9)
    never = dataclasses.replace(model, params=params)
    found = fit(never, [images(11)], "conv2", key=KEY, num_gates=8)["conv2"]
    assert found.predicted[2] == 0
    assert not found.fitted[2]
    assert (found.weights[2] == 0).all()
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
    assert found.fitted.sum() >= 2
    assert (np.asarray(found.weights)[np.asarray(found.fitted)] != 0).any(1).all()


def test_one_image_is_enough():
    found = fit(small(), [images(1)], "conv2", key=KEY, num_gates=8)["conv2"]
    assert found.settings.images == 1
    assert found.predicted.sum() == found.fitted.sum() == 1
    assert found.converged.all()
    assert np.isfinite(found.weights).all()


def test_gates_that_are_all_closed_explain_nothing_without_nan():
    found = fit(small(), [images(3)], "conv2", key=KEY, num_gates=8, keep=1e-7)["conv2"]
    assert (found.weights == 0).all()
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()


class Residual(nn.Module):
    """A branch with a path round it."""

    @nn.compact
    def __call__(self, x):
        x = tap(nn.relu(nn.Conv(4, (3, 3))(x)), "stem")
        x = x + tap(nn.relu(nn.Conv(4, (3, 3))(x)), "branch")
        return nn.Dense(CLASSES)(x.mean((1, 2)))


def test_a_layer_that_does_not_separate_is_refused():
    module = Residual()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 6, 3)))
    model = Model.from_linen(module, variables, input_shape=(8, 6, 3))
    with pytest.raises(ValueError, match="'branch' does not separate the input from the logits"):
        fit(model, [images(2)], ("stem", "branch"), key=KEY)


PICTURES = images(4)
BROKEN = PICTURES.copy()
BROKEN[1, 2, 3, 0] = np.nan


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "batches is empty; expected at least one image"),
        ([PICTURES[:0]], ValueError, "batches is empty"),
        (
            [PICTURES, PICTURES[:, :6]],
            ValueError,
            r"batch 1 holds images of \(6, 6, 3\), float32; those before were \(8, 6, 3\), float32",
        ),
        ([PICTURES, PICTURES.astype(np.float64)], ValueError, "batch 1 holds .* float64; those"),
        ([PICTURES, BROKEN], ValueError, "batch 1 holds NaN or infinity"),
        ([PICTURES[0]], ValueError, r"batch 0 has shape \(8, 6, 3\); expected"),
        ([PICTURES[..., :1]], ValueError, "batch 0 has 1 channels; model 'small' takes 3"),
        ([PICTURES.astype(int)], TypeError, "batch 0 has dtype int64; expected floats or uint8"),
        ([PICTURES[:, :6].astype(np.uint8)], ValueError, r"uint8 pictures of \(6, 6, 3\)"),
        ([{"label": np.arange(3)}], ValueError, r"entries \['label'\]; expected 'image'"),
    ],
)
def test_bad_batches_are_refused_by_number(batches, error, message):
    with pytest.raises(error, match=message):
        fit(small(), batches, "conv2", key=KEY, num_gates=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "conv_2"}, "unknown layer 'conv_2'; nearest: conv2"),
        ({"layers": ()}, r"layers are \[\]; expected one or several"),
        ({"layers": ("conv2", "conv2")}, "each once"),
        ({"keep": 0.0}, "keep is 0.0: all gates would be closed"),
        ({"keep": 1.0}, "all gates would be open"),
        ({"num_gates": 0}, "num_gates is 0; expected at least 1"),
        ({"sigma": 0.0}, "sigma is 0.0; expected above 0"),
        ({"sigma": 0.05}, r"would weigh exp\(-200\); it is in units of the square root"),
        ({"penalty": 0.0}, "penalty is 0.0; expected a share above 0"),
        ({"every": 0}, "every is 0"),
        ({"mesh": jax.make_mesh((1,), ("rows",))}, "expected the one axis 'data'"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    given = {"layers": "conv2", "key": KEY, "num_gates": 8, **options}
    with pytest.raises(ValueError, match=message):
        fit(small(), [PICTURES], **given)


def test_a_bad_penalty_is_refused_before_a_picture_is_read():
    def unread():
        raise AssertionError("a picture was asked for")
        yield

    with pytest.raises(ValueError, match="penalty is 2"):
        fit(small(), unread(), "conv2", key=KEY, penalty=2.0)


def test_logits_that_are_not_finite_are_an_error_and_not_a_result():
    model = small()
    params = jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.nan), model.params)
    with pytest.raises(ValueError, match="the logits of 4 of the images up to number 4 are not"):
        fit(dataclasses.replace(model, params=params), [PICTURES], "conv2", key=KEY, num_gates=8)


def test_a_black_box_is_refused():
    box = Model.from_black_box(lambda x: x.mean((1, 2)), 3, name="server")
    with pytest.raises(ValueError, match="black box"):
        fit(box, [PICTURES], "conv2", key=KEY)


def test_progress_tells_the_images():
    told = []
    options = {"key": KEY, "num_gates": 8, "chunk": 4, "progress": told.append}
    gather(small(), [PICTURES, PICTURES[:3]], "conv2", **options)
    assert [(p.images, p.chunks, p.resumed) for p in told] == [(4, 1, 0), (7, 2, 0)]


def test_a_reduced_precision_network_is_fitted_in_float32():
    model = small()
    half = dataclasses.replace(
        model, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    )
    pictures = jnp.asarray(images(11), jnp.bfloat16)
    options = {"key": KEY, "num_gates": 8}
    found = gather(half, [pictures], ("conv1", "conv2"), **options)
    exact = gather(model, [images(11)], ("conv1", "conv2"), **options)
    assert found["conv2"].path == exact["conv2"].path
    for layer in found:
        assert found[layer].packed.dtype == np.float32
        same(found[layer], exact[layer], tolerance=0.05)
    one, other = (solve(stats["conv2"], penalty=0.1).weights for stats in (found, exact))
    assert one.shape[1] < CHANNELS
    np.testing.assert_allclose(one, other, atol=0.1 * float(jnp.abs(other).max()))


def test_a_mesh_must_be_of_this_process():
    assert data_mesh().size == 8
