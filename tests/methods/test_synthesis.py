"""Feature inversion and activation maximisation against closed forms and finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from optimised import IMAGES, MODEL, SIZE, TARGETS, layers

from jaxplain.methods import activation_maximisation, feature_inversion
from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing

KEY = jax.random.key(3)
SMALL = (3, 4, 2)
MATRIX = np.random.default_rng(0).standard_normal((24, 9)).astype(np.float32)


def linear(w, x):
    """A layer of nine sums of the pixels, and three classes of it."""
    found = checkpoint_name(jnp.matmul(x.reshape(x.shape[0], -1), w, precision="highest"), "sums")
    return found[:, :3]


LINEAR = Model.from_function(linear, jnp.asarray(MATRIX), input_shape=SMALL)
PICTURES = jax.random.normal(jax.random.key(4), (2, *SMALL))


def test_inversion_of_a_linear_layer_is_ridge_regression():
    weight, magnitude = 1.0, 1.4
    found = feature_inversion(
        LINEAR, PICTURES, layer="sums", key=KEY, steps=2000, norm_weight=weight,
        variation_weight=0.0, alpha=2.0, learning_rate=0.01,
    )  # fmt: skip
    x, w = np.asarray(PICTURES, np.float64).reshape(2, -1), MATRIX.astype(np.float64)
    for number in range(2):
        kept = w.T @ x[number]
        gram = w @ w.T / (kept @ kept) + weight / (12 * magnitude**2) * np.eye(24)
        expected = np.linalg.solve(gram, w @ kept / (kept @ kept))
        np.testing.assert_allclose(found.images[number].ravel(), expected, atol=5e-3)
        missed = w.T @ expected - kept
        np.testing.assert_allclose(found.error[number], missed @ missed / (kept @ kept), atol=1e-3)


def test_inversion_keeps_what_the_layer_sees_and_little_else():
    options = {"layer": "conv1", "key": KEY, "steps": 150}
    exact = feature_inversion(MODEL, IMAGES, **options, norm_weight=0.0, variation_weight=0.0)
    smooth = feature_inversion(MODEL, IMAGES, **options, norm_weight=0.0, variation_weight=0.1)
    assert float(exact.error.max()) < 0.05
    assert (exact.history[:, 0] > 0.5).all()
    steps = [jnp.abs(jnp.diff(found.images, axis=1)).mean() for found in (exact, smooth)]
    assert float(steps[1]) < 0.8 * float(steps[0])


def test_first_loss_is_that_of_the_paper():
    x = 0.1 * np.asarray(jax.random.normal(KEY, SIZE), np.float64)
    found = feature_inversion(
        MODEL, IMAGES, layer="conv1", key=KEY, steps=1, norm_weight=0.7, variation_weight=0.2,
        alpha=6.0, beta=3.0, magnitude=0.5,
    )  # fmt: skip
    plain = feature_inversion(
        MODEL, IMAGES, layer="conv1", key=KEY, steps=1, norm_weight=0.0, variation_weight=0.0
    )
    down, right = x[1:, :-1] - x[:-1, :-1], x[:-1, 1:] - x[:-1, :-1]
    size = (np.abs(x / 0.5) ** 6).sum() / 120
    change = (np.hypot(down, right) / (0.5 / 6.5)) ** 3
    expected = 0.7 * size + 0.2 * change.sum() / 120
    np.testing.assert_allclose(found.history[:, 0] - plain.history[:, 0], expected, rtol=1e-3)


def test_maximisation_of_a_linear_class_goes_along_its_weights():
    found = activation_maximisation(
        LINEAR, jnp.array([2, 0]), key=KEY, steps=5, step_size=0.02, jitter=0, blur=(0.0, 0.0)
    )
    start = 0.1 * np.asarray(jax.random.normal(KEY, SMALL)).ravel()
    for number, target in enumerate((2, 0)):
        w = MATRIX[:, target]
        expected = start + 5 * 0.02 * w / np.abs(w).mean()
        np.testing.assert_allclose(found.images[number].ravel(), expected, atol=1e-5)
        np.testing.assert_allclose(found.activation[number], expected @ w, rtol=1e-4)
        steps = start @ w + np.arange(5) * 0.02 * (w @ w) / np.abs(w).mean()
        np.testing.assert_allclose(found.history[number], steps, rtol=1e-3, atol=1e-4)


def activation(x, channel, layer="conv2", position="mean"):
    """Return what a channel says of images (N, H, W, C)."""
    found = layers(MODEL.params, x)[layer][..., channel]
    if position == "mean":
        return found.mean((1, 2))
    return found[:, found.shape[1] // 2, found.shape[2] // 2]


@pytest.mark.parametrize(("layer", "position"), [("conv2", "mean"), ("conv1", "centre")])
def test_a_step_follows_the_gradient_by_finite_differences(layer, position):
    size, start = 0.01, np.asarray(IMAGES[:1])
    # A unit that is not zero: others have no gradient.
    channel = int(np.argmax([activation(start, c, layer, position)[0] for c in range(6)]))
    found = activation_maximisation(
        MODEL, jnp.array([channel]), key=KEY, layer=layer, position=position, initial=IMAGES[:1],
        steps=1, step_size=size, jitter=0, blur=(0.0, 0.0),
    )  # fmt: skip
    expected = activation(start, channel, layer, position)[0]
    assert expected > 0
    np.testing.assert_allclose(found.history[0, 0], expected, 1e-5)
    taken = (np.asarray(found.images) - start).ravel() / size
    places = np.argsort(-np.abs(taken))[:12]
    near = 1e-2 * np.eye(taken.size, dtype=np.float32)[places].reshape(-1, *SIZE)
    above, below = (activation(start + d, channel, layer, position) for d in (near, -near))
    slopes = np.asarray(above - below) / 2e-2
    # Steps are gradients up to one factor.
    factor = slopes @ taken[places] / (slopes @ slopes)
    np.testing.assert_allclose(taken[places], factor * slopes, rtol=0.1)
    np.testing.assert_allclose(np.abs(taken).mean(), 1, rtol=1e-3)


def test_maximisation_raises_its_channel_more_than_others():
    channels = jnp.array([1, 4])
    found = activation_maximisation(MODEL, channels, key=KEY, layer="conv2", steps=40, jitter=2)
    assert (found.activation > 3 * found.history[:, 0]).all()
    for number, channel in enumerate((1, 4)):
        other = activation(found.images[1 - number : 2 - number], channel)
        assert float(found.activation[number]) > 1.5 * float(other[0])


def test_blur_makes_smooth_images_and_the_key_decides_on_the_moves():
    options = {"steps": 20, "layer": "conv2", "initial": IMAGES, "jitter": 3}

    def run(key, blur):
        key = jax.random.key(key)
        return activation_maximisation(MODEL, TARGETS, key=key, blur=blur, **options).images

    rough, smooth, other = run(0, (0.0, 0.0)), run(0, (1.0, 1.0)), run(1, (0.0, 0.0))
    steps = [float(jnp.abs(jnp.diff(found, axis=1)).mean()) for found in (rough, smooth)]
    assert steps[1] < 0.5 * steps[0]
    assert float(jnp.abs(rough - other).max()) > 1e-3
    np.testing.assert_array_equal(rough, run(0, (0.0, 0.0)))


def test_images_stay_among_those_that_can_be_shown():
    grey = Preprocessing(SIZE[:2], (0.2, 0.4, 0.5), (0.5, 0.25, 0.25), order="BGR")
    model = dataclasses.replace(MODEL, preprocessing=grey)
    found = activation_maximisation(model, TARGETS, key=KEY, steps=20, step_size=1.0).images
    low, high = ((end - np.array([0.5, 0.4, 0.2])) / [0.25, 0.25, 0.5] for end in (0, 1))
    np.testing.assert_allclose(found.min((0, 1, 2)), low, atol=1e-6)
    np.testing.assert_allclose(found.max((0, 1, 2)), high, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"layer": "conv9"}, "unknown layer 'conv9'; nearest: conv"),
        ({"alpha": 0.5}, "alpha=0.5"),
        ({"magnitude": 0.0}, "magnitude=0.0"),
    ],
)
def test_bad_options_of_inversion_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        feature_inversion(MODEL, IMAGES, **{"layer": "conv1", "key": KEY, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"jitter": 10}, "jitter=10"),
        ({"blur": (-1.0, 0.0)}, "blur="),
        ({"layer": "conv9"}, "unknown layer 'conv9'; nearest: conv"),
        ({"layer": "conv2", "targets": jnp.array([7])}, "target 7 is no channel: layer 'conv2'"),
        ({"targets": jnp.array([4])}, "the model has 4 classes"),
        ({"model": dataclasses.replace(MODEL, input_shape=None)}, "initial is needed"),
    ],
)
def test_bad_options_of_maximisation_are_refused(options, message):
    given = {"model": MODEL, "targets": jnp.array([1]), "key": KEY, **options}
    with pytest.raises(ValueError, match=message):
        activation_maximisation(**given)
