r"""μ-Lasso for many classes at once: least squares inside an L1 ball, from Gram statistics.

.. math:: \min_W \tfrac12 \|X^T W - L^T\|_F^2 \quad \text{s.t. } \|w_j\|_1 \le \mu
    \text{ for each class } j

(Oramas et al., "Visual Explanation by Interpretation", ICLR 2019, eq. 1, with ½.) Two methods share
one signature. `spg` is the spectral projected gradient method of Birgin, Martínez and Raydan (SIAM
J. Optim. 2000) that SPGL1 uses: a Barzilai–Borwein step, a projection, a non-monotone line search,
which is exact here because the objective is quadratic. `fista` is accelerated projected gradient
(Beck and Teboulle 2009) with a step that adapts by class and adaptive restart (O'Donoghue and
Candès 2015). Both spend one product with the Gram matrix an iteration, the certificate included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxplain.solvers import pivots
from jaxplain.solvers.implicit import ball_conditions
from jaxplain.solvers.linear import dot, product
from jaxplain.solvers.loop import Certificate, Solution, choose, default_tolerance, iterate
from jaxplain.solvers.problems import (
    Solver,
    check_problem,
    floating,
    matrix,
    pick,
    refuse,
    rows,
    solve_all,
)
from jaxplain.solvers.prox import ball_threshold, soft_threshold
from jaxplain.solvers.quadratic import ball_certificate

METHODS = ("fista", "spg")

# Values that the non-monotone search looks back on, and the decrease it asks for.
MEMORY = 10
SUFFICIENT = 1e-4


def mu_lasso(
    gram: Float[Array, "*classes d d"],
    corr: Float[Array, "*#batch d"],
    radius: float | Float[Array, "*#batch"],
    *,
    nonnegative: bool = False,
    method: str = "fista",
    tolerance: float | None = None,
    max_steps: int = 10_000,
    chunk: int | None = None,
) -> Solution:
    r"""Minimises ½ wᵀQw − q·w subject to ‖w‖₁ ≤ μ, for one class or for many.

    Args:
        gram: Q, positive semidefinite; (d, d) shared by all classes or (classes, d, d).
        corr: q, (d,) or (classes, d).
        radius: μ ≥ 0, one for all or one a class.
        nonnegative: whether to require w ≥ 0 as well.
        method: "fista", which is mostly the faster, or "spg".
        tolerance: relative gap that counts as converged; None is ε^⅔ of the dtype. Relative to
            |q·w| + ½ wᵀQw, the part of the objective that the solution explains.
        max_steps: limit on the iterations of each class. Half of them are the method's; a class
            that has not converged by then is finished one feature at a time, which ends even where
            features are almost copies of each other, and costs a factorisation of Q a step.
        chunk: classes solved side by side, which bounds the memory; None is 96 with a shared Gram
            matrix; with one each it is 1 on a CPU and 64 elsewhere.

    Returns:
        Solution with `value` like `corr`, exact zeros included. `gap` bounds the true
        suboptimality, so `converged` is a proof; `value` is differentiable in `gram`, `corr` and
        `radius`.

    Raises:
        ValueError: if shapes do not fit, a plain `radius` is negative, or `method` is unknown.

    >>> solution = mu_lasso(jnp.eye(3), jnp.array([3.0, -1.0, 0.5]), 2.0)
    >>> solution.value.tolist(), bool(solution.converged)
    ([2.0, 0.0, 0.0], True)
    >>> d = jax.jacobian(lambda r: mu_lasso(jnp.eye(3), jnp.array([3.0, -2.0, 0.5]), r).value)(3.0)
    >>> [round(float(x), 3) for x in d]
    [0.5, -0.5, 0.0]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    gram, corr = floating(gram, corr)
    refuse(radius=(radius, 0, None), max_steps=(max_steps, 0, None), chunk=(chunk, None, None))
    check_problem(gram, corr, radius=radius)
    if chunk is None:
        alone = 1 if jax.default_backend() == "cpu" else 64
        chunk = 96 if gram.ndim == 2 else alone
    return _mu_lasso(
        gram,
        corr,
        radius,
        default_tolerance(corr.dtype) if tolerance is None else tolerance,
        max_steps,
        nonnegative=nonnegative,
        method=method,
        chunk=chunk,
    )


class _Spectral(NamedTuple):
    point: Array
    image: Array  # Q · point
    past: Array  # the last objective values
    length: Array  # step length
    threshold: Array  # of the last projection: a good start for the next


class _Accelerated(NamedTuple):
    point: Array
    image: Array
    ahead: Array  # where the momentum led
    ahead_image: Array
    momentum: Array
    bound: Array  # current upper bound on the curvature
    threshold: Array


# From a point and the last threshold to the nearest point of the ball and its threshold.
_Projection = Callable[[Array, Array], tuple[Array, Array]]


@functools.partial(jax.jit, static_argnames=("nonnegative", "method", "chunk"))
def _mu_lasso(
    gram: Array,
    corr: Array,
    radius: Array,
    tolerance: Array,
    max_steps: Array,
    *,
    nonnegative: bool,
    method: str,
    chunk: int,
) -> Solution:
    algorithm = {"spg": _spectral, "fista": _accelerated}[method]

    def prepare(gram: Array, corr: Array, radius: Array) -> Solver:
        diagonals = jnp.diagonal(gram, axis1=-2, axis2=-1)

        def certifier(i: Array) -> Callable[[Array, Array], Certificate]:
            target, r = pick(corr, i), pick(radius, i)
            largest = diagonals.max() if gram.ndim == 2 else pick(diagonals, i).max()
            return lambda w, image: ball_certificate(
                w, image, target, r, largest, nonnegative=nonnegative
            )

        def iterated(i: Array) -> Solution:
            q, certify = matrix(gram, i), certifier(i)

            def project(v: Array, threshold: Array) -> tuple[Array, Array]:
                return _project(v, pick(radius, i), threshold, nonnegative)

            start, step = algorithm(q, pick(corr, i), project)
            run = iterate(
                step,
                lambda state: certify(state.point, state.image),
                start,
                tolerance=tolerance,
                max_steps=max_steps - max_steps // 2,
            )
            nothing = jnp.zeros_like(run.gap)
            return Solution(run.state.point, run.converged, run.steps, run.gap, nothing)

        def finish(i: Array, start: Solution) -> Solution:
            return pivots.finish(
                functools.partial(rows, gram, i),
                pick(corr, i),
                certifier(i),
                start,
                tolerance,
                max_steps,
                radius=pick(radius, i),
                nonnegative=nonnegative,
            )

        return Solver(iterated, finish)

    return solve_all(prepare, ball_conditions, gram, corr, radius, chunk)


def _spectral(
    gram: Array, corr: Array, project: _Projection
) -> tuple[_Spectral, Callable[[_Spectral], _Spectral]]:
    """The start and the step of spectral projected gradient."""

    def step(state: _Spectral) -> _Spectral:
        point, image, past, length, threshold = state
        slope = image - corr
        trial, threshold = project(point - length * slope, threshold)
        direction = trial - point
        # From the trial's own product, not by recurrence: errors cannot add up over iterations.
        trial_image = product(gram, trial)
        bend = dot(direction, trial_image - image)
        descent = dot(slope, direction)
        value = dot(point, image) / 2 - dot(corr, point)
        full = value + descent + bend / 2 <= past.max() + SUFFICIENT * descent
        exact = jnp.clip(-descent / jnp.where(bend > 0, bend, 1), 0, 1)
        share = jnp.where(full | (bend <= 0), 1, exact)
        point = jnp.where(share < 1, point + share * direction, trial)
        image = jnp.where(share < 1, image + share * (trial_image - image), trial_image)
        value = dot(point, image) / 2 - dot(corr, point)
        # Barzilai and Borwein: s·s / s·y; along a flat direction the step may grow.
        length = jnp.where(
            bend > 0, dot(direction, direction) / jnp.where(bend > 0, bend, 1), 10 * length
        )
        return _Spectral(point, image, jnp.roll(past, 1).at[0].set(value), length, threshold)

    zero, none = jnp.zeros_like(corr), jnp.zeros((), corr.dtype)
    past = jnp.zeros((MEMORY,), corr.dtype)
    return _Spectral(zero, zero, past, 1 / _curvature(gram, corr), none), step


def _accelerated(
    gram: Array, corr: Array, project: _Projection
) -> tuple[_Accelerated, Callable[[_Accelerated], _Accelerated]]:
    """The start and the step of accelerated projected gradient."""

    def step(state: _Accelerated) -> _Accelerated:
        slope = state.ahead_image - corr
        trial, threshold = project(state.ahead - slope / state.bound, state.threshold)
        image = product(gram, trial)
        move = trial - state.ahead
        steep = dot(move, image - state.ahead_image) > state.bound * dot(move, move)
        # f(trial) − f(point) as ½ (trial − point)·(slopes' sum): no cancellation near the end.
        change = trial - state.point
        rise = dot(change, (image + state.image) / 2 - corr)
        plain = state.momentum == 1
        worse = (rise > 0) & ~plain
        turned = dot(state.ahead - trial, change) > 0

        momentum = jnp.where(turned, 1, (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2)
        push = jnp.where(turned, 0, (state.momentum - 1) / momentum)
        moved = _Accelerated(
            trial,
            image,
            trial + push * change,
            image + push * (image - state.image),
            momentum,
            state.bound * 0.95,
            threshold,
        )
        restarted = state._replace(
            ahead=state.point,
            ahead_image=state.image,
            momentum=jnp.ones_like(momentum),
            threshold=threshold,
        )
        cautious = state._replace(bound=state.bound * 1.5, threshold=threshold)
        return choose(steep, cautious, choose(worse, restarted, moved))

    zero, one = jnp.zeros_like(corr), jnp.ones((), corr.dtype)
    bound = _curvature(gram, corr)
    return _Accelerated(zero, zero, zero, zero, one, bound, jnp.zeros((), corr.dtype)), step


def _curvature(gram: Array, corr: Array) -> Array:
    """Curvature along the first step, the steepest descent from zero; 1 where that is flat."""
    size, bend = dot(corr, corr), dot(corr, product(gram, corr))
    usable = (size > 0) & (bend > 0)
    return jnp.where(usable, bend / jnp.where(usable, size, 1), 1)


def _project(
    v: Array, radius: Array, threshold: Array, nonnegative: bool | Bool[Array, ""]
) -> tuple[Array, Array]:
    """Onto the ball or its non-negative part; the threshold found last time is where to look."""
    if nonnegative:
        v = jnp.maximum(v, 0)
    threshold = ball_threshold(jnp.abs(v), radius, start=threshold)
    point = soft_threshold(v, threshold)
    # A point from far away loses digits in v − θ; what that leaves outside is pulled back inside.
    size = jnp.abs(point).sum()
    return point * jnp.where(size > radius, radius / jnp.where(size > 0, size, 1), 1), threshold
