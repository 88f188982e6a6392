"""The mask optimiser: any Optax transform, a projection after each step, a history, one `lax.scan`.

Masks, inverted images and perturbations are found by a fixed number of steps down a non-convex
objective. There is no gap to certify; what is certified is stationarity, and that no number broke.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxplain.solvers.loop import Solution, all_finite, choose


class Descent(NamedTuple):
    """The end of a descent, and the way there.

    Attributes:
        solution: `value` is the last iterate, projected. `gap` is ‖x − P(x − ∇f(x))‖₂ there, which
            is zero at a stationary point of the constrained problem; `inf` after a breakdown.
            `steps` counts the steps that were taken, `converged` says gap ≤ tolerance.
        history: the objective before each step; constant after a breakdown.
    """

    solution: Solution
    history: Float[Array, " steps"]


def descend(
    objective: Callable[[Any, Array], Any],
    initial: Any,
    *,
    steps: int,
    learning_rate: float | optax.Schedule = 0.1,
    optimiser: optax.GradientTransformation | None = None,
    project: Callable[[Any], Any] | None = None,
    tolerance: float = 1e-3,
    has_gradient: bool = False,
) -> Descent:
    """Minimises an objective by a fixed number of projected steps.

    A step whose gradient or result is not finite is not taken and ends the descent there: the
    value stays the last good one, `converged` is False and the gap is infinite.

    Args:
        objective: (value, step) -> scalar. `step` counts from 0, for schedules of the objective's
            own and for randomness, as in `jax.random.fold_in(key, step)`.
        initial: pytree of floating arrays; it is projected before the first step.
        steps: how many steps.
        learning_rate: of Adam, a number or an Optax schedule.
        optimiser: any Optax transform instead of Adam.
        project: maps a value onto the constraint set, such as
            `lambda mask: jnp.clip(mask, 0.0, 1.0)`; None leaves it free.
        tolerance: the gap that counts as converged.
        has_gradient: the objective returns (scalar, gradient) itself, for those who know a faster
            way to it than `jax.grad`.

    Returns:
        The descent. jit, vmap and differentiation pass through it.

    Raises:
        ValueError: if `steps` is negative, or both `optimiser` and a `learning_rate` are given.
        TypeError: if `initial` has leaves that are not floating.

    >>> def distance(x, step):
    ...     return jnp.sum((x - jnp.array([2.0, 0.25])) ** 2)
    >>> box = lambda x: jnp.clip(x, 0.0, 1.0)
    >>> found = descend(distance, jnp.zeros(2), steps=200, project=box)
    >>> [round(float(x), 2) for x in found.solution.value], bool(found.solution.converged)
    ([1.0, 0.25], True)
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    if optimiser is not None and learning_rate != 0.1:
        raise ValueError(
            "give learning_rate or optimiser, not both: the optimiser has its own rate"
        )
    for leaf in jax.tree.leaves(initial):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"initial must be floating, got a leaf of {jnp.result_type(leaf)}")
    transform = optax.adam(learning_rate) if optimiser is None else optimiser
    project = project or (lambda x: x)
    evaluate = objective if has_gradient else jax.value_and_grad(objective)

    def step(carry: tuple, index: Array) -> tuple[tuple, Array]:
        value, memory, running, taken, last = carry
        loss, slope = evaluate(value, index)
        change, new_memory = transform.update(slope, memory, value)
        new = project(optax.apply_updates(value, change))
        good = running & all_finite((loss, slope, new), 0)
        value, memory = choose(good, new, value), choose(good, new_memory, memory)
        last = jnp.where(good, loss, last).astype(kind)
        return (value, memory, good, taken + good, last), last

    start = project(jax.tree.map(jnp.asarray, initial))
    kind = jnp.result_type(*jax.tree.leaves(start))
    carry = (
        start,
        transform.init(start),
        all_finite(start, 0),
        jnp.zeros((), jnp.int32),
        jnp.full((), jnp.inf, kind),
    )
    (value, _, running, taken, _), history = lax.scan(step, carry, jnp.arange(steps))

    _, slope = evaluate(value, jnp.asarray(steps))
    moved = project(jax.tree.map(jnp.subtract, value, slope))
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, value, moved))
    gap = lax.stop_gradient(jnp.where(running & jnp.isfinite(gap), gap, jnp.inf))
    return Descent(Solution(value, gap <= tolerance, taken, gap, jnp.zeros_like(gap)), history)
