"""Heat maps on one scale, and the checks that every measure shares.

Explanation methods answer in units of their own, so maps are compared after min-max normalisation,
each map by itself (the map's range is not stated in VEBI §4.3; the unit interval is our reading of
its threshold axis).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Images that a measure looks at together: what it holds beside its input and its result does not
# grow with their number.
CHUNK = 64


@jax.jit
def min_max(heatmaps: Float[Array, "*n h w"]) -> Float[Array, "*n h w"]:
    """Map each heat map linearly onto [0, 1]: its smallest value to 0, its largest to exactly 1.

    A constant map points nowhere and becomes all zeros, so that no threshold above 0 selects
    anything. A map with a NaN or an infinity anywhere becomes NaN everywhere: what is broken must
    not look like an answer.

    Args:
        heatmaps: (..., H, W), any float type; half precisions are widened to float32.

    Returns:
        (..., H, W), float32 (float64 for float64 input).

    Example:
        >>> min_max(jnp.array([[-2.0, 0.0, 2.0]])).tolist()
        [[0.0, 0.5, 1.0]]
        >>> min_max(jnp.full((1, 3), 7.0)).tolist()
        [[0.0, 0.0, 0.0]]
    """
    maps = widen(heatmaps)
    low = jnp.min(maps, (-2, -1), keepdims=True)
    high = jnp.max(maps, (-2, -1), keepdims=True)
    factor = shrink(jnp.maximum(-low, high))
    span = high * factor - low * factor
    scaled = (maps * factor - low * factor) / jnp.where(span > 0, span, 1)
    # Said outright: XLA may divide by way of the reciprocal, and the top threshold asks for 1.
    scaled = jnp.where((maps == high) & (span > 0), 1, scaled)
    return jnp.where(finite(maps)[..., None, None], scaled, jnp.nan)


@jax.jit
def finite(heatmaps: Float[Array, "*n h w"]) -> Bool[Array, "*n"]:
    """Say of each map whether all its values are finite.

    Example:
        >>> finite(jnp.array([[[1.0, 2.0]], [[1.0, jnp.nan]]])).tolist()
        [True, False]
    """
    return jnp.isfinite(heatmaps).all((-2, -1))


@jax.jit
def constant(heatmaps: Float[Array, "*n h w"]) -> Bool[Array, "*n"]:
    """Say of each map whether all its values are the same, so that it prefers no pixel.

    Example:
        >>> constant(jnp.array([[[1.0, 2.0]], [[3.0, 3.0]]])).tolist()
        [False, True]
    """
    return jnp.max(heatmaps, (-2, -1)) == jnp.min(heatmaps, (-2, -1))


def widen(heatmaps: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `heatmaps` in float32 at least: half precisions would round thresholds and sums.

    Example:
        >>> widen(jnp.ones(2, jnp.bfloat16)).dtype
        dtype('float32')
    """
    return heatmaps.astype(jnp.promote_types(heatmaps.dtype, jnp.float32))


def shrink(largest: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the power of two that keeps sums, ranges and reciprocals of a map's values finite.

    Multiplying by it is exact. It is data, not a constant, because the compiler moves constant
    factors out of differences: a/4 − b/4 becomes (a − b)/4 and overflows again.

    Args:
        largest: the largest magnitude of each map.

    Example:
        >>> (3e38 * shrink(jnp.array(3e38)) + 3e38 * shrink(jnp.array(3e38))).item() < 1e20
        True
    """
    return jnp.where(largest > 1, 2.0**-64, 1.0).astype(largest.dtype)


def check_pair(heatmaps: object, masks: object) -> tuple[jax.Array, jax.Array]:
    """Return `heatmaps` and `masks` as arrays, having checked that they belong together.

    Args:
        heatmaps: (N, H, W) floats.
        masks: (N, H, W) booleans, true on the evidence.

    Raises:
        TypeError: heat maps are not floats, or masks are not booleans.
        ValueError: not three axes, or different shapes.

    Example:
        >>> check_pair(np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 5), bool))
        Traceback (most recent call last):
        ValueError: masks have shape (1, 4, 5), expected that of heatmaps, (1, 4, 4)
    """
    maps, truth = jnp.asarray(heatmaps), jnp.asarray(masks)
    if not jnp.issubdtype(maps.dtype, jnp.floating):
        raise TypeError(f"heatmaps are of type {maps.dtype}, expected floats")
    if truth.dtype != np.bool_:
        raise TypeError(
            f"masks are of type {truth.dtype}, expected bool (threshold a grey mask first)"
        )
    if maps.ndim != 3:
        raise ValueError(f"heatmaps have shape {maps.shape}, expected (images, height, width)")
    if truth.shape != maps.shape:
        raise ValueError(f"masks have shape {truth.shape}, expected that of heatmaps, {maps.shape}")
    return maps, truth
