"""What solvers of many problems share: bad arguments refused by name, and chunks of problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxplain.solvers.implicit import differentiable
from jaxplain.solvers.loop import Solution


def refuse(**numbers: tuple) -> None:
    """Refuses plain numbers outside a range; arrays may be traced and are left alone.

    Args:
        **numbers: name = (value, low, high): value ≥ 0 if `low` is 0, > 0 if it is None; value <
            high unless that is None.

    Raises:
        ValueError: naming the argument, its value and the range.

    >>> refuse(rho=(1.0, None, None))
    >>> refuse(rho=(0.0, None, None))
    Traceback (most recent call last):
    ValueError: rho must be positive, got 0.0
    """
    for name, (value, low, high) in numbers.items():
        if not isinstance(value, (int, float, np.integer, np.floating)):
            continue
        if not np.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        if value < 0 or (low is None and value <= 0) or (high is not None and value >= high):
            expected = "at least 0" if low == 0 else "positive"
            expected += "" if high is None else f" and below {high}"
            raise ValueError(f"{name} must be {expected}, got {value}")


def floating(*arrays: Any) -> tuple[Array, ...]:
    """Arrays of one floating type, which JAX may have made narrower than NumPy's.

    >>> [array.dtype.name for array in floating([1, 2], jnp.ones(2))]
    ['float32', 'float32']
    """
    arrays = tuple(jnp.asarray(array) for array in arrays)
    dtype = jnp.result_type(*arrays, float)
    return tuple(array.astype(dtype) for array in arrays)


def check_problem(gram: Array, corr: Array, **others: Any) -> None:
    """Refuses shapes that do not fit each other, by name.

    Args:
        gram: should be (d, d) or (problems, d, d).
        corr: should be (d,) or (problems, d).
        **others: scalars or one number a problem; None is skipped.

    Raises:
        ValueError: naming the argument, its shape and the expected one.

    >>> check_problem(jnp.eye(2), jnp.ones((5, 2)), penalty=jnp.ones(5))
    """
    if corr.ndim not in (1, 2):
        raise ValueError(f"corr must be (d,) or (problems, d), got {corr.shape}; vmap the rest")
    if corr.shape[-1] == 0:
        raise ValueError(f"corr is {corr.shape}: at least one feature is needed")
    square = (corr.shape[-1],) * 2
    allowed = dict.fromkeys((square, (*corr.shape[:-1], *square)))
    if gram.shape not in allowed:
        expected = " or ".join(str(shape) for shape in allowed)
        raise ValueError(f"gram must be {expected} for corr {corr.shape}, got {gram.shape}")
    for name, value in others.items():
        if value is not None and jnp.shape(value) not in ((), corr.shape[:-1]):
            raise ValueError(
                f"{name} must be a scalar or {corr.shape[:-1]} for corr {corr.shape}, "
                f"got {jnp.shape(value)}"
            )


class Solver(NamedTuple):
    """Solves the problem of an index.

    Attributes:
        solve: from an index to a solution; problems are solved side by side.
        finish: from an index and a solution that has not converged to a better one; these are rare
            and hard, and are solved one after the other.
    """

    solve: Callable[[Array], Solution]
    finish: Callable[[Array, Solution], Solution] | None = None


def solve_all(
    prepare: Callable[..., Solver],
    conditions: Callable[..., Array],
    gram: Float[Array, "*problems d d"],
    corr: Float[Array, "*#batch d"],
    level: float | Float[Array, "*#batch"],
    chunk: int,
) -> Solution:
    """Solves one problem or many so that their values can be differentiated.

    Args:
        prepare: from (gram, corr, level), with a leading axis of problems in the last two, to what
            solves the problem of an index. What depends on a shared Gram matrix is done here.
        conditions: (value, gram, corr, level) -> zeros, see `implicit.differentiable`.
        gram: one Gram matrix for all, or one each.
        corr: (d,) or (problems, d).
        level: the penalty or the radius, one for all or one a problem.
        chunk: problems solved side by side.
    """
    single = corr.ndim == 1
    if single:
        corr = corr[None]
    count = corr.shape[0]
    if count == 0:
        none = jnp.zeros(0, corr.dtype)
        return Solution(corr, jnp.zeros(0, bool), jnp.zeros(0, jnp.int32), none, none)
    level = jnp.broadcast_to(jnp.asarray(level, corr.dtype), (count,))

    def solve(gram: Array, corr: Array, level: Array) -> Solution:
        solver = prepare(gram, corr, level)
        found = each(solver.solve, count, chunk)
        finish = solver.finish
        if finish is None:
            return found

        def last(i: Array, found: Solution) -> Solution:
            so_far = jax.tree.map(lambda x: pick(x, i), found)
            better = lax.cond(so_far.converged, lambda s: s, lambda s: finish(i, s), so_far)
            return jax.tree.map(lambda x, new: x.at[i].set(new), found, better)

        return lax.fori_loop(0, count, last, found)

    solution = differentiable(solve, conditions, (gram, corr, level), jnp.zeros_like(corr))
    solution = withheld(solution, level >= 0)
    return jax.tree.map(lambda x: x[0], solution) if single else solution


def withheld(solution: Solution, sound: Bool[Array, "*batch"]) -> Solution:
    """The solution, with nothing certified where a problem is not sound.

    >>> proof = Solution(jnp.ones(2), jnp.array(True), jnp.array(3), jnp.array(0.0))
    >>> withheld(proof, jnp.array(False)).gap.tolist()
    inf
    """
    return solution._replace(
        converged=solution.converged & sound, gap=jnp.where(sound, solution.gap, jnp.inf)
    )


def pick(values: Array, i: Int[Array, ""]) -> Array:
    """Problem i's part of an array of one row a problem, cut out where it lies.

    >>> pick(jnp.arange(3.0), jnp.array(1)).tolist()
    1.0
    """
    return lax.dynamic_index_in_dim(values, i, keepdims=False)


def matrix(gram: Float[Array, "*problems d d"], i: Int[Array, ""]) -> Float[Array, "d d"]:
    """Problem i's Gram matrix, a copy unless all share one.

    >>> matrix(jnp.eye(2), jnp.array(7)).shape
    (2, 2)
    """
    # Without a barrier, XLA moves a change of layout out of the loop over i: a copy of all of Q.
    return gram if gram.ndim == 2 else lax.optimization_barrier(pick(gram, i))


def rows(
    gram: Float[Array, "*problems d d"], i: Int[Array, ""], chosen: Int[Array, " k"] | slice
) -> Float[Array, "k d"]:
    """Chosen rows of problem i's Gram matrix, cut out where they lie.

    >>> rows(jnp.eye(3), jnp.array(7), jnp.array([2])).tolist()
    [[0.0, 0.0, 1.0]]
    """
    return gram[chosen] if gram.ndim == 2 else gram[i, chosen]


def each(solve: Callable[[Array], Solution], count: int, chunk: int) -> Solution:
    """Solves every problem, `chunk` of them side by side.

    Args:
        solve: from a problem's index to its solution.
        count: how many problems there are.
        chunk: 1 spares a problem the selects that side by side loops need.

    >>> halves = lambda i: Solution(i / 2, i > 0, i, i / 1.0, i / 1.0)
    >>> each(halves, 5, 2).value.tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    # Chunks of one size, as nearly as can be: the last one reaches back over what is done.
    chunk = -(-count // -(-count // chunk))

    def some(start: Array) -> Solution:
        if chunk == 1:
            return jax.tree.map(lambda x: x[None], solve(start))
        return jax.vmap(solve)(start + jnp.arange(chunk))

    if count == chunk:
        return some(jnp.zeros((), int))

    def more(i: int | Array, found: Solution) -> Solution:
        start = jnp.minimum(i * chunk, count - chunk)
        return jax.tree.map(
            lambda whole, new: lax.dynamic_update_slice_in_dim(whole, new, start, 0),
            found,
            some(start),
        )

    shapes = jax.eval_shape(some, jnp.zeros((), int))
    empty = jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), shapes)
    return lax.fori_loop(0, -(-count // chunk), more, empty)
