"""Where excitation backprop has no meaning; its values are in the goldens."""

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxplain.methods import contrastive_excitation_backprop, excitation_backprop
from jaxplain.model import Model
from jaxplain.trace import UncoveredError

IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
TARGETS = jnp.array([0, 1])
WEIGHTS = [
    jax.random.normal(jax.random.key(number), shape)
    for number, shape in enumerate([(3, 3, 3, 4), (3, 3, 4, 4), (4, 2)])
]


def network(activation):
    def convolve(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)

    def apply(weights, x):
        for number, kernel in enumerate(weights[:2], start=1):
            x = activation(convolve(x, kernel))
            x = checkpoint_name(x, f"conv{number}")
        return x.mean((1, 2)) @ weights[2]

    return Model.from_function(apply, WEIGHTS)


@pytest.mark.parametrize("method", [excitation_backprop, contrastive_excitation_backprop])
def test_what_may_be_negative_has_no_probability(method):
    model = network(jax.nn.relu)
    heatmap = method(model, IMAGES, TARGETS, layer="conv1", upsample=False).heatmap
    assert float(heatmap.min()) >= 0
    with pytest.raises(UncoveredError, match=r"nowhere negative.*conv at"):
        method(model, IMAGES, TARGETS, layer="input")
    loose = excitation_backprop(model, IMAGES, TARGETS, layer="input", strict=False).heatmap
    assert float(loose.min()) < 0


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.leaky_relu, lambda x: x])
def test_activations_that_may_be_negative_are_refused(activation):
    with pytest.raises(UncoveredError, match="nowhere negative"):
        excitation_backprop(network(activation), IMAGES, TARGETS, layer="conv1")
