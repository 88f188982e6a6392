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

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array

from jaxplain.solvers.active import Best
from jaxplain.solvers.linear import dot, mean_diagonal, product, with_ridge
from jaxplain.solvers.loop import Certificate, Solution, closed


def finish(
    gram: Array,
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
        gram: Q.
        corr: q.
        certify: from a point and its product with Q to its certificate.
        start: where to start from.
        tolerance: relative gap that counts as converged.
        max_steps: limit on the steps, those of `start` included.
        penalty: λ.
        radius: r, of a ball that `start` lies in.
        nonnegative: whether w ≥ 0.
    """
    d = corr.shape[-1]
    index = jnp.arange(d)
    tiny = jnp.finfo(corr.dtype).tiny

    def going(carry: tuple) -> Array:
        best, _, _, _, steps, stuck = carry
        return ~closed(best.bound, tolerance) & ~stuck & (steps < max_steps)

    def pivot(carry: tuple) -> tuple:
        best, w, sign, barred, steps, _ = carry
        target, level = _minimiser(gram, corr, sign, penalty, radius)
        crossing = (sign != 0) & (sign * target <= 0)
        share = jnp.abs(w) / jnp.maximum(jnp.abs(w) + jnp.abs(target), tiny)
        share = jnp.where(crossing, share, 2)
        first = jnp.argmin(share)
        ends, reach = share[first] < 1, jnp.minimum(share[first], 1)
        leaves = ends & (index == first)
        w = jnp.where(leaves | (sign == 0), 0, w + reach * (target - w))
        if radius is not None:
            w = w * jnp.minimum(1, radius / jnp.maximum(jnp.abs(w).sum(), tiny))
        sign = jnp.where(leaves, 0, sign)
        # What leaves without the point having moved must not enter again at once.
        barred = jnp.where(reach > 0, False, barred) | (leaves & (reach == 0))
        image = product(gram, w)
        slope = corr - image
        steep = jnp.where((sign != 0) | barred, -1, slope if nonnegative else jnp.abs(slope))
        steepest = jnp.argmax(steep)
        enters = ~ends & (steep[steepest] > level)
        sign = jnp.where(enters & (index == steepest), jnp.sign(slope), sign)
        bound = certify(w, image)
        stuck = (~ends & ~enters) | jnp.isnan(bound.gap)
        return best.or_better(w, bound), w, sign, barred, steps + 1, stuck

    w = start.value
    best = Best(w, certify(w, product(gram, w)))
    carry = (best, w, jnp.sign(w), jnp.zeros(d, bool), start.steps, jnp.isnan(best.bound.gap))
    (point, bound), last, _, _, steps, _ = lax.while_loop(going, pivot, carry)
    # A NaN in Q, or a Q that is not positive semidefinite, shows in the factorisation.
    sound = jnp.isfinite(last).all() & ~jnp.isnan(bound.gap)
    gap = jnp.where(sound, bound.gap, jnp.inf)
    return Solution(point, sound & closed(bound, tolerance), steps, gap, start.ridge)


def _minimiser(
    gram: Array, corr: Array, sign: Array, penalty: Array | None, radius: Array | None
) -> tuple[Array, Array]:
    """The minimiser with these signs, and its λ.

    A tiny ridge lets features enter that depend on others: the minimiser then lies far away along
    the direction in which they cancel, and the way there ends where the first reaches zero.
    """
    inside = sign != 0
    masked = jnp.where(inside[:, None] & inside[None, :], gram, jnp.diag(jnp.diagonal(gram)))
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
