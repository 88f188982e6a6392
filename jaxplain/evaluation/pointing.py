"""The pointing game: does the highest value of a heat map lie on the evidence?

Zhang et al., Top-down Neural Attention by Excitation Backprop (ECCV 2016): a hit is a maximum that
falls on the object or within 15 pixels of it. As TorchRay evaluates it, the distance to the nearest
pixel of the mask must be strictly below the tolerance: 14 pixels are a hit, 15 a miss. Two choices
are ours:

- *Scale.* Fifteen pixels mean something at the size at which the game was played, with the shorter
  side at 224. On an image of H × W pixels the tolerance is 15 · min(H, W) / 224.
- *Ties.* Where several pixels share the maximum, the score is the share of them that hit, which is
  the chance of a hit if one of them is drawn at random. Taking the first would favour evidence at
  the top left, and taking any would let a constant map win every game; so scored, a constant map
  gets what pointing at random gets.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxplain.evaluation.normalize import CHUNK, check_pair

TOLERANCE = 15.0
REFERENCE_SIDE = 224


def scaled_tolerance(shape: tuple[int, int]) -> float:
    """Return the tolerance in pixels for images of `shape` (H, W): 15 · min(H, W) / 224.

    Example:
        >>> scaled_tolerance((224, 300)), scaled_tolerance((112, 112))
        (15.0, 7.5)
    """
    return TOLERANCE * min(shape) / REFERENCE_SIDE


def pointing_game(
    heatmaps: Float[Array | np.ndarray, "n h w"],
    masks: Bool[Array | np.ndarray, "n h w"],
    *,
    tolerance: float | int | None = None,
) -> Float[Array, " n"]:
    """Score each image 1 for a hit and 0 for a miss, or the share of hits among tied maxima.

    The map is taken as it is: the maximum is its largest value, not its largest magnitude.

    Args:
        heatmaps: (N, H, W) floats.
        masks: (N, H, W) booleans, true on the evidence.
        tolerance: the maximum hits if its distance to the mask is strictly below this many pixels;
            0 is the plain game, in which it must lie on the mask. None scales 15 pixels to the
            image (`scaled_tolerance`).

    Returns:
        (N,), in [0, 1]; NaN for an empty mask and for a map with a NaN or an infinity.

    Raises:
        TypeError: heat maps are not floats, or masks are not booleans.
        ValueError: shapes differ, or the tolerance is negative or not finite.

    Example:
        >>> masks = np.zeros((3, 1, 32), bool)
        >>> masks[:, 0, 0] = True
        >>> maps = np.zeros((3, 1, 32), np.float32)
        >>> maps[[0, 1, 2], 0, [0, 14, 15]] = 1.0  # peaks at these distances from the mask
        >>> pointing_game(maps, masks, tolerance=15.0).tolist()
        [1.0, 1.0, 0.0]
    """
    maps, truth = check_pair(heatmaps, masks)
    return _hits(maps, within(truth, tolerance))


def within(
    masks: Bool[Array | np.ndarray, "n h w"], tolerance: float | int | None
) -> Bool[Array, "n h w"]:
    """Mark the pixels from which a maximum hits: those nearer to the mask than the tolerance.

    With them for masks, the plain game (tolerance 0) gives what `pointing_game` gives with the
    tolerance. So what many maps share is found once.

    Args:
        masks: (N, H, W) booleans.
        tolerance: as in `pointing_game`.

    Raises:
        ValueError: the tolerance is negative or not finite.

    Example:
        >>> within(np.array([[[True, False, False, False]]]), 2.5).tolist()
        [[[True, True, True, False]]]
    """
    height, width = masks.shape[1:]
    if tolerance is None:
        tolerance = scaled_tolerance((height, width))
    if not (0 <= tolerance < math.inf):
        raise ValueError(f"tolerance is {tolerance}, expected a finite number of pixels, 0 or more")
    # Squared distances are integers, so "strictly below" is exact: d² < tolerance² as d² <= reach.
    reach = max(math.ceil(tolerance**2) - 1, 0)
    if reach == 0:
        return jnp.asarray(masks)
    # No two pixels are further apart than this.
    return _within(jnp.asarray(masks), min(reach, height**2 + width**2))


@functools.partial(jax.jit, static_argnames="reach")
def _within(masks: jax.Array, reach: int) -> jax.Array:
    return lax.map(lambda mask: _near(mask, reach), masks, batch_size=CHUNK)


@jax.jit
def _hits(heatmaps: jax.Array, masks: jax.Array) -> jax.Array:
    def share(image: tuple[jax.Array, jax.Array]) -> jax.Array:
        heatmap, mask = image
        peaks = heatmap == heatmap.max()
        hits = jnp.sum(peaks & mask, dtype=jnp.int32)
        score = hits / jnp.maximum(jnp.sum(peaks, dtype=jnp.int32), 1)
        return jnp.where(mask.any() & jnp.isfinite(heatmap).all(), score, jnp.nan)

    return lax.map(share, (heatmaps, masks), batch_size=CHUNK)


def _near(mask: jax.Array, reach: int) -> jax.Array:
    """Mark the pixels whose squared distance to the mask is at most `reach`; O(H W √reach)."""
    height, width = mask.shape
    far = height + width
    rows = jnp.arange(height, dtype=jnp.int32)[:, None]
    above = lax.cummax(jnp.where(mask, rows, -far), axis=0)
    below = lax.cummin(jnp.where(mask, rows, 2 * far), axis=0, reverse=True)
    # Squared distance to the nearest pixel of the mask in the same column, then over neighbouring
    # columns.
    column = jnp.minimum(jnp.minimum(rows - above, below - rows), far) ** 2
    radius = math.isqrt(reach)
    padded = jnp.pad(column, ((0, 0), (radius, radius)), constant_values=far**2)

    def widen(shift: jax.Array, near: jax.Array) -> jax.Array:
        moved = lax.dynamic_slice_in_dim(padded, shift, width, axis=1)
        return near | (moved + (shift - radius) ** 2 <= reach)

    return lax.fori_loop(0, 2 * radius + 1, widen, jnp.zeros_like(mask))
