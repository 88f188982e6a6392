"""Proximal maps and projections, each with the problem it solves. All act on the last axis.

The two projections onto the L1 ball and the simplex are exact and found by sorting (Duchi et al.,
ICML 2008). `ball_threshold` finds the same threshold by Newton's method on the piecewise linear
equation it solves (Michelot, JOTA 1986), several times cheaper in a loop that has a good start.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def soft_threshold(
    v: Float[Array, "*batch d"], threshold: float | Float[Array, "..."]
) -> Float[Array, "*batch d"]:
    r"""Shrinks every entry towards zero: :math:`\arg\min_x \tfrac12\|x-v\|_2^2 + t\|x\|_1`.

    Args:
        v: points.
        threshold: t ≥ 0, a scalar or an array of the rank of `v` that broadcasts against it.

    Returns:
        sign(v) · max(|v| − t, 0), with exact zeros.

    >>> soft_threshold(jnp.array([3.0, -0.5, -2.0]), 1.0).tolist()
    [2.0, 0.0, -1.0]
    """
    # v − clip(v, −t, t) rather than sign(v)·max(…): one pass, and +0.0 for every zero.
    return v - jnp.clip(v, -threshold, threshold)


def project_box(
    v: Float[Array, "*batch d"],
    low: float | Float[Array, "..."] = 0.0,
    high: float | Float[Array, "..."] = 1.0,
) -> Float[Array, "*batch d"]:
    r"""The nearest point of a box: :math:`\arg\min_x \|x-v\|_2^2` s.t. low ≤ x ≤ high.

    Args:
        v: points.
        low: lower bounds, a scalar or broadcastable at the rank of `v`.
        high: upper bounds, likewise.

    Raises:
        ValueError: if two plain numbers are given with low > high.

    >>> project_box(jnp.array([-1.0, 0.5, 7.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
        raise ValueError(f"low must not exceed high, got low={low}, high={high}")
    return jnp.clip(v, low, high)


def project_simplex(
    v: Float[Array, "*batch d"], total: float | Float[Array, "*batch"] = 1.0
) -> Float[Array, "*batch d"]:
    r"""The nearest point of the simplex: :math:`\arg\min_x \|x-v\|_2^2` s.t. x ≥ 0, Σx = total.

    Args:
        v: points.
        total: the sum, > 0; one a point or one for all.

    Raises:
        ValueError: if `total` is a plain number and not positive.

    >>> project_simplex(jnp.array([1.0, 0.5, -3.0])).tolist()
    [0.75, 0.25, 0.0]
    """
    if isinstance(total, (int, float)) and total <= 0:
        raise ValueError(f"total must be positive, got {total}")
    total = jnp.broadcast_to(jnp.asarray(total, v.dtype), v.shape[:-1])
    return jnp.maximum(v - _sorted_threshold(v, total)[..., None], 0)


def project_l1_ball(
    v: Float[Array, "*batch d"], radius: float | Float[Array, "*batch"]
) -> Float[Array, "*batch d"]:
    r"""The nearest point of the L1 ball: :math:`\arg\min_x \|x-v\|_2^2` s.t. :math:`\|x\|_1 \le r`.

    Sorting |v| once gives the threshold that `soft_threshold` needs to land on the sphere; points
    inside the ball are returned unchanged.

    Args:
        v: points.
        radius: r ≥ 0, one a point or one for all.

    Raises:
        ValueError: if `radius` is a plain number below 0.

    >>> project_l1_ball(jnp.array([2.0, -1.0, 0.5]), 2.0).tolist()
    [1.5, -0.5, 0.0]
    """
    radius = _radius(v, radius)
    size = jnp.abs(v)
    inside = size.sum(axis=-1) <= radius
    threshold = jnp.where(inside, 0, _sorted_threshold(size, radius))
    return soft_threshold(v, threshold[..., None])


def project_l1_ball_nonnegative(
    v: Float[Array, "*batch d"], radius: float | Float[Array, "*batch"]
) -> Float[Array, "*batch d"]:
    r"""The same with signs fixed: :math:`\arg\min_x \|x-v\|_2^2` s.t. x ≥ 0, :math:`\sum x \le r`.

    Args:
        v: points.
        radius: r ≥ 0, one a point or one for all.

    Raises:
        ValueError: if `radius` is a plain number below 0.

    >>> project_l1_ball_nonnegative(jnp.array([2.0, -1.0, 1.0]), 2.0).tolist()
    [1.5, 0.0, 0.5]
    """
    return project_l1_ball(jnp.maximum(v, 0), radius)


def ball_threshold(
    size: Float[Array, "*batch d"],
    radius: Float[Array, "*batch"],
    *,
    weights: Float[Array, "*batch d"] | None = None,
    start: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    r"""The θ ≥ 0 with :math:`\sum_i c_i \max(s_i - θ, 0) = r`, else 0.

    The left side is convex, decreasing and piecewise linear, so Newton's method from any start is
    at or left of the root after one step, climbs from there and ends exactly, after at most d
    steps (two or three from the threshold of a nearby problem).

    Args:
        size: magnitudes s ≥ 0.
        radius: r ≥ 0.
        weights: c ≥ 0; None means 1.
        start: a guess of θ.

    >>> size = jnp.array([2.0, 1.0, 0.5])
    >>> ball_threshold(size, jnp.array(2.0)).tolist()
    0.5
    >>> ball_threshold(size, jnp.array(2.0), weights=jnp.array([1.0, 0.0, 2.0])).tolist()
    0.333...
    """
    if weights is None:
        weights = jnp.ones_like(size)
    # No magnitude alone may fill more than r: this never exceeds the root.
    room = radius[..., None] / jnp.where(weights > 0, weights, 1)
    floor = jnp.maximum(jnp.where(weights > 0, size - room, 0).max(axis=-1), 0)

    def newton(theta: Array) -> Array:
        above = jnp.where(size > theta[..., None], weights, 0)
        total = above.sum(axis=-1)
        excess = (above * size).sum(axis=-1) - radius
        root = jnp.where(total > 0, excess / jnp.where(total > 0, total, 1), 0)
        return jnp.maximum(root, floor)

    def climbing(carry: tuple[Array, Array, Array]) -> Array:
        theta, previous, trips = carry
        return (theta > previous).any() & (trips < size.shape[-1])

    def climb(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        theta, _, trips = carry
        # The maximum keeps rounding from walking a finished problem back and forth.
        return jnp.maximum(newton(theta), theta), theta, trips + 1

    theta = floor if start is None else newton(start)
    before = jnp.full_like(theta, -jnp.inf)
    theta, _, _ = lax.while_loop(climbing, climb, (theta, before, jnp.zeros((), jnp.int32)))
    return theta


def _sorted_threshold(v: Array, radius: Array) -> Array:
    """The θ with Σ max(v − θ, 0) = r by sorting; ties and r = 0 included."""
    ordered = jnp.flip(jnp.sort(v, axis=-1), axis=-1)
    count = jnp.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    means = (jnp.cumsum(ordered, axis=-1) - radius[..., None]) / count.reshape(
        (1,) * (v.ndim - 1) + (-1,)
    )
    # {k : u_k > mean_k} is a prefix; with r = 0 it may be empty, and the first mean is max(v).
    last = jnp.maximum((ordered > means).sum(axis=-1) - 1, 0)
    return jnp.take_along_axis(means, last[..., None], axis=-1)[..., 0]


def _radius(v: Array, radius: float | Array) -> Array:
    if isinstance(radius, (int, float)) and radius < 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    return jnp.broadcast_to(jnp.asarray(radius, v.dtype), v.shape[:-1])


__all__ = [
    "ball_threshold",
    "project_box",
    "project_l1_ball",
    "project_l1_ball_nonnegative",
    "project_simplex",
    "soft_threshold",
]
