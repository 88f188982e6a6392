"""Explaining by features: sums by hand, one sweep for all layers, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from chip_networks import CLASSES, images, small
from fitted import features
from jax.ad_checkpoint import checkpoint_name

from jaxplain.methods.interpretation import descriptors, explain
from jaxplain.methods.interpretation.explain import FEEDBACK
from jaxplain.model import Model
from jaxplain.trace.backward import Seed, Sweep
from jaxplain.trace.rules import unit_stride

IMAGES = jnp.asarray(images(4))
TARGETS = jnp.array([0, 3, 1, 3])


@pytest.fixture(scope="module")
def own():
    return features(small(), CLASSES)


@pytest.fixture(scope="module")
def found(own):
    return explain(small(), IMAGES, TARGETS, importance=own)


def test_the_strongest_weighted_responses_are_shown(own, found):
    r = np.asarray(own.weights)[TARGETS] * np.asarray(descriptors(small(), IMAGES))
    order = np.argsort(-r, 1)[:, :3]
    np.testing.assert_array_equal(found.features, order)
    np.testing.assert_allclose(
        found.responses, np.maximum(np.take_along_axis(r, order, 1), 0), rtol=1e-5
    )
    np.testing.assert_array_equal(found.heatmap, found.maps.max(1))
    shown = np.asarray(found.responses) > 0
    assert set(np.asarray(found.maps.max((2, 3)))[shown]) <= {0.0, 1.0}
    assert (np.asarray(found.maps)[~shown] == 0).all()


def test_each_map_is_the_way_back_of_its_channels_activation():
    """The network with a stride; image by image, and from the feature's layer alone."""
    model = tiny.linen_model()
    images, targets = tiny.inputs()
    own = features(model, 10)
    maps = explain(model, images, targets, importance=own)
    for row in range(len(images)):
        sweep = Sweep(model, images[row : row + 1])
        for rank in range(3):
            feature = own.feature(int(maps.features[row, rank]))
            if float(maps.responses[row, rank]) <= 0:
                continue
            activation = sweep.activation(feature.layer)
            only = jnp.arange(activation.shape[-1]) == feature.channel
            seed = activation * only.reshape((1,) * (activation.ndim - 1) + (-1,))
            back = sweep.pull(unit_stride(), {feature.layer: Seed(seed)}, ["input"], strict=False)
            heat = np.linalg.norm(np.maximum(back["input"].value[0], 0), axis=-1)
            heat = (heat - heat.min()) / max(np.ptp(heat), 1e-30)
            np.testing.assert_allclose(maps.maps[row, rank], heat, atol=1e-4)


def test_without_strides_feedback_at_unit_stride_is_guided_backprop(own, found):
    guided = explain(small(), IMAGES, TARGETS, importance=own, feedback="guided")
    np.testing.assert_array_equal(found.heatmap, guided.heatmap)


def test_smoothing_blurs_each_map_and_leaves_its_range(own, found):
    from scipy.ndimage import gaussian_filter1d

    blurred = explain(small(), IMAGES, TARGETS, importance=own, smoothing=1.0)
    np.testing.assert_array_equal(blurred.features, found.features)
    # Only what lies inside of the picture is averaged.
    maps, inside = np.asarray(found.maps, np.float64), np.ones(found.maps.shape)
    for axis in (2, 3):
        maps, inside = (
            gaussian_filter1d(part, 1.0, axis=axis, mode="constant") for part in (maps, inside)
        )
    expected = maps / inside
    low, high = expected.min((2, 3), keepdims=True), expected.max((2, 3), keepdims=True)
    expected = (expected - low) / np.where(high > low, high - low, 1)
    np.testing.assert_allclose(blurred.maps, expected, atol=1e-5)


def test_activations_are_enlarged_and_dense_layers_have_none(own):
    shown = explain(small(), IMAGES, TARGETS, importance=own, feedback="activation", top=6)
    dense = np.vectorize(lambda i: own.feature(int(i)).kind == "dense")(shown.features)
    positive = np.asarray(shown.responses) > 0
    peaks = np.asarray(shown.maps.max((2, 3)))
    assert (peaks[dense] == 0).all()
    assert (peaks[~dense & positive] == 1).all()
    assert dense.any()
    assert shown.audit is None


def test_a_class_without_images_is_refused_or_zero(own):
    images = own.images.at[3].set(0)
    bare = dataclasses.replace(own, images=images, weights=own.weights.at[3].set(0.0))
    with pytest.raises(ValueError, match="class 3 had no images"):
        explain(small(), IMAGES, TARGETS, importance=bare)
    late = jax.jit(lambda x, t: explain(small(), x, t, importance=bare))(IMAGES, TARGETS)
    assert float(jnp.abs(late.heatmap[1]).max()) == 0
    assert float(late.heatmap[0].max()) > 0


@pytest.mark.parametrize("feedback", ["unit_stride", "activation"])
def test_a_channel_that_is_the_same_everywhere_has_an_empty_map(feedback):
    def apply(scale, x):
        both = jnp.concatenate([x[..., :1] * scale, x[..., :1] * 0 + 2], -1)
        return checkpoint_name(jax.nn.relu(both), "units").mean((1, 2))

    model = Model.from_function(apply, jnp.ones((1, 1, 1, 1)), input_shape=(8, 6, 3))
    drawn = features(model, 2)
    still = dataclasses.replace(drawn, weights=jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    found = explain(
        model, IMAGES[:2], jnp.array([0, 1]), importance=still, feedback=feedback, smoothing=1.0
    )
    assert float(found.responses[0, 0]) > 0
    assert (np.asarray(found.heatmap[0]) == 0).all()
    assert float(found.heatmap[1].max()) == 1


def test_what_does_not_fit_is_refused_by_name(own):
    def refused(message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            explain(small(), IMAGES, TARGETS, **{"importance": own, **options})

    refused("top is 0", top=0)
    refused("smoothing is -1", smoothing=-1.0)
    refused("smoothing is nan", smoothing=float("nan"))
    refused("unknown feedback 'guide'; nearest: guided", feedback="guide")
    refused("importance is a dict; expected RelevantFeatures", TypeError, importance={})
    refused("importance is for 2 classes", importance=features(small(), 2))
    narrow = dataclasses.replace(own, blocks=(own.blocks[0]._replace(channels=3), *own.blocks[1:]))
    refused("importance has 3 channels for layer 'conv1', the layer has 4", importance=narrow)
    assert len(FEEDBACK) == 4
