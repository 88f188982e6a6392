"""What a network says of many pictures."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxplain.data.labelled import Pictures
from jaxplain.preprocessing import Preprocessing
from jaxplain.training.inputs import in_chunks, pieces

_PREDICT = 100


def predict(
    network: Any, variables: Any, pictures: Pictures, preprocessing: Preprocessing
) -> Float[np.ndarray, "n classes"]:
    """Return the logits of pictures, computed a hundred at a time."""
    whole = np.asarray(pictures.images)
    run = functools.partial(_logits, network, preprocessing, variables)
    return np.concatenate(list(in_chunks(run, pieces(whole, _PREDICT), _PREDICT)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(
    network: Any, preprocessing: Preprocessing, variables: Any, images: jax.Array
) -> jax.Array:
    return network.apply(variables, normalise(images, preprocessing))


def normalise(
    images: UInt8[Array, "b h w c"] | UInt8[np.ndarray, "b h w c"], preprocessing: Preprocessing
) -> Float[Array, "b h w c"]:
    """Return the network's inputs of pictures that have its size: `preprocessing` on the device."""
    mean, std = (
        jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    inputs = (jnp.asarray(images, jnp.float32) / 255 - mean) / std * preprocessing.scale
    return inputs[..., ::-1] if preprocessing.order == "BGR" else inputs
