r"""Smooth masks: a kernel is moved over a coarse grid of parameters, and the smooth maximum taken.

Fong, Patrick and Vedaldi 2019, arXiv:1910.08485, equation (5): with $k$ a kernel and $\bar m$ the
parameters, $m(u) = \mathrm{smax}_v \; k(u - v) \, \bar m(v)$, where smax of values $f$ is their
mean with weights $\exp(20 f)$. The kernel is one within half of $\sigma$ and falls as
$\exp(-2 (d/\sigma - \frac12)^2)$.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

COLDNESS = 20.0
_LANES = 8


class Grid(NamedTuple):
    """Sizes of a mask along one axis.

    Attributes:
        parameters: how many there are.
        padding: how many zeros are added on either side.
        blocks: of `cell` pixels each, margins included.
        margin: pixels on either side that lie outside of the image.
        pixels: of the image.
    """

    parameters: int
    padding: int
    blocks: int
    margin: int
    pixels: int


def _reach(cell: int, sigma: int) -> tuple[int, int]:
    """Return how many parameters a pixel sees on every side, and how many are added there.

    The latter is TorchRay's, or what it takes to have the whole image behind the margin.
    """
    reach = 1 + math.ceil(sigma / cell)
    margin = math.ceil(2 * sigma / cell) - math.ceil(sigma / cell)
    return reach, reach + max(margin, math.ceil((sigma + cell - 1) / (2 * cell)))


def grid_of(size: int, cell: int, sigma: int) -> Grid:
    """Return the grid of a side of `size` pixels, with a parameter every `cell` pixels.

    Example:
        >>> grid_of(224, 7, 21)
        Grid(parameters=32, padding=7, blocks=38, margin=21, pixels=224)
    """
    reach, padding = _reach(cell, sigma)
    parameters = math.ceil(size / cell)
    return Grid(parameters, padding, parameters + 2 * (padding - reach), sigma, size)


def kernel(cell: int, sigma: int, middle: float = 0.0) -> Float[np.ndarray, "n n cell cell"]:
    """Return what every parameter near a block of pixels does to each of them.

    Args:
        cell: pixels of a block.
        sigma: width of the kernel in pixels.
        middle: pixel of the block where its parameter lies, from 0.

    Example:
        >>> kernel(7, 21).shape
        (9, 9, 7, 7)
    """
    reach, padding = _reach(cell, sigma)
    near = np.arange(2 * reach + 1)
    # Pixel a of a block, and the middle of its n-th parameter.
    away = np.arange(cell)[None, :] - middle - sigma - cell * (near[:, None] - padding)
    distance = np.sqrt(away[:, None, :, None] ** 2 + away[None, :, None, :] ** 2)
    return np.exp(-2 * np.maximum(distance / sigma - 0.5, 0) ** 2).astype(np.float32)


def smooth_masks(
    parameters: Float[Array, "a h w"], grids: tuple[Grid, Grid], cell: int, *, mirror: bool = False
) -> Float[Array, "a y x"]:
    """Return the masks (A, H', W'), margins included, of parameters (A, h, w) in 0..1: (5).

    Args:
        parameters: one a cell.
        grids: of rows and columns.
        cell: pixels of a cell along a side.
        mirror: parameters lie in the middle of cells, and go on behind the border as in a mirror,
            so that all places are alike; otherwise in the first pixel of cells, and are zero there.

    Example:
        >>> grids = (grid_of(8, 2, 2), grid_of(8, 2, 2))
        >>> smooth_masks(jnp.ones((1, 4, 4)), grids, 2).shape
        (1, 11, 11)
    """
    middle = (cell - 1) / 2 if mirror else 0.0
    rows, columns = grids[0].blocks, grids[1].blocks
    around = ((0, 0), *((g.padding, g.padding) for g in grids))
    padded = jnp.pad(parameters, around, mode="symmetric" if mirror else "constant")
    # Whole vectors of a CPU; what is more than the columns is cut off.
    wide = -(-columns // _LANES) * _LANES
    padded = jnp.pad(padded, ((0, 0), (0, 0), (0, wide - columns)))
    m: jax.Array = _smooth_maxima(padded, cell, grids[0].margin, middle, (rows, wide))
    m = m[..., :columns].reshape(-1, cell, cell, rows, columns)
    m = m.transpose(0, 3, 1, 4, 2).reshape(-1, rows * cell, columns * cell)
    return m[:, : rows * cell - cell + 1, : columns * cell - cell + 1]


def _kernels(cell: int, sigma: int, middle: float, dtype: Any) -> jax.Array:
    """Return the kernel (n, n, 1, cell², 1, 1)."""
    k = jnp.asarray(kernel(cell, sigma, middle), dtype)
    return k.reshape(k.shape[0], k.shape[0], 1, cell * cell, 1, 1)


def _seen(
    padded: jax.Array, down: jax.Array, near: int, blocks: tuple[int, int]
) -> list[jax.Array]:
    """Return the parameters (A, 1, rows, columns) that blocks see in each column of a row."""
    count, _, across = padded.shape
    row = lax.dynamic_slice(padded, (0, down, 0), (count, blocks[0], across))
    return [row[:, None, :, right : right + blocks[1]] for right in range(near)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _smooth_maxima(
    padded: jax.Array, cell: int, sigma: int, middle: float, blocks: tuple[int, int]
) -> jax.Array:
    """Return the mask (A, cell², rows, columns) of each pixel of every block.

    The values of all neighbours of all pixels would be a hundred times the mask: a row of
    neighbours is added at a time, and on the way back its exponentials are made again.
    """
    return _forwards(padded, cell, sigma, middle, blocks)[0]


def _forwards(
    padded: jax.Array, cell: int, sigma: int, middle: float, blocks: tuple[int, int]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    k = _kernels(cell, sigma, middle, padded.dtype)
    near = k.shape[0]

    def add(down: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        above, below = sums
        for right, p in enumerate(_seen(padded, down, near, blocks)):
            v = p * k[down, right]
            weight = jnp.exp(COLDNESS * (v - 1))  # parameters are at most 1
            above, below = above + weight * v, below + weight
        return above, below

    zero = jnp.zeros((padded.shape[0], cell * cell, *blocks), padded.dtype)
    above, below = lax.fori_loop(0, near, add, (zero, zero))
    m = above / below
    return m, (padded, m, below)


def _backwards(
    cell: int,
    sigma: int,
    middle: float,
    blocks: tuple[int, int],
    kept: tuple[jax.Array, jax.Array, jax.Array],
    slope: jax.Array,
) -> tuple[jax.Array]:
    padded, m, below = kept
    k = _kernels(cell, sigma, middle, padded.dtype)
    near = k.shape[0]
    share = slope / below

    def add(down: jax.Array, found: jax.Array) -> jax.Array:
        for right, p in enumerate(_seen(padded, down, near, blocks)):
            v = p * k[down, right]
            # Of smax: the weight's share, and more for what is above the mean.
            each = k[down, right] * jnp.exp(COLDNESS * (v - 1)) * (1 + COLDNESS * (v - m))
            more, place = (share * each).sum(1), (0, down, right)
            before = lax.dynamic_slice(found, place, more.shape)
            found = lax.dynamic_update_slice(found, before + more, place)
        return found

    return (lax.fori_loop(0, near, add, jnp.zeros_like(padded)),)


_smooth_maxima.defvjp(_forwards, _backwards)


def cropped(m: Float[Array, "a y x"], grids: tuple[Grid, Grid]) -> Float[Array, "a h w"]:
    """Return the masks without their margins.

    Example:
        >>> cropped(jnp.ones((1, 11, 11)), (grid_of(8, 2, 2), grid_of(8, 2, 2))).shape
        (1, 8, 8)
    """
    (top, height), (left, width) = ((g.margin, g.pixels) for g in grids)
    return m[:, top : top + height, left : left + width]
