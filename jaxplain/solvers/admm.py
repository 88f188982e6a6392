r"""Alternating direction method of multipliers: CHIP's lasso and MINT's two scales.

`lasso` minimises :math:`\tfrac12 w^T Q w - q \cdot w + \lambda \|w\|_1` by eqs. (14)–(16) of CHIP
(Cui, Wang and Wang, arXiv:1902.02497); the paper's q, the scaled dual variable, is `dual` here.
`two_scale`, which has a file of its own, is MINT's algorithm. Both return the split variable, which
has exact zeros, and certify it with a duality gap.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxplain.solvers.implicit import differentiable, lasso_conditions
from jaxplain.solvers.loop import (
    Certificate,
    Run,
    Solution,
    all_finite,
    default_tolerance,
    iterate,
)
from jaxplain.solvers.prox import soft_threshold
from jaxplain.solvers.quadratic import (
    Anchor,
    anchor_factor,
    check_problem,
    each,
    factor,
    find_anchor,
    inverse,
    penalty_certificate,
    product,
    refuse,
    with_ridge,
)
from jaxplain.solvers.two_scale import TwoScale, two_scale

__all__ = ["TwoScale", "lasso", "two_scale"]

# Iterations between certificates: each costs a product with Q beside the one an iteration needs.
STRIDE = 5


class _Split(NamedTuple):
    """The split variable m and the scaled dual, started at zero."""

    split: Array
    dual: Array


class _Update(NamedTuple):
    """How (14) is solved: by the inverse of Q + ρI, or by Q's eigenvectors and eigenvalues."""

    matrix: Array
    values: Array


def lasso(
    gram: Float[Array, "*problems d d"],
    corr: Float[Array, "*#batch d"],
    penalty: float | Float[Array, "*#batch"],
    *,
    energy: float | Float[Array, "*#batch"] | None = None,
    rho: float | Float[Array, "*#batch"] | None = None,
    relaxation: float = 1.7,
    balance: bool = False,
    tolerance: float | None = None,
    max_steps: int = 10_000,
    chunk: int | None = None,
) -> Solution:
    r"""Minimises ½ wᵀQw − q·w + λ‖w‖₁, for one problem or for many.

    Q + ρI is factored once (Cholesky). If that fails, a tiny ridge is added, which amounts to a
    slightly larger ρ and leaves the solution what it is; `Solution.ridge` tells it. If it fails
    again, Q is not positive semidefinite: the answer is zero, not converged, the gap infinite.

    Args:
        gram: Q, positive semidefinite; (d, d) shared by all problems or (problems, d, d).
        corr: q, (d,) or (problems, d).
        penalty: λ > 0, one for all or one a problem. Zero is solved but cannot be certified.
        energy: Σ y² (weighted), as `Statistics.energy` has it. It makes the certificate cheaper:
            without it, Q is factored a second time.
        rho: ρ > 0. A larger ρ suits sparser solutions; the default is the mean diagonal of Q times
            10 √(λ/‖q‖∞), between 0.3 and 10, the mean over problems when they share Q.
        relaxation: over-relaxation of w, in (0, 2); 1 is the paper's iteration.
        balance: adapt ρ so that primal and dual residuals stay within a factor of ten (Boyd et al.
            2011, eq. 3.13). Q is then eigendecomposed, so that a new ρ costs nothing.
        tolerance: relative gap that counts as converged; None is ε^⅔ of the dtype. Relative to
            |q·w| + ½ wᵀQw, the part of the objective that the solution explains.
        max_steps: limit on the iterations of each problem.
        chunk: problems solved side by side, which bounds the memory; None is 96 with a shared
            Gram matrix; with one each it is 1 on a CPU and 64 elsewhere.

    Returns:
        Solution with `value` like `corr`, exact zeros included; `gap` bounds the true
        suboptimality; `value` is differentiable in `gram`, `corr` and `penalty`.

    Raises:
        ValueError: if shapes do not fit, or a plain number is outside its range.

    >>> solution = lasso(jnp.eye(3), jnp.array([3.0, -1.5, 0.5]), 1.0)
    >>> [round(float(x), 2) for x in solution.value], bool(solution.converged)
    ([2.0, -0.5, 0.0], True)
    >>> round(float(jax.grad(lambda t: lasso(jnp.eye(3), jnp.ones(3), t).value.sum())(0.2)), 3)
    -3.0
    """
    refuse(penalty=(penalty, 0, None), rho=(rho, None, None), relaxation=(relaxation, None, 2))
    refuse(max_steps=(max_steps, 0, None))
    check_problem(gram, corr, penalty=penalty, energy=energy)
    if rho is not None and jnp.shape(rho) not in ((), gram.shape[:-2]):
        raise ValueError(f"rho must be a scalar or {gram.shape[:-2]}, got {jnp.shape(rho)}")
    if tolerance is None:
        tolerance = default_tolerance(corr.dtype)
    return _lasso(
        gram,
        corr,
        penalty,
        energy,
        rho,
        relaxation,
        tolerance,
        balance=balance,
        max_steps=max_steps,
        chunk=chunk,
    )


@functools.partial(jax.jit, static_argnames=("balance", "chunk"))
def _lasso(
    gram: Array,
    corr: Array,
    penalty: Array,
    energy: Array | None,
    rho: Array | None,
    relaxation: Array,
    tolerance: Array,
    *,
    balance: bool,
    max_steps: Array,
    chunk: int | None,
) -> Solution:
    single = corr.ndim == 1
    if single:
        corr, gram = corr[None], gram if gram.ndim == 2 else gram[None]
    count, dtype = corr.shape[0], corr.dtype
    penalty = jnp.broadcast_to(jnp.asarray(penalty, dtype), (count,))
    energies = None if energy is None else jnp.broadcast_to(jnp.asarray(energy, dtype), (count,))

    def solve(gram: Array, corr: Array, penalty: Array) -> Solution:
        # What depends on Q alone is done once if all problems share it.
        prepare = functools.partial(_prepare, balance=balance, anchored=energies is not None)
        sparsity = jnp.sqrt(penalty / jnp.maximum(jnp.abs(corr).max(axis=-1), penalty))
        boost = jnp.clip(jnp.where(penalty > 0, 10 * sparsity, 1), 0.3, 10)
        shared = None
        if gram.ndim == 2:
            common = _choose_rho(gram, boost.mean()) if rho is None else jnp.asarray(rho, dtype)
            shared = (common, *prepare(gram, common))
            rest = (corr, penalty, energies)
        else:
            given = None if rho is None else jnp.broadcast_to(jnp.asarray(rho, dtype), (count,))
            rest = (corr, penalty, energies, boost, given)

        def one(gram: Array, corr: Array, penalty: Array, energy: Array | None, *own: Any):
            if shared is None:
                boost, given = own
                size = _choose_rho(gram, boost) if given is None else given
                update, ridge, lower = prepare(gram, size)
            else:
                size, update, ridge, lower = shared
            start = size + ridge
            if energy is None:
                assert lower is not None
                anchor = find_anchor(gram, corr, lower)
            else:
                anchor = Anchor(corr, energy, jnp.zeros((), dtype))
            loop = _balanced if balance else _fixed
            run = loop(gram, corr, penalty, anchor, update, start, relaxation, tolerance, max_steps)
            value = run.state[0].split
            return Solution(value, run.converged, run.steps, run.gap, ridge)

        return each(one, gram, rest, chunk)

    solution = differentiable(solve, lasso_conditions, (gram, corr, penalty), jnp.zeros_like(corr))
    return jax.tree.map(lambda x: x[0], solution) if single else solution


def _choose_rho(gram: Array, boost: Array) -> Array:
    """The mean diagonal of Q, which sets the scale, times what sparsity suggests."""
    size = jnp.diagonal(gram).mean()
    return jnp.where(size > 0, size, 1) * boost


def _prepare(
    gram: Array, rho: Array, *, balance: bool, anchored: bool
) -> tuple[_Update, Array, Array | None]:
    """What (14) and the anchor need of Q: the update, the ridge it took, the anchor's factor."""
    lower = None if anchored else anchor_factor(gram)
    if balance:
        values, vectors = jnp.linalg.eigh(gram)
        return _Update(vectors, jnp.maximum(values, 0)), jnp.zeros((), gram.dtype), lower
    found = factor(with_ridge(gram, rho))
    # The inverse, not the factor, is applied: one product instead of two triangular solves, which
    # no device does well.
    return _Update(inverse(found.lower), jnp.zeros((0,), gram.dtype)), found.ridge, lower


def _fixed(
    gram: Array,
    corr: Array,
    penalty: Array,
    anchor: Anchor,
    update: _Update,
    rho: Array,
    relaxation: Array,
    tolerance: Array,
    max_steps: Array,
) -> Run:
    """CHIP's iteration with one ρ."""

    def step(state: tuple[_Split]) -> tuple[_Split]:
        m, dual = state[0]
        w = product(update.matrix, corr + rho * (m + dual))  # (14)
        w = relaxation * w + (1 - relaxation) * m
        m = soft_threshold(w - dual, penalty / rho)  # (15)
        dual = dual - (w - m)  # (16)
        return (_Split(m, dual),)

    return _run(step, (_zero(corr),), gram, corr, penalty, anchor, update, tolerance, max_steps)


def _balanced(
    gram: Array,
    corr: Array,
    penalty: Array,
    anchor: Anchor,
    update: _Update,
    rho: Array,
    relaxation: Array,
    tolerance: Array,
    max_steps: Array,
) -> Run:
    """The same with a ρ that keeps the two residuals within a factor of ten of each other."""

    def step(state: tuple[_Split, Array, Array]) -> tuple[_Split, Array, Array]:
        (before, dual), rho, count = state
        along = jnp.matmul(
            corr + rho * (before + dual), update.matrix, precision=lax.Precision.HIGHEST
        )
        w = product(update.matrix, along / (update.values + rho))  # (14)
        w = relaxation * w + (1 - relaxation) * before
        m = soft_threshold(w - dual, penalty / rho)  # (15)
        dual = dual - (w - m)  # (16)
        primal_residual = jnp.linalg.norm(w - m)
        dual_residual = rho * jnp.linalg.norm(m - before)
        # Every tenth step, and ever less, because a ρ that never settles need not converge.
        due = (count % 10 == 9) & (count < 1000)
        grow = jnp.where(primal_residual > 10 * dual_residual, 2.0, 1.0)
        shrink = jnp.where(dual_residual > 10 * primal_residual, 0.5, 1.0)
        change = jnp.where(due, grow * shrink, 1.0).astype(rho.dtype)
        # The multiplier ρ · dual is what must not jump.
        return _Split(m, dual / change), rho * change, count + 1

    start = (_zero(corr), rho, jnp.zeros((), jnp.int32))
    return _run(step, start, gram, corr, penalty, anchor, update, tolerance, max_steps)


def _run(step, start, gram, corr, penalty, anchor, update, tolerance, max_steps) -> Run:
    largest = jnp.diagonal(gram).max()
    usable = all_finite(update, 0)

    def certify(state: tuple) -> Certificate:
        m = state[0].split
        image = product(gram, m)
        bound = penalty_certificate(m, image, corr - image, corr, penalty, largest, anchor)
        # Without a factor there is nothing to iterate with, and no proof that Q is semidefinite.
        return bound._replace(gap=jnp.where(usable, bound.gap, jnp.nan))

    return iterate(step, certify, start, tolerance=tolerance, max_steps=max_steps, stride=STRIDE)


def _zero(corr: Array) -> _Split:
    return _Split(jnp.zeros_like(corr), jnp.zeros_like(corr))
