r"""Mask IoU: how well a thresholded heat map covers the known evidence, at every threshold.

Visual Explanation by Interpretation (Oramas, Wang, Tuytelaars, ICLR 2019), §4.3: threshold the heat
map at given values, measure the pixel-level intersection over union with the mask of the
discriminative part, and report the area under the curve of its mean. With the min-max normalised
map $h$ of an image and its mask $M$,

$$ \mathrm{IoU}(t) = \frac{|\{h \ge t\} \cap M|}{|\{h \ge t\} \cup M|}, \qquad
   \mathrm{area} = \int_0^1 \mathrm{IoU}(t)\,dt \ \text{by the trapezoid rule.} $$

The paper states neither the grid nor the comparison. Ours: t = 0, 0.05 … 1 and `>=`, so that t = 0
selects the whole image (IoU = the mask's share of it) and t = 1 the maxima. A map equal to its mask
therefore has IoU 1 at every t > 0 and the area 1 − step/2 · (1 − the mask's share): 1 up to the
first step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxplain.evaluation.normalize import check_pair, min_max

# 0, 0.05 … 1.
THRESHOLDS = tuple(step / 20 for step in range(21))


class MaskIou(NamedTuple):
    """IoU against threshold, per image.

    Attributes:
        thresholds: (T,), increasing.
        curves: (N, T), IoU of each image at each threshold; NaN for an image with an empty mask or
            a non-finite map.
        areas: (N,), area under each curve, divided by the range of the thresholds.
    """

    thresholds: Float[Array, " t"]
    curves: Float[Array, "n t"]
    areas: Float[Array, " n"]

    @property
    def mean_curve(self) -> Float[Array, " t"]:
        """The mean over the images whose curve is defined, (T,); NaN if there is none."""
        return _mean_of_defined(self.curves)

    @property
    def mean_area(self) -> Float[Array, ""]:
        """The area under `mean_curve`: the figure of VEBI's Fig. 8."""
        return _mean_of_defined(self.areas)


def mask_iou(
    heatmaps: Float[Array | np.ndarray, "n h w"],
    masks: Bool[Array | np.ndarray, "n h w"],
    *,
    thresholds: Sequence[float] | np.ndarray = THRESHOLDS,
) -> MaskIou:
    """Measure the IoU of thresholded heat maps with masks.

    Maps are min-max normalised one by one; a constant map selects everything at t = 0 and nothing
    above. Memory beyond the input and the result does not grow with the number of images.

    Args:
        heatmaps: (N, H, W) floats.
        masks: (N, H, W) booleans, true on the evidence.
        thresholds: at least two, increasing; concrete (not traced).

    Returns:
        Thresholds, curves and areas. An empty mask has no IoU: its curve and area are NaN, as are
        those of a map with a NaN or an infinity.

    Raises:
        TypeError: heat maps are not floats, or masks are not booleans.
        ValueError: shapes differ, or thresholds do not increase.

    Example:
        >>> mask = np.zeros((1, 4, 4), bool)
        >>> mask[:, :2] = True
        >>> result = mask_iou(mask.astype(np.float32), mask, thresholds=(0.0, 0.5, 1.0))
        >>> result.curves.tolist(), result.areas.tolist()
        ([[0.5, 1.0, 1.0]], [0.875])
    """
    maps, truth = check_pair(heatmaps, masks)
    levels = np.asarray(thresholds, np.float64)
    if levels.ndim != 1 or levels.size < 2 or not (np.diff(levels) > 0).all():
        raise ValueError(f"thresholds are {levels.tolist()}, expected two or more, increasing")
    # In the precision of the normalised maps: a value of 0.15 must reach the threshold 0.15.
    steps = jnp.asarray(levels, jnp.promote_types(maps.dtype, jnp.float32))
    curves = _curves(maps, truth, steps)
    return MaskIou(steps, curves, area_under(curves, levels))


def area_under(
    curves: Float[Array | np.ndarray, "*n t"], thresholds: Sequence[float] | np.ndarray
) -> Float[Array, "*n"]:
    """Integrate curves over the thresholds by the trapezoid rule, over the thresholds' range.

    Dividing by the range changes nothing for thresholds from 0 to 1, and keeps areas of narrower
    grids in [0, 1].

    Args:
        curves: (..., T).
        thresholds: (T,), increasing.

    Example:
        >>> float(area_under(jnp.array([0.0, 1.0, 1.0]), [0.0, 0.5, 1.0]))
        0.75
    """
    levels = np.asarray(thresholds, np.float64)
    steps = np.diff(levels) / (levels[-1] - levels[0])
    weights = (np.append(steps, 0) + np.append(0, steps)) / 2
    return jnp.matmul(
        jnp.asarray(curves), jnp.asarray(weights, jnp.float32), precision=lax.Precision.HIGHEST
    )


@jax.jit
def _curves(heatmaps: jax.Array, masks: jax.Array, thresholds: jax.Array) -> jax.Array:
    def curve(image: tuple[jax.Array, jax.Array]) -> jax.Array:
        heatmap, mask = image
        scaled = min_max(heatmap).ravel()
        # Each pixel is counted once, at the highest threshold that it reaches and on its side of
        # the mask: many times faster than a sum for each threshold.
        reached = jnp.sum(scaled[:, None] >= thresholds[None], 1, dtype=jnp.int32)
        counted = jnp.zeros((thresholds.size + 1, 2), jnp.int32)
        counted = counted.at[reached, mask.ravel().astype(jnp.int32)].add(1)
        above = jnp.cumsum(counted[::-1], 0)[-2::-1]
        chosen, both = above.sum(1), above[:, 1]
        either = chosen + mask.sum() - both
        defined = mask.any() & ~jnp.isnan(scaled[0])
        return jnp.where(defined, both / jnp.maximum(either, 1), jnp.nan)

    return lax.map(curve, (heatmaps, masks))


def _mean_of_defined(values: jax.Array) -> jax.Array:
    defined = ~jnp.isnan(values)
    total = jnp.sum(jnp.where(defined, values, 0), 0)
    return total / jnp.sum(defined, 0)
