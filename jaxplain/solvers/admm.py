r"""The lasso, from Gram statistics: CHIP's alternating direction method, and active sets.

`lasso` minimises :math:`\tfrac12 w^T Q w - q \cdot w + \lambda \|w\|_1`. Its method "admm" is eqs.
(14)–(16) of CHIP (Cui, Wang and Wang, arXiv:1902.02497); the paper's q, the scaled dual variable,
is `dual` here. Its method "active", in a file of its own, finds the same solution several times
faster. MINT's `two_scale` has a file of its own, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxplain.solvers import active, pivots
from jaxplain.solvers.implicit import lasso_conditions
from jaxplain.solvers.linear import factor, inverse, mean_diagonal, product, with_ridge
from jaxplain.solvers.loop import (
    Certificate,
    Solution,
    all_finite,
    choose,
    default_tolerance,
    iterate,
)
from jaxplain.solvers.problems import (
    Solver,
    check_problem,
    floating,
    matrix,
    pick,
    refuse,
    rows,
    solve_all,
    withheld,
)
from jaxplain.solvers.prox import soft_threshold
from jaxplain.solvers.quadratic import find_anchor, least_squares, penalty_certificate
from jaxplain.solvers.two_scale import TwoScale, two_scale

__all__ = ["METHODS", "TwoScale", "lasso", "two_scale"]

METHODS = ("active", "admm")

# Iterations between certificates: each costs a product with Q beside the one an iteration needs.
STRIDE = 5

# Iterations that are tried when active sets have stalled.
STALL = 1000


class _State(NamedTuple):
    """The split variable m and the scaled dual, started at zero, and ρ with its age."""

    split: Array
    dual: Array
    rho: Array
    age: Array


class _Update(NamedTuple):
    """How (14) is solved: by the inverse of Q + ρI, or by Q's eigenvectors and eigenvalues.

    Attributes:
        matrix: the inverse, or the eigenvectors.
        values: the eigenvalues, if ρ may change.
        rho: the first ρ, with the ridge that the factorisation took.
        ridge: that ridge.
    """

    matrix: Array
    values: Array | None
    rho: Array
    ridge: Array


def lasso(
    gram: Float[Array, "*problems d d"],
    corr: Float[Array, "*#batch d"],
    penalty: float | Float[Array, "*#batch"],
    *,
    method: str = "active",
    energy: float | Float[Array, "*#batch"] | None = None,
    rho: float | Float[Array, "*#batch"] | None = None,
    relaxation: float | None = None,
    balance: bool = False,
    tolerance: float | None = None,
    max_steps: int = 10_000,
    chunk: int | None = None,
) -> Solution:
    r"""Minimises ½ wᵀQw − q·w + λ‖w‖₁, for one problem or for many.

    With method "admm", Q + ρI is factored once (Cholesky). If that fails, a tiny ridge is added,
    which amounts to a slightly larger ρ and leaves the solution what it is; `Solution.ridge` tells
    it. If it fails again, or a negative wᵀQw shows that Q is not positive semidefinite, the answer
    is zero, not converged, the gap infinite.

    Args:
        gram: Q, positive semidefinite, as every Σ w z zᵀ is; the certificate rests on that.
            (d, d) shared by all problems or (problems, d, d).
        corr: q, (d,) or (problems, d).
        penalty: λ ≥ 0, one for all or one a problem. The number 0 is least squares, of least norm,
            and solved as such; zeros in an array are certified by `energy` or not at all.
        method: "active", Newton steps on growing sets of features, the fastest, with slower methods
            behind it for problems that stall; or "admm", the paper's iteration, to which `rho`,
            `relaxation` and `balance` belong.
        energy: Σ y² (weighted), as `Statistics.energy` has it. It makes the certificate cheaper:
            without it, Qv = q is solved as well, by conjugate gradients.
        rho: ρ > 0. A larger ρ suits sparser solutions; the default is the mean diagonal of Q times
            10 √(λ/‖q‖∞), between 0.3 and 10, the mean over problems when they share Q.
        relaxation: over-relaxation of w, in (0, 2), 1.7 by default; 1 is the paper's iteration.
        balance: adapt ρ so that primal and dual residuals stay within a factor of ten (Boyd et al.
            2011, eq. 3.13). Q is then eigendecomposed, so that a new ρ costs nothing.
        tolerance: relative gap that counts as converged; None is ε^⅔ of the dtype. Relative to
            |q·w| + ½ wᵀQw, the part of the objective that the solution explains.
        max_steps: limit on the iterations of each problem; of "active", on the linear systems.
        chunk: problems solved side by side, which bounds the memory. None is 1 on a CPU, whose
            cache then holds the problem, and 64 elsewhere; 96 for "admm" with a shared Gram
            matrix, where wide products pay.

    Returns:
        Solution with `value` like `corr`, exact zeros included; `gap` bounds the true
        suboptimality; `value` is differentiable in `gram`, `corr` and `penalty`.

    Raises:
        ValueError: if shapes do not fit, a plain number is outside its range, `method` is unknown,
            or an option belongs to another method.

    >>> solution = lasso(jnp.eye(3), jnp.array([3.0, -1.5, 0.5]), 1.0)
    >>> [round(float(x), 2) for x in solution.value], bool(solution.converged)
    ([2.0, -0.5, 0.0], True)
    >>> round(float(jax.grad(lambda t: lasso(jnp.eye(3), jnp.ones(3), t).value.sum())(0.2)), 3)
    -3.0
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if method != "admm":
        given = {"rho": rho is not None, "relaxation": relaxation is not None, "balance": balance}
        for name, used in given.items():
            if used:
                raise ValueError(f"{name} is an option of method 'admm', got method {method!r}")
    refuse(
        penalty=(penalty, 0, None),
        rho=(rho, None, None),
        relaxation=(relaxation, None, 2),
        max_steps=(max_steps, 0, None),
        chunk=(chunk, None, None),
        energy=(energy, 0, None),
    )
    gram, corr = floating(gram, corr)
    check_problem(gram, corr, penalty=penalty, energy=energy)
    if rho is not None and jnp.shape(rho) not in ((), gram.shape[:-2]):
        raise ValueError(f"rho must be a scalar or {gram.shape[:-2]}, got {jnp.shape(rho)}")
    if chunk is None:
        apart = 1 if jax.default_backend() == "cpu" else 64
        chunk = 96 if method == "admm" and gram.ndim == 2 else apart
    solution = _lasso(
        gram,
        corr,
        penalty,
        energy,
        rho,
        1.7 if relaxation is None else relaxation,
        default_tolerance(corr.dtype) if tolerance is None else tolerance,
        max_steps,
        method="least squares" if isinstance(penalty, (int, float)) and penalty == 0 else method,
        balance=balance,
        chunk=chunk,
    )
    if energy is None:
        return solution
    # Σ y² is at least what any one feature explains of it, or the statistics are of no data.
    diagonal = jnp.broadcast_to(jnp.diagonal(gram, axis1=-2, axis2=-1), corr.shape)
    explained = (corr**2 / jnp.where(diagonal > 0, diagonal, jnp.inf)).max(-1)
    rounding = corr.shape[-1] * jnp.sqrt(jnp.finfo(corr.dtype).eps)
    return withheld(solution, jnp.asarray(energy) >= explained * (1 - rounding))


@functools.partial(jax.jit, static_argnames=("method", "balance", "chunk"))
def _lasso(
    gram: Array,
    corr: Array,
    penalty: Array,
    energy: Array | None,
    rho: Array | None,
    relaxation: Array,
    tolerance: Array,
    max_steps: Array,
    *,
    method: str,
    balance: bool,
    chunk: int,
) -> Solution:
    def prepare(gram: Array, corr: Array, penalty: Array) -> Solver:
        count, dtype = corr.shape[0], corr.dtype

        def spread(x: Array | None) -> Array | None:
            return None if x is None else jnp.broadcast_to(jnp.asarray(x, dtype), (count,))

        energies, rhos = spread(energy), spread(rho)
        diagonals = jnp.diagonal(gram, axis1=-2, axis2=-1)
        boost = 10 * jnp.sqrt(penalty / jnp.maximum(jnp.abs(corr).max(axis=-1), penalty))
        boost = jnp.clip(jnp.where(penalty > 0, boost, 1), 0.3, 10)

        def certifier(i: Array) -> Callable[[Array, Array], Certificate]:
            q, level = pick(corr, i), pick(penalty, i)
            known = None if energies is None else pick(energies, i)
            anchor = find_anchor(lambda: matrix(gram, i), q, level, known)
            largest = diagonals.max() if gram.ndim == 2 else pick(diagonals, i).max()
            return lambda w, image: penalty_certificate(
                w, image, q - image, q, level, largest, anchor
            )

        def update(i: Array) -> _Update:
            q = matrix(gram, i)
            first = mean_diagonal(q) * pick(boost, i) if rhos is None else pick(rhos, i)
            return _prepare(q, first, balance)

        if method == "least squares":
            return Solver(lambda i: least_squares(matrix(gram, i), pick(corr, i), tolerance))

        if method == "active":

            def by_active_sets(i: Array) -> Solution:
                problem = active.Problem(
                    functools.partial(rows, gram, i),
                    diagonals if gram.ndim == 2 else pick(diagonals, i),
                    pick(corr, i),
                    pick(penalty, i),
                    certifier(i),
                )
                return active.solve(problem, tolerance, max_steps)

            def finish(i: Array, start: Solution) -> Solution:
                q, c, level, certify = (
                    matrix(gram, i),
                    pick(corr, i),
                    pick(penalty, i),
                    certifier(i),
                )
                limit = jnp.minimum(max_steps, start.steps + STALL)
                iterated = _admm(
                    q, c, level, certify, update(i), relaxation, tolerance, limit, start=start
                )
                better = choose(iterated.gap < start.gap, iterated, start)
                start = better._replace(steps=iterated.steps)
                own = functools.partial(rows, gram, i)
                return pivots.finish(own, c, certify, start, tolerance, max_steps, penalty=level)

            return Solver(by_active_sets, finish)

        common = None
        if gram.ndim == 2:
            first = mean_diagonal(gram) * boost.mean() if rho is None else jnp.asarray(rho, dtype)
            common = _prepare(gram, first, balance)

        def by_admm(i: Array) -> Solution:
            prepared = update(i) if common is None else common
            q, c, level = matrix(gram, i), pick(corr, i), pick(penalty, i)
            return _admm(q, c, level, certifier(i), prepared, relaxation, tolerance, max_steps)

        return Solver(by_admm)

    return solve_all(prepare, lasso_conditions, gram, corr, penalty, chunk)


def _prepare(gram: Array, rho: Array, balance: bool) -> _Update:
    """What (14) needs of Q; done once if all problems share it."""
    if balance:
        values, vectors = jnp.linalg.eigh(gram)
        return _Update(vectors, jnp.maximum(values, 0), rho, jnp.zeros_like(rho))
    found = factor(with_ridge(gram, rho))
    # The inverse, not the factor, is applied: one product instead of two triangular solves, which
    # no device does well.
    return _Update(inverse(found.lower), None, rho + found.ridge, found.ridge)


def _admm(
    gram: Array,
    corr: Array,
    penalty: Array,
    certify: Callable[[Array, Array], Certificate],
    update: _Update,
    relaxation: Array,
    tolerance: Array,
    max_steps: Array,
    *,
    start: Solution | None = None,
) -> Solution:
    """CHIP's iteration, over-relaxed, with one ρ or a balanced one, from zero or a solution."""
    usable = all_finite((update.matrix, update.rho), 0)

    def invert(right: Array, rho: Array) -> Array:
        if update.values is None:
            return product(update.matrix, right)
        return product(update.matrix, product(update.matrix.T, right) / (update.values + rho))

    def step(state: _State) -> _State:
        before, dual, rho, age = state
        w = invert(corr + rho * (before + dual), rho)  # (14)
        w = relaxation * w + (1 - relaxation) * before
        m = soft_threshold(w - dual, penalty / rho)  # (15)
        dual = dual - (w - m)  # (16)
        if update.values is None:
            return _State(m, dual, rho, age)
        primal_residual = jnp.linalg.norm(w - m)
        dual_residual = rho * jnp.linalg.norm(m - before)
        # Every tenth step, and ever less, because a ρ that never settles need not converge.
        due = (age % 10 == 9) & (age < 1000)
        grow = jnp.where(primal_residual > 10 * dual_residual, 2.0, 1.0)
        shrink = jnp.where(dual_residual > 10 * primal_residual, 0.5, 1.0)
        change = jnp.where(due, grow * shrink, 1.0).astype(rho.dtype)
        # The multiplier ρ · dual is what must not jump.
        return _State(m, dual / change, rho * change, age + 1)

    def bound(state: _State) -> Certificate:
        found = certify(state.split, product(gram, state.split))
        # Without a factor there is nothing to iterate with, and no proof that Q is semidefinite.
        return found._replace(gap=jnp.where(usable, found.gap, jnp.nan))

    split = dual = jnp.zeros_like(corr)
    taken = jnp.zeros((), jnp.int32)
    if start is not None:
        split, taken = start.value, start.steps
        dual = -jnp.clip(corr - product(gram, split), -penalty, penalty) / update.rho
    state = _State(split, dual, update.rho, jnp.zeros((), jnp.int32))
    limit = max_steps - taken
    run = iterate(step, bound, state, tolerance=tolerance, max_steps=limit, stride=STRIDE)
    return Solution(run.state.split, run.converged, taken + run.steps, run.gap, update.ridge)
