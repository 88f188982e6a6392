r"""Smooth masks: a kernel is moved over a coarse grid of parameters, and the smooth maximum taken.

Fong, Patrick and Vedaldi 2019, arXiv:1910.08485, equation (5): with $k$ a kernel and $\bar m$ the
parameters, $m(u) = \mathrm{smax}_v \; k(u - v) \, \bar m(v)$, where smax of values $f$ is their
mean with weights $\exp(20 f)$. The kernel is one within half of $\sigma$ and falls as
$\exp(-2 (d/\sigma - \frac12)^2)$.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

COLDNESS = 20.0


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
    k = jnp.asarray(kernel(cell, grids[0].margin, middle), parameters.dtype)
    near = k.shape[0]
    rows, columns = grids[0].blocks, grids[1].blocks
    around = ((0, 0), *((g.padding, g.padding) for g in grids))
    padded = jnp.pad(parameters, around, mode="symmetric" if mirror else "constant")
    seen = jnp.stack([padded[:, down : down + rows] for down in range(near)], 1)
    seen = jnp.stack([seen[..., right : right + columns] for right in range(near)], 2)
    seen = seen.reshape(-1, near * near, rows, columns)
    v = seen[..., None, None] * k.reshape(1, near * near, 1, 1, cell, cell)
    weight = jnp.exp(COLDNESS * (v - 1))  # parameters are at most 1
    m = (weight * v).sum(1) / weight.sum(1)
    m = m.transpose(0, 1, 3, 2, 4).reshape(-1, rows * cell, columns * cell)
    return m[:, : rows * cell - cell + 1, : columns * cell - cell + 1]


def cropped(m: Float[Array, "a y x"], grids: tuple[Grid, Grid]) -> Float[Array, "a h w"]:
    """Return the masks without their margins.

    Example:
        >>> cropped(jnp.ones((1, 11, 11)), (grid_of(8, 2, 2), grid_of(8, 2, 2))).shape
        (1, 8, 8)
    """
    (top, height), (left, width) = ((g.margin, g.pixels) for g in grids)
    return m[:, top : top + height, left : left + width]
