r"""Quadratic objectives known by their Gram statistics, and bounds on a point's suboptimality.

Throughout, :math:`f(w) = \tfrac12 w^T Q w - q \cdot w` with Q positive semidefinite. Two
certificates:

*Ball.* For min f over :math:`\|w\|_1 \le r`, convexity gives
:math:`f(w) - f^* \le \nabla f(w) \cdot w + r \|\nabla f(w)\|_\infty`, the Frank–Wolfe gap.

*Penalty.* For min :math:`f(w) + \lambda \|w\|_1`, every u with
:math:`\|q - Qu\|_\infty \le \lambda` proves :math:`P^* \ge -\tfrac12 u^T Q u`, because then
:math:`\lambda \|w\|_1 \ge (q - Qu) \cdot w` and
:math:`\tfrac12 w^T Q w - w^T Q u \ge -\tfrac12 u^T Q u`. The iterate w itself violates the
condition a little, so u lies between it and an anchor v that satisfies it strictly. If the energy
:math:`\sum y^2` is known, v is any solution of Qv = q: only Qv and
:math:`v^T Q v \le \sum y^2` are needed. Otherwise Qv ≈ q is solved, so far as λ asks for.

All bounds include an allowance for the rounding of the products they are made of, so that they
stay bounds in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxplain.solvers.linear import conjugate_gradients, dot, product
from jaxplain.solvers.loop import Certificate, Solution


class Anchor(NamedTuple):
    """A point v that meets the dual constraint strictly, known by what a bound needs of it.

    Attributes:
        product: Q v.
        energy: vᵀ Q v, or a bound above it.
        excess: ‖q − Q v‖∞.
    """

    product: Float[Array, " d"]
    energy: Float[Array, ""]
    excess: Float[Array, ""]


def find_anchor(
    gram: Callable[[], Float[Array, "d d"]],
    corr: Float[Array, " d"],
    penalty: Float[Array, ""],
    energy: Float[Array, ""] | None,
) -> Anchor:
    """The anchor that Σ y² gives for nothing, or, where that is unknown, Qv ≈ q solved for one.

    Args:
        gram: makes Q, which is needed only if the energy is unknown.
        corr: q.
        penalty: λ.
        energy: Σ y², or None.

    >>> float(find_anchor(lambda: jnp.eye(2), jnp.ones(2), jnp.array(0.1), None).energy)
    2.0
    """
    if energy is not None:
        return Anchor(corr, energy, jnp.zeros_like(energy))
    matrix = gram()
    v = conjugate_gradients(
        functools.partial(product, matrix),
        corr,
        jnp.zeros_like(corr),
        tolerance=penalty / 2,
        max_steps=2 * corr.shape[-1],
    )
    image = product(matrix, v)
    excess = jnp.abs(corr - image).max()
    size = jnp.diagonal(matrix).max() * jnp.abs(v).sum() + jnp.abs(corr).max()
    return Anchor(image, dot(v, image), excess + jnp.finfo(corr.dtype).eps * size)


def penalty_certificate(
    w: Float[Array, " d"],
    image: Float[Array, " d"],
    residual: Float[Array, " d"],
    corr: Float[Array, " d"],
    penalty: Float[Array, ""],
    largest: Float[Array, ""],
    anchor: Anchor,
    *,
    other: float | Float[Array, ""] = 0.0,
    rounding: Float[Array, ""] | None = None,
) -> Certificate:
    """Bounds f(w) + λ‖w‖₁ (+ more) − optimum; see the module's text.

    Args:
        w: the point.
        image: Q w.
        residual: q − Q w, less the multipliers of further penalties when there are any.
        corr: q.
        penalty: λ.
        largest: the largest diagonal entry of Q, which bounds all of Q.
        anchor: the strictly feasible point.
        other: for further penalties, their value less multipliers · argument, which is ≥ 0.
        rounding: bound on the error of an entry of `residual`; None is that of plain products.
    """
    eps = jnp.finfo(w.dtype).eps
    size = jnp.abs(w).sum()
    plain = eps * (largest * size + jnp.abs(corr).max())
    rounded = plain if rounding is None else rounding
    worst = jnp.abs(residual).max() + rounded
    feasible = worst <= penalty
    anchored = anchor.excess <= penalty
    # u = s w + (1 − s) v has ‖q − Qu‖∞ ≤ s · worst + (1 − s) · excess, which this s makes λ.
    spread = jnp.where(feasible | ~anchored, 1, worst - anchor.excess)
    back = jnp.where(feasible, 0, (worst - penalty) / spread)  # 1 − s
    quadratic = dot(w, image)
    across = dot(w, anchor.product)
    slack = (penalty * jnp.abs(w) - residual * w).sum() + other
    moved = back * (across - quadratic) + back**2 / 2 * (anchor.energy - 2 * across + quadratic)
    gap = jnp.maximum(slack + moved, 0) + size * rounded
    explained = jnp.abs(dot(corr, w)) + quadratic / 2
    gap = jnp.where(feasible | anchored, gap, jnp.inf)
    return Certificate(
        _if_semidefinite(quadratic, size * rounded, gap), explained + eps * anchor.energy
    )


def ball_certificate(
    w: Float[Array, " d"],
    image: Float[Array, " d"],
    corr: Float[Array, " d"],
    radius: Float[Array, ""],
    largest: Float[Array, ""],
    *,
    nonnegative: bool = False,
) -> Certificate:
    """Bounds f(w) − min f over the L1 ball, or its non-negative part; see the module's text.

    >>> w, q = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> float(ball_certificate(w, w, q, jnp.array(1.0), jnp.array(1.0)).gap) < 1e-5
    True
    """
    eps = jnp.finfo(w.dtype).eps
    slope = image - corr
    steepest = jnp.maximum(-slope, 0).max() if nonnegative else jnp.abs(slope).max()
    size = jnp.abs(w).sum()
    largest_corr = jnp.abs(corr).max()
    rounding = eps * (largest * size + largest_corr)
    # At zero the slope is −q, without rounding.
    allowance = jnp.where(size > 0, (radius + size) * rounding, 0)
    gap = jnp.maximum(dot(slope, w) + radius * steepest, 0) + allowance
    quadratic = dot(w, image)
    explained = jnp.abs(dot(corr, w)) + quadratic / 2
    return Certificate(
        _if_semidefinite(quadratic, size * rounding, gap), explained + eps * radius * largest_corr
    )


def _if_semidefinite(quadratic: Array, rounding: Array, gap: Array) -> Array:
    """The gap, or NaN (which stops the loop) where wᵀQw < 0 shows that Q proves nothing."""
    return jnp.where(quadratic < -rounding, jnp.nan, gap)


def least_squares(
    gram: Float[Array, "d d"], corr: Float[Array, " d"], tolerance: float | Float[Array, ""]
) -> Solution:
    """The minimiser of f of least norm, by eigenvectors; for when there is no penalty at all.

    The gap is ½ rᵀQ⁺r with the residual r of the normal equations, where eigenvalues can be told
    from rounding. It is `inf` if q lies outside the range of Q: f then has no minimum.

    >>> least_squares(jnp.diag(jnp.array([2.0, 0.0])), jnp.array([1.0, 0.0]), 1e-6).value.tolist()
    [0.5, 0.0]
    """
    few = 10 * corr.shape[-1] * jnp.finfo(corr.dtype).eps
    values, vectors = jnp.linalg.eigh(gram)
    usable = values > few * jnp.abs(values).max()
    inverse = jnp.where(usable, 1 / jnp.where(usable, values, 1), 0)
    w = product(vectors, inverse * product(vectors.T, corr))
    image = product(gram, w)
    rounding = few * (jnp.abs(values).max() * jnp.abs(w).max() + jnp.abs(corr).max())
    left = jnp.abs(product(vectors.T, corr - image))
    gap = (inverse * (left + rounding) ** 2).sum() / 2
    solvable = jnp.where(usable, True, left <= rounding).all() & jnp.isfinite(gap)
    solvable &= values[0] >= -few * values[-1]
    gap = jnp.where(solvable, gap, jnp.inf)
    scale = jnp.abs(dot(corr, w)) + dot(w, image) / 2
    return Solution(
        jnp.where(jnp.isfinite(w).all(), w, 0),
        gap <= tolerance * scale,
        jnp.ones((), jnp.int32),
        gap,
        jnp.zeros_like(gap),
    )
