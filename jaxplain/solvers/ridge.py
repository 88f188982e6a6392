r"""LIME's local model: weighted ridge regression whose intercept is not penalised.

.. math:: \min_{b, w} \tfrac12 \sum_n \pi_n (b + w \cdot z_n - y_n)^2 + \tfrac{\alpha}{2} \|w\|_2^2

(Ribeiro, Singh and Guestrin, KDD 2016), after one of three selections of features. The intercept is
eliminated by centring on the weighted mean; what is left are normal equations of size d.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float

from jaxplain.solvers.linear import dot, factor, inverse, product
from jaxplain.solvers.loop import Solution, default_tolerance
from jaxplain.solvers.problems import floating, refuse, withheld

SELECTIONS = ("none", "highest_weights", "forward_selection")

# The ridge of the fit that ranks features for "highest_weights" (LIME's lime_base).
RANKING_ALPHA = 0.01


class Linear(NamedTuple):
    """A local linear model.

    Attributes:
        coef: w, zero where a feature was not selected.
        intercept: b.
        score: weighted R²; 1 is perfect.
        selected: which features were allowed.
    """

    coef: Float[Array, " d"]
    intercept: Float[Array, ""]
    score: Float[Array, ""]
    selected: Bool[Array, " d"]

    def predict(self, features: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """The model at each row, b + w · z.

        >>> model = ridge(jnp.array([[0.0], [1.0]]), jnp.array([1.0, 3.0]), alpha=1e-6).value
        >>> model.predict(jnp.array([[2.0]])).round(3).tolist()
        [5.0]
        """
        return self.intercept + jnp.matmul(features, self.coef, precision=lax.Precision.HIGHEST)


def ridge(
    features: Float[Array, "n d"],
    targets: Float[Array, " n"],
    weights: Float[Array, " n"] | None = None,
    *,
    alpha: float | Float[Array, ""] = 1.0,
    select: str = "none",
    count: int | None = None,
    instance: Float[Array, " d"] | None = None,
) -> Solution:
    r"""Fits the local model; `jax.vmap` over `targets` fits many and factors once.

    Args:
        features: rows z.
        targets: y.
        weights: π ≥ 0; None means 1.
        alpha: α ≥ 0 of the final fit.
        select: "none" takes all features; "highest_weights" those with the largest |w · x| of a
            fit with α = 0.01; "forward_selection" adds, one by one, the feature that raises the
            weighted R² of least squares most.
        count: how many features to select; needed unless `select` is "none".
        instance: the x by which "highest_weights" multiplies; None is the first row, which in
            LIME is the instance itself.

    Returns:
        Solution whose value is a `Linear`. `gap` is ½ gᵀ(Q + αI)⁻¹g with the gradient g that the
        solve left, and that rounding may hide: it bounds the suboptimality for these moments. It is
        infinite where the equations are singular, which needs α = 0; `ridge` says what was then
        added to solve them. Numbers that are not finite give a zero model,
        not converged, with an infinite gap.

    Raises:
        ValueError: if shapes do not fit, `select` is unknown, `count` is missing or out of range.

    >>> z = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> y = jnp.array([3.0, 2.0, 1.0, 0.0])
    >>> fit = ridge(z, y, alpha=0.0, select="forward_selection", count=1)
    >>> fit.value.coef.round(3).tolist(), fit.value.selected.tolist()
    ([2.0, 0.0], [True, False])
    """
    features, targets = floating(features, targets)
    rows, d = features.shape
    if rows == 0 or d == 0:
        raise ValueError(f"features are {features.shape}: at least one row and column are needed")
    if targets.shape != (rows,) or (weights is not None and weights.shape != (rows,)):
        got = None if weights is None else weights.shape
        raise ValueError(f"targets and weights must be {(rows,)}, got {targets.shape} and {got}")
    _check_selection(select, count, d, instance)
    refuse(alpha=(alpha, 0, None))
    weights = jnp.ones_like(targets) if weights is None else weights
    instance = features[0] if instance is None else instance
    solution = _ridge(features, targets, weights, alpha, instance, select=select, count=count or d)
    return withheld(solution, jnp.asarray(alpha) >= 0)


def _check_selection(select: str, count: int | None, d: int, instance: Array | None) -> None:
    if select not in SELECTIONS:
        raise ValueError(f"select must be one of {SELECTIONS}, got {select!r}")
    if select != "none" and (count is None or not 1 <= count <= d):
        raise ValueError(f"count must be between 1 and {d} for select={select!r}, got {count}")
    if instance is not None and instance.shape != (d,):
        raise ValueError(f"instance must be {(d,)}, got {instance.shape}")


@functools.partial(jax.jit, static_argnames=("select", "count"))
def _ridge(
    features: Array,
    targets: Array,
    weights: Array,
    alpha: Array,
    instance: Array,
    *,
    select: str,
    count: int,
) -> Solution:
    total = jnp.where(weights.sum() > 0, weights.sum(), 1)
    mean_z = (weights[:, None] * features).sum(axis=0) / total
    mean_y = dot(weights, targets) / total
    z, y = features - mean_z[None, :], targets - mean_y
    gram = jnp.matmul((z * weights[:, None]).T, z, precision=lax.Precision.HIGHEST)
    corr = jnp.matmul(weights * y, z, precision=lax.Precision.HIGHEST)

    spread = dot(weights, y * y)
    coef, gap, ridge, selected = _select_and_solve(
        gram, corr, alpha, instance, jnp.ones(corr.shape, bool), select, count
    )
    residual = y - jnp.matmul(z, coef, precision=lax.Precision.HIGHEST)
    unexplained = dot(weights, residual * residual)
    return _answer(coef, gap, ridge, selected, (mean_z, mean_y, corr, spread, unexplained))


def ridge_statistics(
    gram: Float[Array, "f f"],
    corr: Float[Array, " f"],
    energy: Float[Array, ""],
    *,
    alpha: float | Float[Array, ""] = 1.0,
    select: str = "none",
    count: int | None = None,
    instance: Float[Array, " d"] | None = None,
    allowed: Bool[Array, " d"] | None = None,
) -> Solution:
    r"""Fits the local model from the statistics of rows (1, z), with f = 1 + d.

    Args:
        gram: Σ π (1, z)(1, z)ᵀ, as `gram.statistics` has it; Σ π must be positive.
        corr: Σ π y (1, z).
        energy: Σ π y².
        alpha: as in `ridge`.
        select: as in `ridge`.
        count: as in `ridge`.
        instance: as in `ridge`; None is all ones.
        allowed: which features may be selected; None is all.

    Returns:
        As `ridge`. Centring costs digits: keep the means of z and y small beside their spread.

    Raises:
        ValueError: as `ridge`.

    >>> rows = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> y = jnp.array([1.0, 3.0])
    >>> fit = ridge_statistics(rows.T @ rows, rows.T @ y, y @ y, alpha=0.0).value
    >>> fit.coef.round(3).tolist(), fit.intercept.round(3).item(), fit.score.round(3).item()
    ([2.0], 1.0, 1.0)
    """
    d = corr.shape[0] - 1
    if d < 1 or gram.shape != (d + 1, d + 1):
        raise ValueError(
            f"gram must be (f, f) for corr (f,), f > 1; got {gram.shape}, {corr.shape}"
        )
    _check_selection(select, count, d, instance)
    refuse(alpha=(alpha, 0, None))
    total = jnp.where(gram[0, 0] > 0, gram[0, 0], 1)
    mean_z, mean_y = gram[0, 1:] / total, corr[0] / total
    centred = gram[1:, 1:] - total * mean_z[:, None] * mean_z[None, :]
    right = corr[1:] - total * mean_y * mean_z
    spread = jnp.maximum(energy - total * mean_y**2, 0)
    instance = jnp.ones_like(mean_z) if instance is None else instance
    allowed = jnp.ones(mean_z.shape, bool) if allowed is None else allowed
    alpha = jnp.asarray(alpha, corr.dtype)
    coef, gap, ridge, selected = _select_and_solve(
        centred, right, alpha, instance, allowed, select, count or d
    )
    explained = 2 * dot(coef, right) - dot(coef, product(centred, coef))
    return _answer(coef, gap, ridge, selected, (mean_z, mean_y, right, spread, spread - explained))


def _select_and_solve(
    gram: Array,
    corr: Array,
    alpha: Array,
    instance: Array,
    allowed: Array,
    select: str,
    count: int,
) -> tuple[Array, Array, Array, Array]:
    """Weights, gap, ridge and selection from centred moments."""
    if select == "none":
        selected = allowed
    elif select == "highest_weights":
        ranking, _, _ = _solve(gram, corr, jnp.asarray(RANKING_ALPHA, corr.dtype), allowed)
        size = jnp.where(allowed, jnp.abs(ranking * instance), -1)
        best = lax.top_k(size, count)[1]
        selected = jnp.zeros(corr.shape, bool).at[best].set(True) & allowed
    else:
        selected = _forward(gram, corr, count, allowed)
    return *_solve(gram, corr, jnp.asarray(alpha, corr.dtype), selected), selected


def _answer(
    coef: Array, gap: Array, ridge: Array, selected: Array, moments: tuple[Array, ...]
) -> Solution:
    """The model and its certificate."""
    mean_z, mean_y, corr, spread, unexplained = moments
    fine = jnp.isfinite(coef).all() & ~jnp.isnan(gap)
    coef = jnp.where(fine, coef, 0)
    intercept = jnp.where(fine, mean_y - dot(coef, mean_z), 0)
    # A constant target is explained perfectly by the intercept (scikit-learn's convention).
    score = jnp.where(fine, 1 - unexplained / jnp.where(spread > 0, spread, 1), 0)
    gap = jnp.where(fine, gap, jnp.inf)
    scale = jnp.abs(dot(corr, coef)) + jnp.finfo(corr.dtype).eps * spread
    return Solution(
        Linear(coef, intercept, score, selected),
        fine & (gap <= default_tolerance(corr.dtype) * scale),
        jnp.ones((), jnp.int32),
        lax.stop_gradient(gap),
        ridge,
    )


def _solve(gram: Array, corr: Array, alpha: Array, selected: Array) -> tuple[Array, Array, Array]:
    """Normal equations of the selected features; the others keep a row of the identity."""
    both = selected[:, None] & selected[None, :]
    diagonal = jnp.where(selected, alpha, 1)
    matrix = jnp.where(both, gram, 0) + jnp.diag(diagonal)
    right = jnp.where(selected, corr, 0)
    lower, ridge = factor(matrix)
    coef = cho_solve((lower, True), right)
    # One refinement takes back what a ridge, or an ill-conditioned factor, moved.
    coef = coef + cho_solve((lower, True), right - product(matrix, coef))
    coef = jnp.where(selected, coef, 0)
    slope = jnp.where(selected, product(matrix, coef) - right, 0)
    # In the norm of the inverse, Σ g e is at most Σ |g| times the length of each unit vector.
    few = 16 * jnp.finfo(corr.dtype).eps  # of the moments' own rounding, too
    hidden = few * (product(jnp.abs(matrix), jnp.abs(coef)) + jnp.abs(right))
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(inverse(lower)), 0))
    size = jnp.sqrt(jnp.maximum(dot(slope, cho_solve((lower, True), slope)), 0))
    gap = (size + dot(jnp.where(selected, hidden, 0), lengths)) ** 2 / 2
    return coef, jnp.where(ridge > 0, jnp.inf, gap), ridge


def _forward(gram: Array, corr: Array, count: int, allowed: Array) -> Array:
    """Greedy least squares: sweeping a feature out updates the gain of all others at once.

    After the chosen features are projected out, feature j explains corr_j² / gram_jj more.
    """
    scale = jnp.diagonal(gram)
    floor = gram.shape[0] * jnp.finfo(gram.dtype).eps * scale

    def sweep(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        gram, corr, chosen = state
        left = jnp.diagonal(gram)
        # What is left of a feature that the chosen ones span is rounding, and explains nothing.
        usable = left > floor
        gain = jnp.where(usable, corr**2 / jnp.where(usable, left, 1), 0)
        j = jnp.argmax(jnp.where(chosen | ~allowed, -1, gain))
        column = jnp.where(usable[j], gram[:, j] / jnp.where(usable[j], left[j], 1), 0)
        gram = gram - column[:, None] * gram[j][None, :]
        return gram, corr - column * corr[j], chosen.at[j].set(True)

    start = (gram, corr, jnp.zeros(corr.shape, bool))
    return lax.fori_loop(0, count, sweep, lax.stop_gradient(start))[2] & allowed
