"""Salient object detection: how well does a map, made binary, cover a whole object?

Du et al. 2018, arXiv:1804.00506, §4.4.2, after Achanta et al. 2009, "Frequency-tuned Salient Region
Detection". A map on 0..1 is cut at twice its mean (at its maximum, if that is less), and precision,
recall and F measure compare what is left with the object's mask; the mean absolute error compares
the map itself. Such data are folders of images with masks, MSRA-B among them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxplain.evaluation.normalize import check_pair, min_max

BETA_SQUARED = 0.3
"""β² of the F measure, which prefers precision."""


class SaliencyDetection(NamedTuple):
    """Measures of each map, all (N,), NaN where a map is broken or a mask empty.

    Attributes:
        precision: share of what was marked that lies in the mask; 0 where nothing was marked.
        recall: share of the mask that was marked.
        f_measure: (1 + β²) precision · recall / (β² precision + recall).
        error: mean absolute difference of map and mask.
    """

    precision: Float[Array, " n"]
    recall: Float[Array, " n"]
    f_measure: Float[Array, " n"]
    error: Float[Array, " n"]


def saliency_detection(
    heatmaps: Float[Array | np.ndarray, "n h w"],
    masks: Bool[Array | np.ndarray, "n h w"],
    *,
    beta_squared: float = BETA_SQUARED,
) -> SaliencyDetection:
    """Measure maps as detectors of a whole object.

    Maps are min-max normalised one by one; a constant map marks nothing.

    Args:
        heatmaps: (N, H, W) floats.
        masks: (N, H, W) booleans, true on the object.
        beta_squared: β² of the F measure.

    Returns:
        Precision, recall, F measure and mean absolute error of each map.

    Raises:
        TypeError: heat maps are not floats, or masks are not booleans.
        ValueError: shapes differ, or β² is not positive.

    Example:
        >>> mask = np.array([[[True, True, False, False]]])
        >>> found = saliency_detection(np.array([[[1.0, 0.0, 0.0, 0.0]]]), mask)
        >>> found.precision.item(), found.recall.item(), found.error.item()
        (1.0, 0.5, 0.25)
    """
    if not beta_squared > 0:
        raise ValueError(f"beta_squared={beta_squared}: a positive number")
    return _measures(*check_pair(heatmaps, masks), beta_squared)


@jax.jit
def _measures(heatmaps: jax.Array, masks: jax.Array, beta_squared: jax.Array) -> SaliencyDetection:
    maps = min_max(heatmaps)
    threshold = jnp.minimum(2 * maps.mean((1, 2), keepdims=True), maps.max((1, 2), keepdims=True))
    marked = (maps >= threshold) & (maps > 0)
    both, chosen, wanted = ((part).sum((1, 2)) for part in (marked & masks, marked, masks))
    defined = jnp.isfinite(maps).all((1, 2)) & (wanted > 0)
    precision = both / jnp.maximum(chosen, 1)
    recall = both / jnp.maximum(wanted, 1)
    below = beta_squared * precision + recall
    f_measure = (1 + beta_squared) * precision * recall / jnp.where(below > 0, below, 1)
    error = jnp.abs(maps - masks).mean((1, 2))
    return SaliencyDetection(
        *(jnp.where(defined, value, jnp.nan) for value in (precision, recall, f_measure, error))
    )
