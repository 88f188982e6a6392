r"""The grid that strides leave in a map: its energy at the stride's frequency and harmonics.

Oramas et al. 2019, "Visual Explanation by Interpretation", §3.3 and Fig. 2, show grid-like
artifacts of period S where a network has the stride S, without a measure. Ours: of the power
spectrum :math:`P` of a map whose sides are multiples of S,

.. math:: \text{grid energy} = \frac{\sum_{(i, j) \ne (0, 0)} P(i H / S, j W / S)}{P(0, 0)},
    \qquad i, j = 0, \dots, S - 1,

the power of everything that repeats every S pixels, over that of the mean.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxplain.evaluation.normalize import widen


def grid_energy(heatmaps: Float[Array, "n h w"], stride: int) -> Float[Array, " n"]:
    """Return how strong a grid of some period is in each map.

    Args:
        heatmaps: (N, H, W); rows and columns beyond a multiple of the stride are left out.
        stride: the period S in pixels, 2 or more.

    Returns:
        (N,); 0 for a map without a grid, S² − 1 for one that is a grid of single pixels, NaN for
        one whose mean is zero.

    Raises:
        ValueError: the stride is below 2, or a map is smaller than it.

    Example:
        >>> dots = jnp.zeros((1, 6, 6)).at[:, ::3, ::3].set(1.0)
        >>> [round(float(grid_energy(m, 3)[0]), 3) for m in (dots, jnp.ones((1, 6, 6)))]
        [8.0, 0.0]
    """
    height, width = (size // stride * stride for size in heatmaps.shape[1:]) if stride else (0, 0)
    if stride < 2 or not height or not width:
        raise ValueError(
            f"stride is {stride} for maps of {heatmaps.shape[1:]}; expected 2 up to their sides"
        )
    return _grid_energy(heatmaps[:, :height, :width], height // stride, width // stride)


@jax.jit(static_argnums=(1, 2))
def _grid_energy(maps: jax.Array, rows: int, columns: int) -> jax.Array:
    # What repeats every S pixels is what is left when all its periods are averaged.
    count, height, width = maps.shape
    tiles = widen(maps).reshape(count, rows, height // rows, columns, width // columns)
    power = jnp.abs(jnp.fft.fft2(tiles.mean((1, 3)))) ** 2
    mean = power[:, 0, 0]
    return (power.sum((1, 2)) - mean) / jnp.where(mean > 0, mean, jnp.nan)
