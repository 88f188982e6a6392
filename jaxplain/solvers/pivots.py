"""Quadratic problems with an L1 penalty or ball, one feature at a time: slow, and sure.

Among points with given signs the objective is quadratic and its minimiser a linear system away.
From any point, walk towards it; a feature that reaches zero on the way leaves, and when none does,
the feature with the steepest slope enters (Osborne, Presnell and Turlach, IMA J. Numer. Anal.
2000). The objective falls with each step, so no set of signs comes twice. Each step costs a
factorisation, so this is for problems that make iterations crawl: features almost copies of each
other, whose weights hardly matter to the objective and much to its certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array

from jaxplain.solvers.active import Best
from jaxplain.solvers.linear import dot, mean_diagonal, product, with_ridge
from jaxplain.solvers.loop import Certificate, Solution, choose, closed

# The most features that may be in use at a time, which bounds the work and the memory of a step.
SLOTS = 128


class _Slots(NamedTuple):
    """The features in use, one a slot; a free slot has the sign 0.

    Attributes:
        feature: which one.
        weight: its weight.
        sign: its sign, which it has before it has a weight.
        barred: of all features, those that left without the point having moved since.
    """

    feature: Array
    weight: Array
    sign: Array
    barred: Array


def finish(
    rows: Callable[[Array], Array],
    corr: Array,
    certify: Callable[[Array, Array], Certificate],
    start: Solution,
    tolerance: Array,
    max_steps: Array,
    *,
    penalty: Array | None = None,
    radius: Array | None = None,
    nonnegative: bool = False,
) -> Solution:
    """Goes on from a solution that has not converged; one of `penalty` and `radius` is given.

    Args:
        rows: from indices to those rows of Q.
        corr: q.
        certify: from a point and its product with Q to its certificate.
        start: where to start from.
        tolerance: relative gap that counts as converged.
        max_steps: limit on the steps, those of `start` included.
        penalty: λ.
        radius: r, of a ball that `start` lies in.
        nonnegative: whether w ≥ 0.

    Returns:
        The best point met. It is `start` itself if that uses more features than there are slots.
    """
    count = min(SLOTS, corr.shape[-1])

    def point(slots: _Slots) -> Array:
        return jnp.zeros_like(corr).at[slots.feature].add(slots.weight)

    def going(carry: tuple) -> Array:
        best, _, steps, stuck = carry
        return ~closed(best.bound, tolerance) & ~stuck & (steps < max_steps)

    def pivot(carry: tuple) -> tuple:
        best, slots, steps, _ = carry
        chosen = rows(slots.feature)
        target, level = _minimiser(
            chosen[:, slots.feature], corr[slots.feature], slots.sign, penalty, radius
        )
        slots, ends = _walk(slots, target, radius)
        w = point(slots)
        image = jnp.matmul(slots.weight, chosen, precision=lax.Precision.HIGHEST)
        slope = corr - image
        slope = jnp.maximum(slope, 0) if nonnegative else slope
        entered, enters = _enter(slots, slope, level)
        slots, enters = choose(ends, slots, entered), enters & ~ends
        bound = certify(w, image)
        stuck = (~ends & ~enters) | jnp.isnan(bound.gap)
        return best.or_better(w, bound), slots, steps + 1, stuck

    feature = lax.top_k(jnp.abs(start.value), count)[1]
    weight = start.value[feature]
    slots = _Slots(feature, weight, jnp.sign(weight), jnp.zeros(corr.shape, bool))
    image = jnp.matmul(weight, rows(feature), precision=lax.Precision.HIGHEST)
    fits = (start.value != 0).sum() <= count
    bound = certify(start.value, image)
    bound = bound._replace(gap=jnp.where(fits, bound.gap, start.gap))
    carry = (Best(start.value, bound), slots, start.steps, ~fits | jnp.isnan(bound.gap))
    best, slots, steps, _ = lax.while_loop(going, pivot, carry)
    # A NaN in Q, or a Q that is not positive semidefinite, shows in the factorisation.
    sound = jnp.isfinite(slots.weight).all() & ~jnp.isnan(best.bound.gap)
    gap = jnp.where(sound, best.bound.gap, jnp.inf)
    converged = sound & fits & closed(best.bound, tolerance)
    return Solution(best.point, converged, steps, gap, start.ridge)


def _walk(slots: _Slots, target: Array, radius: Array | None) -> tuple[_Slots, Array]:
    """To the target, or to where the first weight reaches zero, which then leaves."""
    tiny = jnp.finfo(target.dtype).tiny
    crossing = (slots.sign != 0) & (slots.sign * target <= 0)
    share = jnp.abs(slots.weight) / jnp.maximum(jnp.abs(slots.weight) + jnp.abs(target), tiny)
    share = jnp.where(crossing, share, 2)
    first = jnp.argmin(share)
    ends, reach = share[first] < 1, jnp.minimum(share[first], 1)
    leaves = ends & (jnp.arange(len(target)) == first)
    weight = slots.weight + reach * (target - slots.weight)
    weight = jnp.where(leaves | (slots.sign == 0), 0, weight)
    if radius is not None:
        weight = weight * jnp.minimum(1, radius / jnp.maximum(jnp.abs(weight).sum(), tiny))
    # What leaves without the point having moved must not enter again at once.
    barred = jnp.where(reach > 0, False, slots.barred)
    barred = barred.at[slots.feature[first]].max(ends & (reach == 0))
    return _Slots(slots.feature, weight, jnp.where(leaves, 0, slots.sign), barred), ends


def _enter(slots: _Slots, slope: Array, level: Array) -> tuple[_Slots, Array]:
    """The feature with the steepest slope takes a free slot, if it is steeper than λ."""
    inside = jnp.zeros(slope.shape, bool).at[slots.feature].max(slots.sign != 0)
    steepness = jnp.where(inside | slots.barred, -1, jnp.abs(slope))
    steepest = jnp.argmax(steepness)
    free = jnp.argmin(jnp.abs(slots.sign))
    enters = (slots.sign[free] == 0) & (steepness[steepest] > level)
    here = enters & (jnp.arange(len(slots.sign)) == free)
    return slots._replace(
        feature=jnp.where(here, steepest.astype(slots.feature.dtype), slots.feature),
        sign=jnp.where(here, jnp.sign(slope[steepest]), slots.sign),
    ), enters


def _minimiser(
    gram: Array, corr: Array, sign: Array, penalty: Array | None, radius: Array | None
) -> tuple[Array, Array]:
    """The minimiser with these signs, and its λ.

    A tiny ridge lets features enter that depend on others: the minimiser then lies far away along
    the direction in which they cancel, and the way there ends where the first reaches zero.
    """
    inside = sign != 0
    own = jnp.diag(jnp.where(inside, 0, jnp.diagonal(gram)))
    masked = jnp.where(inside[:, None] & inside[None, :], gram, own)
    ridge = 10 * corr.shape[-1] * jnp.finfo(corr.dtype).eps * mean_diagonal(gram)
    lower = lax.linalg.cholesky(with_ridge(masked, ridge), symmetrize_input=False)
    both = jnp.where(inside, jnp.stack([corr, sign]), 0)
    free, pull = cho_solve((lower, True), both.T).T
    if radius is None:
        assert penalty is not None
        share, level = jnp.zeros_like(penalty), penalty
    else:
        # On the sphere if the minimiser with these signs lies outside.
        excess, strength = dot(sign, free) - radius, dot(sign, pull)
        bound = (excess > 0) & (strength > 0)
        share = jnp.where(bound, 1 / jnp.where(bound, strength, 1), 0)
        level = share * jnp.maximum(excess, 0)
    w = free - level * pull
    # `free` and λ · `pull` may be large and cancel, and the ridge has moved both: what is left of
    # the equations is solved once more, and then of the sphere's.
    w = w + cho_solve((lower, True), jnp.where(inside, corr - level * sign - product(gram, w), 0))
    excess = 0 if radius is None else dot(sign, w) - radius
    return w - share * excess * pull, level
