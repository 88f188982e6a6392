r"""The lasso by active sets: a handful of small linear systems instead of many iterations.

With :math:`z = q - Qw` and :math:`v = z + \mathrm{diag}(Q)\, w`, w minimises
:math:`\tfrac12 w^T Q w - q \cdot w + \lambda \|w\|_1` exactly if it solves
:math:`Q_{AA} w_A = q_A - \lambda s_A` and is zero elsewhere, for the set
:math:`A = \{j : |v_j| > \lambda\}` and the signs :math:`s = \mathrm{sign}\, v`. Turns of
"find A" and "solve for :math:`w_A`" are a semismooth Newton method (Hintermüller, Ito and Kunisch,
SIAM J. Optim. 2002; for the lasso: Kim and Park, AISTATS 2010) that ends exactly, mostly after
three to six turns. They happen on a working set of the features with the largest \|v\|, so that a
problem reads only those rows of Q; the rest is checked after each round, and the set grows when it
is too small (Johnson and Guestrin, ICML 2015). The systems are solved by conjugate gradients from
the last w. Newton's turns can cycle when features depend on each other; they then give up, and
what they have found is a start for slower methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxplain.solvers.linear import conjugate_gradients, dot, product
from jaxplain.solvers.loop import Certificate, Solution, choose, closed

# Newton's turns on one working set, and rounds on working sets of one size.
TURNS = 10
ROUNDS = 4

# Steps of conjugate gradients in a turn; a system that asks for more is nearly singular.
PRODUCTS = 100

# How exactly systems are solved while the active set still changes, as a share of λ.
LOOSE = 1e-2


class Problem(NamedTuple):
    """One lasso.

    Attributes:
        rows: from indices to those rows of Q.
        diagonal: of Q.
        corr: q.
        penalty: λ.
        certify: from a point and its product with Q to its certificate.
    """

    rows: Callable[[Array | slice], Array]
    diagonal: Array
    corr: Array
    penalty: Array
    certify: Callable[[Array, Array], Certificate]


class Best(NamedTuple):
    """The point with the smallest gap so far."""

    point: Array
    bound: Certificate

    def or_better(self, point: Array, bound: Certificate) -> Best:
        """The better of the two; a NaN is not better."""
        return choose(bound.gap < self.bound.gap, Best(point, bound), self)


class _Round(NamedTuple):
    r"""Where the working sets have led.

    Attributes:
        best: the best point.
        point: the last point.
        residual: q − Q · point.
        wanted: how many features have \|v\| > λ.
        steps: linear systems solved.
        rounds: working sets tried at the present size.
        promising: the last turns settled, without a NaN.
    """

    best: Best
    point: Array
    residual: Array
    wanted: Array
    steps: Array
    rounds: Array
    promising: Array


def solve(problem: Problem, tolerance: Array, max_steps: Array) -> Solution:
    """Newton's method on working sets of growing size; the best point that was met."""
    d = problem.corr.shape[-1]
    zero, none = jnp.zeros_like(problem.corr), jnp.zeros((), jnp.int32)
    start = problem.certify(zero, zero)
    sound = ~jnp.isnan(start.gap) & jnp.isfinite(problem.corr).all()
    best = Best(zero, start._replace(gap=jnp.where(sound, start.gap, jnp.inf)))
    wanted = (jnp.abs(problem.corr) > problem.penalty).sum()
    state = _Round(best, zero, problem.corr, wanted, none, none, sound)
    for size in sizes(d):

        def unfinished(state: _Round, size: int = size) -> Array:
            fits = (state.wanted <= size) | (state.rounds == 0) | (size == d)
            going = ~closed(state.best.bound, tolerance) & state.promising
            return going & fits & (state.steps < max_steps) & (state.rounds < ROUNDS)

        def more(state: _Round, size: int = size) -> _Round:
            return _round(problem, state, size, tolerance, max_steps)

        state = state._replace(rounds=none)
        # In a branch of its own, because XLA computes what does not change in a loop before the
        # loop, even if it never turns: here, copies of all of Q.
        state = lax.cond(
            unfinished(state),
            lambda s, go=unfinished, step=more: lax.while_loop(go, step, s),
            lambda s: s,
            state,
        )
    point, bound = state.best
    converged = closed(bound, tolerance)
    return Solution(point, converged, state.steps, bound.gap, jnp.zeros_like(bound.gap))


def sizes(d: int) -> list[int]:
    """Working set sizes for d features.

    >>> sizes(50), sizes(512)
    ([50], [64, 128, 256, 512])
    """
    found = [64]
    while found[-1] < 0.8 * d:
        found.append(2 * found[-1])
    return [*found[:-1], d]


def _round(
    problem: Problem, state: _Round, size: int, tolerance: Array, max_steps: Array
) -> _Round:
    """Newton's turns on the features with the largest v, and a look at all others."""
    corr, penalty = problem.corr, problem.penalty
    v = jnp.abs(state.residual + problem.diagonal * state.point)
    # Single precision is enough to rank by, and much faster to sort.
    everything = size == corr.shape[-1]
    chosen = slice(None) if everything else lax.top_k(v.astype(jnp.float32), size)[1]
    rows = problem.rows(chosen)
    # Of a set that is far too small, only the direction of growth is of interest.
    glimpse = state.wanted > 4 * size
    # What the equations may leave for the gap to come out right: it grows by that times ‖w‖₁.
    length = jnp.abs(state.point).sum()
    allowed = state.best.bound.scale / jnp.where(length > 0, length, 1)
    found, settled, turns = _newton(
        problem,
        chosen,
        rows[:, chosen],
        state.point[chosen],
        tight=tolerance * jnp.where(length > 0, allowed, penalty) / 2,
        limit=jnp.where(glimpse, 1, jnp.minimum(TURNS, max_steps - state.steps)),
    )
    point = jnp.zeros_like(state.point).at[chosen].set(found)
    image = jnp.matmul(found, rows, precision=lax.Precision.HIGHEST)
    bound = problem.certify(point, image)
    residual = corr - image
    return _Round(
        best=state.best.or_better(point, bound),
        point=point,
        residual=residual,
        wanted=(jnp.abs(residual + problem.diagonal * point) > penalty).sum(),
        steps=state.steps + turns,
        rounds=state.rounds + 1,
        promising=(settled | glimpse) & ~jnp.isnan(bound.gap),
    )


def _newton(
    problem: Problem,
    chosen: Array | slice,
    gram: Array,
    start: Array,
    *,
    tight: Array,
    limit: Array,
) -> tuple[Array, Array, Array]:
    """Active sets and signs of some features: the point, whether they repeated, the turns."""
    diagonal = problem.diagonal[chosen]
    # In units in which Q has a unit diagonal: that is all the preconditioning there is.
    unit = jnp.where(diagonal > 0, lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
    gram = gram * unit[:, None] * unit[None, :]
    corr, penalty = problem.corr[chosen] * unit, problem.penalty * unit
    loose = jnp.maximum(LOOSE * problem.penalty, tight) * unit.mean()
    tight = tight * unit.mean()
    few = 4 * jnp.finfo(corr.dtype).eps

    def unsettled(carry: tuple) -> Array:
        _, _, _, settled, turns = carry
        return ~settled & (turns < limit)

    def turn(carry: tuple) -> tuple:
        x, residual, before, _, turns = carry
        v = residual + x
        sign = jnp.where(jnp.abs(v) > penalty, jnp.sign(v), 0)
        active, settled = sign != 0, (sign == before).all()
        right = jnp.where(active, corr - penalty * sign, 0)
        x = conjugate_gradients(
            lambda x: jnp.where(active, product(gram, x), 0),
            right,
            jnp.where(active, x, 0),
            tolerance=jnp.maximum(
                jnp.where(settled, tight, loose), few * jnp.sqrt(dot(right, right))
            ),
            max_steps=PRODUCTS,
        )
        return x, corr - product(gram, x), sign, settled, turns + 1

    x = start * jnp.sqrt(diagonal)
    fresh = (jnp.zeros_like(corr), jnp.array(False), jnp.zeros((), jnp.int32))
    x, _, _, settled, turns = lax.while_loop(unsettled, turn, (x, corr - product(gram, x), *fresh))
    return x * unit, settled, turns
