"""Networks of the CHIP tests, small enough that everything can be summed by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxplain.model import Model
from jaxplain.models.layers import tap
from jaxplain.preprocessing import Preprocessing

SIZE = (8, 6, 3)
CLASSES = 5


class Small(nn.Module):
    """Two convolutions, pooling, two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = tap(nn.relu(nn.Conv(4, (3, 3), name="conv1")(x)), "conv1")
        x = tap(nn.max_pool(x, (2, 2), (2, 2)), "pool1")
        x = tap(nn.relu(nn.Conv(6, (3, 3), name="conv2")(x)), "conv2")
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = tap(nn.relu(nn.Dense(7, name="fc")(x)), "fc")
        return tap(nn.Dense(CLASSES, name="logits")(x), "logits")


@functools.cache
def small(dtype: str = "float32") -> Model:
    """A network whose classes are all predicted now and then."""
    module = Small()
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *SIZE)))
    rng = np.random.default_rng(102)

    def draw(leaf):
        scale = 1.5 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return jnp.asarray(rng.normal(size=leaf.shape) * scale, dtype)

    return Model.from_linen(
        module,
        jax.tree.map(draw, shapes),
        input_shape=SIZE,
        preprocessing=Preprocessing(SIZE[:2], (0.5, 0.4, 0.6), (0.25, 0.2, 0.3)),
        name="small",
        default_layer="conv2",
    )


def images(count: int, dtype: str = "float32") -> np.ndarray:
    """Return images that `small` tells apart."""
    return (2 * np.random.default_rng(7).normal(size=(count, *SIZE))).astype(dtype)


# The channels that each class of `planted` goes by; all others are seen by none.
PLANTED = {0: (1, 4), 1: (0, 7, 9), 2: (5,)}
CHANNELS = 12


def planted() -> Model:
    """A network whose classes go by known channels of "units"; the last class is "none of them".

    A class is sure with all its channels open, and impossible with all of them closed.
    """
    weights = np.zeros((CHANNELS, len(PLANTED) + 1), np.float32)
    for label, channels in PLANTED.items():
        weights[list(channels), label] = 12 / len(channels)

    def apply(weights, x):
        x = jax.ad_checkpoint.checkpoint_name(nn.relu(x), "units")
        return x.mean((1, 2)) @ weights - jnp.array([[6.0, 6.0, 6.0, 0.0]])

    return Model.from_function(
        apply, jnp.asarray(weights), input_shape=(2, 3, CHANNELS), name="planted"
    )


SHARE = 0.6


def summing() -> Model:
    """A network in which the probability of a class is a sum over its channels of "units".

    It is `SHARE` times the mean of its channels' averages; the last class has what is left.
    """
    weights = np.zeros((CHANNELS, len(PLANTED)), np.float32)
    for label, channels in PLANTED.items():
        weights[list(channels), label] = SHARE / len(channels)

    def apply(weights, x):
        x = jax.ad_checkpoint.checkpoint_name(nn.relu(x), "units")
        found = x.mean((1, 2)) @ weights
        rest = 1 - found.sum(1, keepdims=True)
        return jnp.log(jnp.maximum(jnp.concatenate([found, rest], 1), 1e-6))

    return Model.from_function(
        apply, jnp.asarray(weights), input_shape=(2, 3, CHANNELS), name="summing"
    )


def planted_images(count: int) -> np.ndarray:
    """Return images in which one class's channels are on, and those that are seen by none."""
    rng = np.random.default_rng(0)
    used = [channel for channels in PLANTED.values() for channel in channels]
    idle = [channel for channel in range(CHANNELS) if channel not in used]
    found = np.zeros((count, 2, 3, CHANNELS), np.float32)
    for number in range(count):
        on = [*PLANTED[number % len(PLANTED)], *idle]
        found[number, ..., on] = rng.uniform(0.5, 1.5, (len(on), 2, 3))
    return found
