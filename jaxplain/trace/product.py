"""The transpose of a product with a dense layer's weights, as XLA's CPU backend is fast at it.

A few rows times a large matrix that is to be read transposed, the way back through a dense layer,
takes XLA twenty times as long as the way there (jax 0.10.2): it turns the whole matrix round first.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Inputs of the layer that are worked on together, and what was measured: products of fewer weights
# take no time, one row is a product with a vector, and of many rows a product is fast as it is.
_BLOCK = 128
_WEIGHTS = 1 << 20
_ROWS = range(2, 17)


def is_slow(signal: jax.Array, weight: jax.Array, params: Mapping[str, Any]) -> bool:
    """Say whether the transpose of a product is one that `transposed` is faster at.

    Args:
        signal: what comes back.
        weight: the right operand.
        params: parameters of the `dot_general` equation.
    """
    return (
        jax.default_backend() == "cpu"
        and params["dimension_numbers"] == (((1,), (0,)), ((), ()))
        and signal.ndim == weight.ndim == 2
        and signal.shape[0] in _ROWS
        and weight.shape[0] % _BLOCK == 0
        and weight.size >= _WEIGHTS
    )


def transposed(signal: jax.Array, weight: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    """Return the transpose of the product y = x w, applied to `signal`.

    Args:
        signal: (B, O), where y was.
        weight: (I, O), I a multiple of 128.
        params: parameters of the `dot_general` equation.

    Returns:
        (B, I).
    """
    blocks = weight.reshape(-1, _BLOCK, weight.shape[1])
    repeated = jnp.broadcast_to(signal, (len(blocks), *signal.shape))
    found = lax.dot_general(
        blocks,
        repeated,
        (((2,), (2,)), ((0,), (0,))),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return found.transpose(2, 0, 1).reshape(len(signal), -1)
