"""A small network, images and targets for the methods that optimise through it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxplain.model import Model

SIZE = (10, 12, 3)


def conv(x, w):
    """Return the ReLU of a convolution."""
    return jax.nn.relu(
        jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
    )


def layers(params, x):
    """Return the activations by name."""
    first = checkpoint_name(conv(x, params["first"]), "conv1")
    pooled = checkpoint_name(first.reshape(x.shape[0], 5, 2, 6, 2, -1).max((2, 4)), "pool1")
    second = checkpoint_name(conv(pooled, params["second"]), "conv2")
    return {"conv1": first, "pool1": pooled, "conv2": second}


def apply(params, x):
    """Return the logits."""
    last = layers(params, x)["conv2"]
    return jnp.matmul(last.reshape(x.shape[0], -1), params["dense"], precision="highest")


def _params():
    shapes = {"first": (3, 3, 3, 6), "second": (3, 3, 6, 7), "dense": (210, 4)}
    draw = jax.random.split(jax.random.key(0), 3)
    return {
        name: jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]) / 2)
        for key, (name, shape) in zip(draw, shapes.items(), strict=True)
    }


MODEL = Model.from_function(apply, _params(), input_shape=SIZE, default_layer="conv2")
IMAGES = jax.random.normal(jax.random.key(1), (2, *SIZE))
TARGETS = jnp.array([2, 0])
