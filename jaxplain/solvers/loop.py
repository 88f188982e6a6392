"""The one loop behind every solver: step limit, tolerance, NaN stop, freezing problem by problem.

A solver is a pure `step` over a state and a `certify` that bounds how far a state is from optimal.
`iterate` drives many problems side by side in one `lax.while_loop`: a problem that has reached its
tolerance, or broken down, keeps its state bit for bit while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

State = TypeVar("State")


class Solution(NamedTuple):
    """What every solver answers: a value and the proof of how good it is.

    Attributes:
        value: the solution, an array or a NamedTuple of arrays with leading dimensions `batch`.
        converged: whether the gap reached the tolerance, one a problem. Never true by default: a
            problem that ran out of steps or met a NaN says False.
        steps: iterations taken, one a problem.
        gap: an upper bound on objective(value) − optimum, in units of the objective, one a problem;
            `inf` where nothing could be certified.
        ridge: what had to be added to the diagonal before a factorisation succeeded, mostly 0.
            It never changes the problem that is solved (see `admm.lasso`), only how fast.
    """

    value: Any
    converged: Bool[Array, "*batch"]
    steps: Int[Array, "*batch"]
    gap: Float[Array, "*batch"]
    ridge: Float[Array, "*batch"] | float = 0.0


class Certificate(NamedTuple):
    """A bound on the suboptimality, and the natural size of the objective to measure it by.

    Attributes:
        gap: bound on objective − optimum, one a problem.
        scale: the problem has converged when gap ≤ tolerance · scale.
    """

    gap: Float[Array, "*batch"]
    scale: Float[Array, "*batch"]


class Run(NamedTuple):
    """The end of a loop: the last good state of every problem and its certificate."""

    state: Any
    converged: Bool[Array, "*batch"]
    steps: Int[Array, "*batch"]
    gap: Float[Array, "*batch"]


def default_tolerance(dtype: Any) -> float:
    """The relative gap asked for when the caller names none: ε^⅔, 3.7e-11 in float64.

    >>> round(default_tolerance(jnp.float32), 6)
    2.4e-05
    """
    return float(jnp.finfo(dtype).eps) ** (2 / 3)


def choose(keep: Bool[Array, "*batch"], new: State, old: State) -> State:
    """Takes problem by problem from `new` where `keep` is true, from `old` elsewhere.

    >>> choose(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(keep.reshape(keep.shape + (1,) * (a.ndim - keep.ndim)), a, b)

    return jax.tree.map(pick, new, old)


def all_finite(state: Any, batch_ndim: int) -> Bool[Array, "*batch"]:
    """Whether every floating number of a problem's state is finite, one answer a problem.

    >>> all_finite({"x": jnp.array([[1.0, jnp.nan], [1.0, 2.0]])}, 1).tolist()
    [False, True]
    """
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    checks = [jnp.isfinite(x).all(axis=tuple(range(batch_ndim, x.ndim))) for x in leaves]
    return jnp.stack(checks).all(axis=0)


def closed(bound: Certificate, tolerance: float | Float[Array, ""]) -> Bool[Array, "*batch"]:
    """Whether the gap has reached the tolerance; NaN has not, nor infinity of whatever.

    >>> closed(Certificate(jnp.array([0.1, jnp.nan]), jnp.array([2.0, 2.0])), 0.1).tolist()
    [True, False]
    """
    return (bound.gap <= tolerance * bound.scale) & jnp.isfinite(bound.gap)


def iterate(
    step: Callable[[State], State],
    certify: Callable[[State], Certificate],
    state: State,
    *,
    tolerance: float | Float[Array, ""],
    max_steps: int | Int[Array, ""],
    stride: int = 1,
) -> Run:
    """Steps every problem until its certificate holds, the step limit is reached, or a NaN appears.

    Args:
        step: advances all problems by one iteration.
        certify: bounds the suboptimality of a state. `gap` may be `inf` while nothing is known yet;
            NaN means breakdown.
        state: pytree whose leaves all start with the dimensions `batch`, those of the certificate.
        tolerance: relative gap at which a problem counts as converged.
        max_steps: limit on the iterations of each problem, rounded up to a whole stride.
        stride: iterations between two certificates, for solvers whose certificate costs a product.

    Returns:
        The run. A problem that breaks down keeps its last state whose numbers were all finite,
        with that state's gap; if even the first state has no certificate, the gap is `inf`.
        Converged problems never move again, whatever the others do.

    Raises:
        ValueError: if `max_steps` is negative or `stride` is not positive.

    >>> half = lambda x: x / 2
    >>> size = lambda x: Certificate(jnp.abs(x), jnp.ones_like(x))
    >>> run = iterate(half, size, jnp.array([1.0, 4.0, jnp.nan]), tolerance=0.3, max_steps=50)
    >>> run.state.tolist(), run.steps.tolist(), run.converged.tolist()
    ([0.25, 0.25, nan], [2, 4, 0], [True, True, False])
    """
    if isinstance(max_steps, int) and max_steps < 0:
        raise ValueError(f"max_steps must be at least 0, got {max_steps}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")

    first = certify(state)
    batch = first.gap.shape
    broken = ~all_finite(state, len(batch)) | jnp.isnan(first.gap)
    gap = jnp.where(broken, jnp.inf, first.gap)
    converged = ~broken & closed(first, tolerance)
    steps = jnp.zeros(batch, jnp.int32)

    def unfinished(carry: tuple) -> Array:
        _, _, _, active, _ = carry
        return active.any()

    def advance(carry: tuple) -> tuple:
        state, gap, converged, active, steps = carry
        # A fixed trip count stays a plain scan under vmap, where a computed one would not.
        new = step(state) if stride == 1 else lax.fori_loop(0, stride, lambda _, s: step(s), state)
        found = certify(new)
        good = all_finite(new, len(batch)) & ~jnp.isnan(found.gap)
        moved = active & good
        state = choose(moved, new, state)
        gap = jnp.where(moved, found.gap, gap)
        steps = steps + jnp.where(active, stride, 0).astype(steps.dtype)
        arrived = moved & closed(found, tolerance)
        active = moved & ~arrived & (steps < max_steps)
        return state, gap, converged | arrived, active, steps

    active = ~broken & ~converged & (max_steps > 0)
    state, gap, converged, _, steps = lax.while_loop(
        unfinished, advance, (state, gap, converged, active, steps)
    )
    return Run(state, converged, steps, gap)
