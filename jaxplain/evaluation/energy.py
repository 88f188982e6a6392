"""Energy inside the mask: the share of a heat map's positive part that lies on the evidence.

The energy-based pointing game of Score-CAM (Wang et al., CVPR Workshops 2020): Σ_{(y,x) ∈ M} h⁺ / Σ
h⁺, where h⁺ is the positive part of the map. It needs neither threshold nor argmax, and a map
without preference scores the mask's share of the image. It is invariant to the scale of a map but
not to its offset: maps whose zero means "no evidence" are what it is for.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxplain.evaluation.normalize import CHUNK, check_pair, shrink, widen


def energy_inside(
    heatmaps: Float[Array | np.ndarray, "n h w"], masks: Bool[Array | np.ndarray, "n h w"]
) -> Float[Array, " n"]:
    """Return the share of each map's positive part that lies inside its mask.

    Args:
        heatmaps: (N, H, W) floats; negative values count as 0.
        masks: (N, H, W) booleans, true on the evidence.

    Returns:
        (N,), in [0, 1]. NaN where the share is undefined: a map without a positive value (0/0), an
        empty mask, or a map with a NaN or an infinity.

    Raises:
        TypeError: heat maps are not floats, or masks are not booleans.
        ValueError: shapes differ.

    Example:
        >>> mask = jnp.array([[[True, False]]])
        >>> energy_inside(jnp.array([[[3.0, 1.0]]]), mask).tolist()
        [0.75]
        >>> energy_inside(jnp.array([[[0.0, -1.0]]]), mask).tolist()
        [nan]
    """
    return _shares(*check_pair(heatmaps, masks))


@jax.jit
def _shares(heatmaps: jax.Array, masks: jax.Array) -> jax.Array:
    def share(image: tuple[jax.Array, jax.Array]) -> jax.Array:
        heatmap, mask = image
        positive = jnp.maximum(widen(heatmap), 0)
        top = positive.max()
        positive = positive * shrink(top)
        inside = jnp.sum(jnp.where(mask, positive, 0))
        outside = jnp.sum(jnp.where(mask, 0, positive))
        defined = (top > 0) & mask.any() & jnp.isfinite(heatmap).all()
        # inside / (inside + outside) cannot exceed 1 by rounding, inside / total can.
        return jnp.where(defined, inside / jnp.where(defined, inside + outside, 1), jnp.nan)

    return lax.map(share, (heatmaps, masks), batch_size=CHUNK)
