"""What a map is made of: all that arrives at the image, or its positive part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import features
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxplain.methods.interpretation import explain
from jaxplain.model import Model

# Two colours: a step down to the right in one, the other dark on the left.
KERNEL = np.array([[[1.0, -0.3], [-0.8, 0.6]]])
IMAGES = np.random.default_rng(4).uniform(size=(2, 5, 7, 2))


def _network(kernel, x):
    """A convolution of 1 × 2 pixels, and its mean and none as the logits."""
    found = lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    means = checkpoint_name(jax.nn.relu(found), "steps").mean((1, 2))
    return jnp.concatenate([means, 0 * means], 1)


def _explain(signs):
    model = Model.from_function(_network, jnp.asarray(KERNEL[..., None]), input_shape=(5, 7, 2))
    own = dataclasses.replace(features(model, 2), weights=jnp.ones((2, 1)))
    images = jnp.asarray(IMAGES, jnp.float32)
    return explain(model, images, jnp.array([0, 1]), importance=own, signs=signs)


@pytest.mark.parametrize("signs", ["positive", "both"])
def test_maps_are_the_length_of_what_arrives(signs):
    steps = np.maximum(
        np.einsum("bhwpc,pc->bhw", np.stack([IMAGES[:, :, :-1], IMAGES[:, :, 1:]], 3), KERNEL[0]), 0
    )
    arrived = np.zeros_like(IMAGES)
    arrived[:, :, :-1] += steps[..., None] * KERNEL[0, 0]
    arrived[:, :, 1:] += steps[..., None] * KERNEL[0, 1]
    assert (arrived < 0).any()
    length = np.linalg.norm(arrived if signs == "both" else np.maximum(arrived, 0), axis=-1)
    low, high = (f(length, (1, 2), keepdims=True) for f in (np.min, np.max))
    np.testing.assert_allclose(_explain(signs).heatmap, (length - low) / (high - low), atol=1e-5)


def test_unknown_signs_are_refused():
    with pytest.raises(ValueError, match="unknown signs 'bth'; nearest: both"):
        _explain("bth")
