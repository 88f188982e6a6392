r"""MINT's problem in :math:`w_f` alone, by an interior-point method that ends at exact zeros.

.. math:: \min_w \tfrac12 w A w^T - b \cdot w + \lambda_f \|w\|_1
    + \tfrac12 u G u^T - c \cdot u + \lambda_c \|u\|_1, \qquad u = w T

Both norms are maxima, :math:`\lambda |x| = \max_{|z| \le \lambda} z x`, so that with
:math:`D w = (w, w T)` and :math:`x^+, x^- \ge 0` the optimum is where

.. math:: b + T (c - G u) - A w = z_f + T z_c, \quad D w = x^+ - x^-, \quad
    x^+ (\lambda - z) = x^- (\lambda + z) = 0 .

Mehrotra's predictor and corrector (SIAM J. Optim. 1992; for such norms: Kim et al., SIAM Review
2009) follow the points where these products are all equal to zero. Its steps do not depend on how
the features are scaled, which first-order methods suffer from: activations of a deep layer may be
thousands of times those of a shallow one.

A step takes one solution of a system in :math:`A + T G T^T` with numbers added to the diagonals of
A and G, by the Cholesky factors of both: that product is never formed, as A would drown in it. And
each step guesses which weights are zero, and solves for the others exactly; that is what is
certified. Mostly the guess is right long before the interior points are near.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float

from jaxplain.solvers.linear import factor

# How much of the way to the nearest bound a step goes.
NEARLY = 0.995

# Refinements of the solution for weights that are not zero.
REFINEMENTS = 3


class Terms(NamedTuple):
    """The problem; the fine loss is already weighted.

    Attributes:
        coarse_gram: G.
        coarse_corr: c.
        fine_gram: A.
        fine_corr: b.
        membership: T.
        coarse_penalty: λ_c.
        fine_penalty: λ_f.
    """

    coarse_gram: Float[Array, "p p"]
    coarse_corr: Float[Array, " p"]
    fine_gram: Float[Array, "q q"]
    fine_corr: Float[Array, " q"]
    membership: Float[Array, "q p"]
    coarse_penalty: Float[Array, ""]
    fine_penalty: Float[Array, ""]

    def sums(self, w: Float[Array, " q"]) -> Float[Array, " p"]:
        """Return w T."""
        return _matmul(w, self.membership)

    def spread(self, u: Float[Array, " p"]) -> Float[Array, " q"]:
        """Return T u."""
        return _matmul(self.membership, u)

    def penalties(self) -> Float[Array, " both"]:
        """Return λ of each entry of D w."""
        return jnp.concatenate(
            [
                jnp.broadcast_to(self.fine_penalty, self.fine_corr.shape),
                jnp.broadcast_to(self.coarse_penalty, self.coarse_corr.shape),
            ]
        )

    def left(
        self, w: Float[Array, " q"], u: Float[Array, " p"]
    ) -> tuple[Float[Array, " q"], Float[Array, " p"]]:
        """Return what the two models leave, b - A w and c - G u, to the last digit."""
        return (
            residual(self.fine_corr, self.fine_gram, w),
            residual(self.coarse_corr, self.coarse_gram, u),
        )


class Point(NamedTuple):
    """Weights with exact zeros, and what proves how good they are.

    Attributes:
        fine: w.
        coarse: w T, or zero.
        multiplier: z_c.
    """

    fine: Float[Array, " q"]
    coarse: Float[Array, " p"]
    multiplier: Float[Array, " p"]


class State(NamedTuple):
    """An interior point and the best guess so far.

    Attributes:
        w: fine weights, none of which is zero.
        u: coarse weights, kept by themselves as large ones may cancel in w T.
        plus: x⁺.
        minus: x⁻.
        above: λ - z, kept by itself as it would be lost in the difference.
        below: λ + z.
        best: the point of the smallest gap.
    """

    w: Float[Array, " q"]
    u: Float[Array, " p"]
    plus: Float[Array, " both"]
    minus: Float[Array, " both"]
    above: Float[Array, " both"]
    below: Float[Array, " both"]
    best: Point


class _System(NamedTuple):
    """Cholesky factors of A + T G Tᵀ with diagonals added, and what they make of T."""

    inside: Array  # of A
    across: Array  # A⁻¹ T
    reach: Array  # Tᵀ A⁻¹ T
    root: Array  # of G, L
    middle: Array  # of I + Lᵀ reach L


def start(terms: Terms) -> State:
    """Return no weights, and multipliers in the middle of their ranges."""
    penalties = terms.penalties()
    curvature = _curvature(terms)
    slope = terms.fine_corr + terms.spread(terms.coarse_corr)
    # What the best single weight would gain is the natural size of the objective.
    gain = (slope**2 / jnp.where(curvature > 0, curvature, jnp.inf)).max()
    bounded = penalties > 0
    size = jnp.where(bounded, gain / (penalties.size * jnp.where(bounded, penalties, 1)), 1)
    room = jnp.where(bounded, penalties, 1)
    nothing = Point(
        jnp.zeros_like(terms.fine_corr),
        jnp.zeros_like(terms.coarse_corr),
        jnp.zeros_like(terms.coarse_corr),
    )
    nothing = nothing._replace(
        multiplier=_between(terms, *terms.left(nothing.fine, nothing.coarse))
    )
    return State(nothing.fine, nothing.coarse, size, size, room, room, nothing)


def step(terms: Terms, state: State, gap: Callable[[Point], Array]) -> State:
    """Take one predictor and corrector, and guess.

    Args:
        terms: the problem.
        state: where from.
        gap: of points, which says what guess is better.
    """
    w, u, plus, minus, above, below, best = state
    q = w.shape[0]
    penalties = terms.penalties()
    bounded = penalties > 0
    # Beyond this, a weight is held at zero as well as numbers can say.
    most = _curvature(terms).max() / jnp.finfo(w.dtype).eps
    give = jnp.where(bounded, jnp.minimum(1 / (plus / above + minus / below), most), 0)
    system = _factor(terms, give)
    z = jnp.where(bounded, (below - above) / 2, 0)
    fine_left, coarse_left = terms.left(w, u)
    unbalanced = fine_left - z[:q] + terms.spread(coarse_left - z[q:])
    untied = jnp.concatenate([w, u]) - plus + minus
    apart = terms.sums(w) - u

    def direction(over: Array, under: Array) -> tuple[Array, Array, Array, Array]:
        """Where the products x⁺(λ - z) and x⁻(λ + z) change by so much."""
        gone = untied - jnp.where(bounded, over / above - under / below, 0)
        pull = give * gone
        right = unbalanced - pull[:q] - terms.spread(pull[q:])
        change = _solve(terms, system, right, apart)
        dz = give * change + pull
        return change, dz, (over + plus * dz) / above, (under - minus * dz) / below

    def length(dz: Array, dplus: Array, dminus: Array) -> Array:
        """How far nothing becomes negative."""
        values = jnp.concatenate([plus, minus, above, below])
        changes = jnp.concatenate([dplus, dminus, -dz, dz])
        falling = (changes < 0) & jnp.tile(bounded, 4)
        return jnp.where(falling, values / jnp.where(falling, -changes, 1), jnp.inf).min()

    def mean(over: Array, under: Array) -> Array:
        return jnp.where(bounded, over + under, 0).sum() / jnp.maximum(2 * bounded.sum(), 1)

    over, under = plus * above, minus * below
    _, dz, dplus, dminus = direction(-over, -under)
    far = jnp.minimum(1, length(dz, dplus, dminus))
    now = mean(over, under)
    then = mean(
        (plus + far * dplus) * (above - far * dz), (minus + far * dminus) * (below + far * dz)
    )
    aim = now * (then / jnp.where(now > 0, now, 1)) ** 3
    change, dz, dplus, dminus = direction(aim - over + dplus * dz, aim - under - dminus * dz)
    far = jnp.minimum(1, NEARLY * length(dz, dplus, dminus))
    tiny = jnp.finfo(w.dtype).tiny

    def moved(value: Array, change: Array) -> Array:
        return jnp.where(bounded, jnp.maximum(value + far * change, tiny), value)

    w, u = w + far * change[:q], u + far * change[q:]
    plus, minus = moved(plus, dplus), moved(minus, dminus)
    above, below = moved(above, -dz), moved(below, dz)
    found = _guess(terms, system, w, u, above, below)
    pair = Point(*(jnp.stack(each) for each in zip(found, best, strict=True)))
    new, old = jax.vmap(gap)(pair)
    best = Point(*(jnp.where(new < old, *each) for each in pair))
    return State(w, u, plus, minus, above, below, best)


def _guess(terms: Terms, system: _System, w: Array, u: Array, above: Array, below: Array) -> Point:
    """Return the minimiser for the signs that an interior point suggests.

    As in Newton's method on the optimality conditions, a weight x is taken for zero where
    the size of z + κ x is at most λ, with κ the curvature.
    """
    q = w.shape[0]
    whole, curvature = _curvature(terms), jnp.diagonal(terms.fine_gram)
    curvature = jnp.where(curvature > 0, curvature, whole)
    reach = jnp.diagonal(system.reach)
    stiff = jnp.diagonal(terms.coarse_gram) + 1 / jnp.where(reach > 0, reach, jnp.inf)
    pull = jnp.concatenate([curvature, stiff]) * jnp.concatenate([w, u])
    free = terms.penalties() == 0
    sign = jnp.where(pull > above, 1, jnp.where(-pull > below, -1, 0)).astype(w.dtype)
    sign = jnp.where(free, 0, sign)
    used = (sign != 0) | free & (jnp.concatenate([whole, stiff]) > 0)
    members = terms.sums(used[:q].astype(w.dtype))
    # A weight alone in a coarse superpixel that has none has none.
    alone = ~used[q:] & (members < 1.5)
    fine = used[:q] & (terms.spread(jnp.where(alone, 1.0, 0.0)) < 0.5)
    members = terms.sums(fine.astype(w.dtype))
    coarse = used[q:] & (members > 0)
    tied = ~coarse & (members > 0)

    t = jnp.where(fine[:, None], terms.membership, 0)
    gram = jnp.where(fine[:, None] & fine[None], terms.fine_gram, 0)
    inside = factor(gram + jnp.diag(jnp.where(fine, 0, whole.max()))).lower
    across = cho_solve((inside, True), t)
    reach = _matmul(t.T, across)
    coarse_gram = jnp.where(coarse[:, None] & coarse[None], terms.coarse_gram, 0)
    root = factor(coarse_gram + jnp.diag(jnp.where(coarse, 0.0, 1.0))).lower
    middle = _matmul(root.T, _matmul(reach, root)) + jnp.diag(jnp.where(tied, 0.0, 1.0))
    middle = factor(middle).lower

    # A x - T η = b - λ_f s with η what is left of c - λ_c s - G u; u = x T, zero where there is no
    # coarse weight, and η free there.
    right = jnp.where(fine, terms.fine_corr - terms.fine_penalty * sign[:q], 0)
    push = jnp.where(coarse, terms.coarse_corr - terms.coarse_penalty * sign[q:], 0)
    x, u, left = jnp.zeros_like(w), jnp.zeros_like(u), push

    def refine(_: Any, values: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, u, left = values
        apart = residual(u, t.T, x)
        off = jnp.where(coarse, residual(push, coarse_gram, u) - left, 0)
        short = jnp.where(fine, residual(right, gram, x) + _matmul(t, left + off), 0)
        first = cho_solve((inside, True), short)
        held = _matmul(root.T, _matmul(first, t) - apart)
        held = cho_solve((middle, True), held)
        pulled = _matmul(root, held)
        du = solve_triangular(root, held, lower=True, trans=1)
        return (
            jnp.where(fine, x + first - _matmul(across, pulled), 0),
            jnp.where(coarse, u + du, 0),
            left + off - pulled,
        )

    x, u, left = lax.fori_loop(0, REFINEMENTS, refine, (x, u, left))
    fine_left, coarse_left = terms.left(x, u)
    multiplier = jnp.where(
        coarse,
        terms.coarse_penalty * sign[q:],
        jnp.where(tied, coarse_left - left, _between(terms, fine_left, coarse_left)),
    )
    return Point(x, u, multiplier)


def residual(
    right: Float[Array, " n"], matrix: Float[Array, "n m"], x: Float[Array, " m"]
) -> Float[Array, " n"]:
    """Return b - M x as if with twice the digits.

    Numbers are cut into halves, whose products are exact, and the sums of these carry what rounding
    takes away (Knuth's two-sum).

    Example:
        >>> small = residual(jnp.ones(1), jnp.array([[1.0, 1e-8]]), jnp.ones(2))
        >>> float(small[0])
        -9.99999993922529e-09
    """
    products = [part * half[None] for part in _halves(matrix) for half in _halves(-x)]
    terms = jnp.concatenate([right[:, None], *products], 1)

    def add(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        total = one[0] + other[0]
        back = total - one[0]
        lost = (one[0] - (total - back)) + (other[0] - back)
        return total, one[1] + other[1] + lost

    zero = jnp.zeros((), terms.dtype)
    total, lost = lax.reduce((terms, jnp.zeros_like(terms)), (zero, zero), add, (1,))
    return total + lost


def _halves(x: Array) -> tuple[Array, Array]:
    """Return numbers of half the digits whose sum is x."""
    if x.dtype.itemsize < 4:
        return x, jnp.zeros_like(x)
    bits, kind = (12, jnp.uint32) if x.dtype == jnp.float32 else (27, jnp.uint64)
    mask = ~kind(2**bits - 1)
    large = lax.bitcast_convert_type(lax.bitcast_convert_type(x, kind) & mask, x.dtype)
    return large, x - large


def _curvature(terms: Terms) -> Array:
    """Return the diagonal of A + T G Tᵀ."""
    return jnp.diagonal(terms.fine_gram) + terms.spread(jnp.diagonal(terms.coarse_gram))


def _between(terms: Terms, fine_left: Array, coarse_left: Array) -> Array:
    """Return the multipliers z_c for which b + T (c - G u - z_c) - A w is nearest to zero."""
    members = terms.membership > 0
    slope = fine_left + terms.spread(coarse_left)
    most = jnp.where(members, slope[:, None], -jnp.inf).max(0)
    least = jnp.where(members, slope[:, None], jnp.inf).min(0)
    middle = jnp.where(members.any(0), (most + least) / 2, 0)
    return jnp.clip(middle, -terms.coarse_penalty, terms.coarse_penalty)


def _factor(terms: Terms, give: Array) -> _System:
    q = terms.fine_corr.shape[0]
    inside = factor(terms.fine_gram + jnp.diag(give[:q])).lower
    across = cho_solve((inside, True), terms.membership)
    reach = _matmul(terms.membership.T, across)
    root = factor(terms.coarse_gram + jnp.diag(give[q:])).lower
    middle = _matmul(root.T, _matmul(reach, root)) + jnp.eye(root.shape[0], dtype=root.dtype)
    return _System(inside, across, reach, root, factor(middle).lower)


def _solve(terms: Terms, system: _System, right: Array, apart: Array) -> Array:
    """Return dw and du with A dw + T G du = right and du = dw T + apart."""
    first = cho_solve((system.inside, True), right)
    held = _matmul(system.root.T, terms.sums(first) + apart)
    held = cho_solve((system.middle, True), held)
    dw = first - _matmul(system.across, _matmul(system.root, held))
    du = solve_triangular(system.root, held, lower=True, trans=1)
    return jnp.concatenate([dw, du])


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
