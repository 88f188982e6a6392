"""Pooling as torchvision's networks count it: explicit padding, ceil mode, adaptive averages."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxplain.models.network import Pair, check_room, pair


def max_pool(
    x: Float[Array, "b h w c"],
    name: str,
    size: int,
    *,
    stride: int,
    padding: int | Pair = 0,
    ceil: bool = False,
) -> Float[Array, "b h2 w2 c"]:
    """Return the maxima over windows of `size` x `size`.

    Args:
        x: feature maps.
        name: the layer's name, for errors.
        size: side of the window.
        stride: step of the window.
        padding: positions added on each side, or (before, after); they never win.
        ceil: let a last window hang over the end if it starts inside, as torch's `ceil_mode` does.

    Raises:
        ValueError: the window does not fit.

    Example:
        >>> x = jnp.arange(5.0).reshape(1, 1, 5, 1)
        >>> max_pool(jnp.tile(x, (1, 5, 1, 1)), "pool", 2, stride=2, ceil=True)[0, 0, :, 0].tolist()
        [1.0, 3.0, 4.0]
    """
    low, high = pair(padding)
    pads = [
        (low, high + (_overhang(n, size, stride, low, high) if ceil else 0)) for n in x.shape[1:3]
    ]
    check_room(x, name, (size, size), pads)
    return nn.max_pool(x, (size, size), strides=(stride, stride), padding=pads)  # pyright: ignore[reportArgumentType] - declared str


def _overhang(length: int, size: int, stride: int, low: int, high: int) -> int:
    """Return how many positions the last window reaches beyond the padded end."""
    windows = -(-(length + low + high - size) // stride) + 1
    if (windows - 1) * stride >= length + low:  # it would start in the padding behind
        windows -= 1
    return max(0, (windows - 1) * stride + size - (length + low + high))


def average_pool(
    x: Float[Array, "b h w c"], name: str, size: int, *, stride: int, padding: int = 0
) -> Float[Array, "b h2 w2 c"]:
    """Return the means over windows of `size` x `size`.

    Padding counts as zeros: torch's `count_include_pad`.

    Raises:
        ValueError: the window does not fit.

    Example:
        >>> means = average_pool(jnp.ones((1, 4, 4, 1)), "pool", 2, stride=2, padding=1)
        >>> means[0, 1].ravel().tolist()
        [0.5, 1.0, 0.5]
    """
    pads = [(padding, padding)] * 2
    check_room(x, name, (size, size), pads)
    return nn.avg_pool(x, (size, size), strides=(stride, stride), padding=pads)  # pyright: ignore[reportArgumentType] - declared str


def adaptive_average_pool(x: Float[Array, "b h w c"], shape: Pair) -> Float[Array, "b h2 w2 c"]:
    """Return means over `shape` windows that cover the map, whatever its size.

    Window i of n over a length m is [floor(i m / n), ceil((i + 1) m / n)), as torch's
    `AdaptiveAvgPool2d` has it. It is a product with one matrix per axis, so that a rule which knows
    dense layers knows it too. At its own size the map is returned as it is.

    Example:
        >>> adaptive_average_pool(jnp.arange(3.0).reshape(1, 1, 3, 1), (1, 2))[0, 0, :, 0].tolist()
        [0.5, 1.5]
    """
    if 0 in x.shape[1:3]:
        raise ValueError(f"x has shape {x.shape}: nothing to average")
    for axis, size in zip((1, 2), shape, strict=True):
        if x.shape[axis] != size:
            windows = jnp.asarray(averaging_matrix(x.shape[axis], size), x.dtype)
            x = jnp.moveaxis(
                jnp.tensordot(x, windows, axes=(axis, 1), precision=jax.lax.Precision.HIGHEST),
                -1,
                axis,
            )
    return x


def averaging_matrix(length: int, windows: int) -> np.ndarray:
    """Return the (windows, length) matrix of adaptive averaging along one axis; rows sum to one.

    Example:
        >>> averaging_matrix(3, 2).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    matrix = np.zeros((windows, length))
    for i in range(windows):
        start, end = i * length // windows, -(-(i + 1) * length // windows)
        matrix[i, start:end] = 1 / (end - start)
    return matrix
