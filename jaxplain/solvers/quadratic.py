r"""Quadratic objectives known by their Gram statistics, and bounds on a point's suboptimality.

Throughout, :math:`f(w) = \tfrac12 w^T Q w - q \cdot w` with Q positive semidefinite. Two
certificates:

*Ball.* For min f over :math:`\|w\|_1 \le r`, convexity gives
:math:`f(w) - f^* \le \nabla f(w) \cdot w + r \|\nabla f(w)\|_\infty`, the Frank–Wolfe gap.

*Penalty.* For min :math:`f(w) + \lambda \|w\|_1`, every u with
:math:`\|q - Qu\|_\infty \le \lambda` proves :math:`P^* \ge -\tfrac12 u^T Q u`, because then
:math:`\lambda \|w\|_1 \ge (q - Qu) \cdot w` and
:math:`\tfrac12 w^T Q w - w^T Q u \ge -\tfrac12 u^T Q u`. The iterate w itself violates the
condition a little, so u lies between it and an anchor v that satisfies it strictly. If the energy
:math:`\sum y^2` is known, v is any solution of Qv = q: only Qv and
:math:`v^T Q v \le \sum y^2` are needed. Otherwise Qv ≈ q is solved.

All bounds include an allowance for the rounding of the products they are made of, so that they
stay bounds in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from jaxplain.solvers.loop import Certificate, Solution


class Factor(NamedTuple):
    """A Cholesky factor and what had to be added to the diagonal to get it.

    Attributes:
        lower: L with L Lᵀ = the matrix + ridge · I; NaN if that failed too.
        ridge: 0 unless the matrix was not positive definite in floating point.
    """

    lower: Float[Array, "d d"]
    ridge: Float[Array, ""]


class Anchor(NamedTuple):
    """A point v that meets the dual constraint strictly, known by what a bound needs of it.

    Attributes:
        product: Q v.
        energy: vᵀ Q v, or a bound above it.
        excess: ‖q − Q v‖∞.
    """

    product: Float[Array, " d"]
    energy: Float[Array, ""]
    excess: Float[Array, ""]


def product(gram: Float[Array, "d d"], w: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Q w for a symmetric Q, in full precision on every device.

    >>> product(jnp.eye(2) * 2, jnp.array([1.0, 3.0])).tolist()
    [2.0, 6.0]
    """
    # Q is symmetric; summing over its last axis suits the layout in which it arrives.
    return jnp.einsum("...j,ij->...i", w, gram, precision=lax.Precision.HIGHEST)


def dot(a: Float[Array, "*batch d"], b: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """The scalar product along the last axis.

    >>> dot(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])).tolist()
    11.0
    """
    return (a * b).sum(axis=-1)


def factor(matrix: Float[Array, "d d"]) -> Factor:
    """Cholesky, retried once with a ridge of √ε times the mean diagonal if the matrix resists.

    >>> factor(jnp.eye(2)).ridge.tolist(), factor(jnp.zeros((2, 2))).lower.shape
    (0.0, (2, 2))
    """
    first = lax.linalg.cholesky(matrix, symmetrize_input=False)
    failed = ~jnp.isfinite(first).all()
    size = jnp.abs(jnp.diagonal(matrix)).mean()
    tiny = jnp.finfo(matrix.dtype).eps ** 0.5 * jnp.where(size > 0, size, 1)

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
    root = _invert_lower(lower)
    return jnp.matmul(root.T, root, precision=lax.Precision.HIGHEST)


def _invert_lower(lower: Array) -> Array:
    """L⁻¹ = [[A⁻¹, 0], [−C⁻¹BA⁻¹, C⁻¹]], down to blocks that are substituted row by row."""
    d = lower.shape[-1]
    if d <= 16:
        eye = jnp.eye(d, dtype=lower.dtype)

        def row(i: Array, found: Array) -> Array:
            known = jnp.matmul(lower[i], found, precision=lax.Precision.HIGHEST)
            return found.at[i].set((eye[i] - known) / lower[i, i])

        return lax.fori_loop(0, d, row, jnp.zeros_like(lower))
    half = d // 2
    first, last = _invert_lower(lower[:half, :half]), _invert_lower(lower[half:, half:])
    below = jnp.matmul(lower[half:, :half], first, precision=lax.Precision.HIGHEST)
    below = -jnp.matmul(last, below, precision=lax.Precision.HIGHEST)
    return jnp.block([[first, jnp.zeros((half, d - half), lower.dtype)], [below, last]])


def anchor_factor(gram: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The Cholesky factor that `find_anchor` takes: of Q with a ridge as small as rounding allows.

    >>> anchor_factor(jnp.eye(2) * 4).diagonal().tolist()
    [2.0..., 2.0...]
    """
    size = jnp.abs(jnp.diagonal(gram)).mean()
    tiny = 10 * gram.shape[-1] * jnp.finfo(gram.dtype).eps * jnp.where(size > 0, size, 1)
    return factor(with_ridge(gram, tiny)).lower


def find_anchor(
    gram: Float[Array, "d d"], corr: Float[Array, " d"], lower: Float[Array, "d d"]
) -> Anchor:
    """An anchor for when the energy is unknown: Qv = q solved with a factor of Q + tiny ridge."""
    v = cho_solve((lower, True), corr)
    # One step of refinement: the ridge and rounding leave a residual that would cost certificate.
    v = v + cho_solve((lower, True), corr - product(gram, v))
    image = product(gram, v)
    return Anchor(image, dot(v, image), jnp.abs(corr - image).max())


def penalty_certificate(
    w: Float[Array, " d"],
    image: Float[Array, " d"],
    residual: Float[Array, " d"],
    corr: Float[Array, " d"],
    penalty: Float[Array, ""],
    largest: Float[Array, ""],
    anchor: Anchor,
    *,
    other: float | Float[Array, ""] = 0.0,
) -> Certificate:
    """Bounds f(w) + λ‖w‖₁ (+ more) − optimum; see the module's text.

    Args:
        w: the point.
        image: Q w.
        residual: q − Q w, less the multipliers of further penalties when there are any.
        corr: q.
        penalty: λ.
        largest: the largest diagonal entry of Q, which bounds all of Q.
        anchor: the strictly feasible point.
        other: for further penalties, their value less multipliers · argument, which is ≥ 0.
    """
    eps = jnp.finfo(w.dtype).eps
    size = jnp.abs(w).sum()
    rounding = eps * (largest * size + jnp.abs(corr).max())
    worst = jnp.abs(residual).max() + rounding
    feasible = worst <= penalty
    anchored = anchor.excess < penalty
    # u = s w + (1 − s) v has ‖q − Qu‖∞ ≤ s · worst + (1 − s) · excess, which this s makes λ.
    spread = jnp.where(feasible | ~anchored, 1, worst - anchor.excess)
    back = jnp.where(feasible, 0, (worst - penalty) / spread)  # 1 − s
    quadratic = dot(w, image)
    across = dot(w, anchor.product)
    slack = (penalty * jnp.abs(w) - residual * w).sum() + other
    moved = back * (across - quadratic) + back**2 / 2 * (anchor.energy - 2 * across + quadratic)
    gap = jnp.maximum(slack + moved, 0) + size * rounding
    explained = jnp.abs(dot(corr, w)) + quadratic / 2
    gap = jnp.where(feasible | anchored, gap, jnp.inf)
    return Certificate(
        _if_semidefinite(quadratic, size * rounding, gap), explained + eps * anchor.energy
    )


def ball_certificate(
    w: Float[Array, " d"],
    image: Float[Array, " d"],
    corr: Float[Array, " d"],
    radius: Float[Array, ""],
    largest: Float[Array, ""],
    *,
    nonnegative: bool = False,
) -> Certificate:
    """Bounds f(w) − min f over the L1 ball, or its non-negative part; see the module's text.

    >>> w, q = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> float(ball_certificate(w, w, q, jnp.array(1.0), jnp.array(1.0)).gap) < 1e-5
    True
    """
    eps = jnp.finfo(w.dtype).eps
    slope = image - corr
    steepest = jnp.maximum(-slope, 0).max() if nonnegative else jnp.abs(slope).max()
    size = jnp.abs(w).sum()
    largest_corr = jnp.abs(corr).max()
    rounding = eps * (largest * size + largest_corr)
    gap = jnp.maximum(dot(slope, w) + radius * steepest, 0) + (radius + size) * rounding
    quadratic = dot(w, image)
    explained = jnp.abs(dot(corr, w)) + quadratic / 2
    return Certificate(
        _if_semidefinite(quadratic, size * rounding, gap), explained + eps * radius * largest_corr
    )


def _if_semidefinite(quadratic: Array, rounding: Array, gap: Array) -> Array:
    """The gap, or NaN (which stops the loop) where wᵀQw < 0 shows that Q proves nothing."""
    return jnp.where(quadratic < -rounding, jnp.nan, gap)


def refuse(**numbers: tuple) -> None:
    """Refuses plain numbers outside a range; arrays may be traced and are left alone.

    Args:
        **numbers: name = (value, low, high): value ≥ 0 if `low` is 0, > 0 if it is None; value <
            high unless that is None.

    Raises:
        ValueError: naming the argument, its value and the range.
    """
    for name, (value, low, high) in numbers.items():
        if not isinstance(value, (int, float)):
            continue
        if value < 0 or (low is None and value <= 0) or (high is not None and value >= high):
            expected = "at least 0" if low == 0 else "positive"
            expected += "" if high is None else f" and below {high}"
            raise ValueError(f"{name} must be {expected}, got {value}")


def check_problem(gram: Array, corr: Array, **others: Any) -> None:
    """Refuses shapes that do not fit each other, by name.

    Args:
        gram: should be (d, d) or (problems, d, d).
        corr: should be (d,) or (problems, d).
        **others: scalars or one number a problem; None is skipped.

    Raises:
        ValueError: naming the argument, its shape and the expected one.
    """
    if corr.ndim not in (1, 2):
        raise ValueError(f"corr must be (d,) or (problems, d), got {corr.shape}; vmap the rest")
    square = (corr.shape[-1],) * 2
    if gram.shape not in (square, (*corr.shape[:-1], *square)):
        raise ValueError(
            f"gram must be {square} or {(*corr.shape[:-1], *square)} for corr {corr.shape}, "
            f"got {gram.shape}"
        )
    for name, value in others.items():
        if value is not None and jnp.shape(value) not in ((), corr.shape[:-1]):
            raise ValueError(
                f"{name} must be a scalar or {corr.shape[:-1]} for corr {corr.shape}, "
                f"got {jnp.shape(value)}"
            )


def each(
    solve: Callable[..., Solution], gram: Array, rest: tuple[Any, ...], chunk: int | None
) -> Solution:
    """Solves every problem, `chunk` of them side by side, with a shared Gram matrix or one each.

    Chunks are cut out of the arrays where they lie: `lax.map` would copy all Gram matrices first.

    Args:
        solve: one problem, from its Gram matrix and its part of `rest`.
        gram: (d, d) or (problems, d, d).
        rest: arrays of one row a problem, or None.
        chunk: None is 96 with a shared matrix, where wide products pay. With a matrix each it is 1
            on a CPU, whose cache then holds the problem, and 64 elsewhere.
    """
    shared = gram.ndim == 2
    data = rest if shared else (gram, *rest)
    one = functools.partial(solve, gram) if shared else solve
    count = rest[0].shape[0]
    chunk = chunk or (96 if shared else 1 if jax.default_backend() == "cpu" else 64)
    if count == 1:
        return jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], data)))
    many = jax.vmap(one) if chunk > 1 else _unbatched(one)
    if count <= chunk:
        return many(*data)

    def more(i: Array, found: Solution) -> Solution:
        # The last chunk reaches back over problems that are done, and finds the same again.
        start = jnp.minimum(i * chunk, count - chunk)
        part = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, chunk), data)
        # Without a barrier, XLA moves a change of layout out of the loop: a copy of all of Q.
        part = lax.optimization_barrier(part)
        return jax.tree.map(
            lambda whole, new: lax.dynamic_update_slice_in_dim(whole, new, start, 0),
            found,
            many(*part),
        )

    shapes = jax.eval_shape(many, *jax.tree.map(lambda x: x[:1], data))
    empty = jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), shapes)
    return lax.fori_loop(0, -(-count // chunk), more, empty)


def _unbatched(one: Callable[..., Solution]) -> Callable[..., Solution]:
    """Batches of one without the selects that vmap puts into loops."""

    def solve(*part: Any) -> Solution:
        return jax.tree.map(lambda x: x[None], one(*jax.tree.map(lambda x: x[0], part)))

    return solve


def with_ridge(matrix: Array, ridge: Array) -> Array:
    """The matrix + ridge · I."""
    return matrix + ridge * jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
