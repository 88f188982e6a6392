"""Symmetric positive semidefinite systems: Cholesky, inverses by blocks, conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Factor(NamedTuple):
    """A Cholesky factor and what had to be added to the diagonal to get it.

    Attributes:
        lower: L with L Lᵀ = the matrix + ridge · I; NaN if that failed too.
        ridge: 0 unless the matrix was not positive definite in floating point.
    """

    lower: Float[Array, "d d"]
    ridge: Float[Array, ""]


def dot(a: Float[Array, "*batch d"], b: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """The scalar product along the last axis.

    >>> dot(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])).tolist()
    11.0
    """
    return (a * b).sum(axis=-1)


def product(gram: Float[Array, "d d"], w: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Q w for a symmetric Q, in full precision on every device.

    >>> product(jnp.eye(2) * 2, jnp.array([1.0, 3.0])).tolist()
    [2.0, 6.0]
    """
    # Q is symmetric; summing over its last axis suits the layout in which it arrives.
    return jnp.einsum("...j,ij->...i", w, gram, precision=lax.Precision.HIGHEST)


def mean_diagonal(matrix: Float[Array, "d d"]) -> Float[Array, ""]:
    """The natural size of a positive semidefinite matrix; 1 if that is zero.

    >>> mean_diagonal(jnp.diag(jnp.array([1.0, 3.0]))).tolist()
    2.0
    """
    size = jnp.abs(jnp.diagonal(matrix)).mean()
    return jnp.where(size > 0, size, 1)


def with_ridge(matrix: Float[Array, "d d"], ridge: float | Float[Array, ""]) -> Float[Array, "d d"]:
    """The matrix + ridge · I."""
    return matrix + ridge * jnp.eye(matrix.shape[-1], dtype=matrix.dtype)


def factor(matrix: Float[Array, "d d"]) -> Factor:
    """Cholesky, retried once with a ridge of √ε times the mean diagonal if the matrix resists.

    >>> factor(jnp.eye(2)).ridge.tolist(), factor(jnp.zeros((2, 2))).lower.shape
    (0.0, (2, 2))
    """
    first = lax.linalg.cholesky(matrix, symmetrize_input=False)
    failed = ~jnp.isfinite(first).all()
    tiny = jnp.finfo(matrix.dtype).eps ** 0.5 * mean_diagonal(matrix)

    def retry() -> Array:
        return lax.linalg.cholesky(with_ridge(matrix, tiny), symmetrize_input=False)

    return Factor(lax.cond(failed, retry, lambda: first), jnp.where(failed, tiny, 0))


def inverse(lower: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """(L Lᵀ)⁻¹ from a Cholesky factor L, by products of blocks.

    LAPACK's triangular solve of a whole identity is several times slower, and its threads stall by
    milliseconds when cores are shared. The result's rounding is harmless to what iterates with it,
    as certificates never use it.

    >>> inverse(jnp.array([[2.0, 0.0], [2.0, 1.0]])).tolist()
    [[1.25, -1.0], [-1.0, 1.0]]
    """
    d, size = lower.shape[-1], 16
    while size < d:
        size *= 2
    padded = jnp.eye(size, dtype=lower.dtype).at[:d, :d].set(lower)
    root = _invert_lower(padded)[:d, :d]
    return jnp.matmul(root.T, root, precision=lax.Precision.HIGHEST)


def _invert_lower(lower: Array) -> Array:
    """L⁻¹ for a size of 16 · 2ⁿ: blocks of 16 by substitution, then in pairs.

    [[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [−C⁻¹BA⁻¹, C⁻¹]], all pairs of one size at once.
    """
    best = lax.Precision.HIGHEST
    total, width = lower.shape[-1], 16

    def blocks(width: int, across: int) -> Array:
        """The blocks of a width on the diagonal (across = 0) or left of it, of every second."""
        starts = jnp.arange(0, total, 2 * width if across else width) + across * width
        return jax.vmap(
            lambda i: lax.dynamic_slice(lower, (i, i - across * width), (width, width))
        )(starts)

    diagonal = blocks(width, 0)
    eye = jnp.eye(width, dtype=lower.dtype)

    def row(i: int | Array, found: Array) -> Array:
        known = jnp.einsum("nj,njk->nk", diagonal[:, i], found, precision=best)
        return found.at[:, i].set((eye[i][None] - known) / diagonal[:, i, i][:, None])

    found = lax.fori_loop(0, width, row, jnp.zeros_like(diagonal))
    while width < total:
        first, last = found[::2], found[1::2]
        below = -jnp.matmul(
            jnp.matmul(last, blocks(width, 1), precision=best), first, precision=best
        )
        top = jnp.concatenate([first, jnp.zeros_like(first)], axis=2)
        found = jnp.concatenate([top, jnp.concatenate([below, last], axis=2)], axis=1)
        width *= 2
    return found[0]


def conjugate_gradients(
    apply: Callable[[Float[Array, "*batch d"]], Float[Array, "*batch d"]],
    right: Float[Array, "*batch d"],
    start: Float[Array, "*batch d"],
    *,
    tolerance: Float[Array, "*batch"],
    max_steps: int | Int[Array, ""],
) -> Float[Array, "*batch d"]:
    """Solves A x = b row by row; from zero, a singular but solvable system gets its least norm.

    Args:
        apply: A, symmetric positive semidefinite, to all rows at once.
        right: b.
        start: where to start from.
        tolerance: a row is solved when ‖b − A x‖₂ is at most this.
        max_steps: limit on the steps.

    Returns:
        x. A row stays where it is if A bends down along its direction, which shows that A is not
        positive semidefinite.

    >>> right = jnp.array([2.0, 3.0])
    >>> x = conjugate_gradients(lambda x: x * right, right, 0 * right, tolerance=jnp.array(1e-6),
    ...                         max_steps=10)
    >>> x.round(4).tolist()
    [1.0, 1.0]
    """

    def unsolved(state: tuple) -> Array:
        _, _, _, size, count = state
        return (size > tolerance**2).any() & (count < max_steps)

    def step(state: tuple) -> tuple:
        x, residual, direction, size, count = state
        image = apply(direction)
        bend = dot(direction, image)
        usable = (size > tolerance**2) & (bend > 0)
        length = jnp.where(usable, size / jnp.where(usable, bend, 1), 0)[..., None]
        x, residual = x + length * direction, residual - length * image
        left = jnp.where(usable, dot(residual, residual), 0)
        ratio = jnp.where(usable, left / jnp.where(usable, size, 1), 0)[..., None]
        return x, residual, residual + ratio * direction, left, count + 1

    residual = right - apply(start)
    state = (start, residual, residual, dot(residual, residual), 0)
    return lax.while_loop(unsolved, step, state)[0]
