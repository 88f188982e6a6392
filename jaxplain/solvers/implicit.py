"""Derivatives of solutions by the implicit function theorem, not through the iterations.

A solution x(p) satisfies conditions(x, p) = 0, so dx = −(∂conditions/∂x)⁻¹ ∂conditions/∂p dp
whatever algorithm found it. The conditions are written so that the first factor is symmetric
positive semidefinite: an eigendecomposition inverts it when it is small, conjugate gradients
otherwise. Where it is singular (duplicated features, both in use) the solution is not unique, and
the derivative of least norm is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxplain.solvers.linear import conjugate_gradients
from jaxplain.solvers.loop import Solution

# Up to here a dense inverse of each problem costs less than iterating.
DENSE_LIMIT = 64


def differentiable(
    solve: Callable[..., Solution],
    conditions: Callable[..., Float[Array, "problems d"]],
    parameters: tuple[Any, ...],
    guess: Float[Array, "problems d"],
) -> Solution:
    """Solves a batch of problems so that `value` can be differentiated in both modes.

    Args:
        solve: the algorithm, from parameters to a solution whose value is (problems, d).
        conditions: (value, *parameters) -> (problems, d), zero at the solution; row by row, with a
            symmetric positive semidefinite Jacobian in the value.
        parameters: what the solution is differentiated by; None is allowed in it.
        guess: any array like the value.

    Returns:
        The solution; `converged`, `steps`, `gap` and `ridge` have no derivative.
    """
    dtypes = {}

    def find(_: Any, __: Any) -> tuple[Array, dict[str, Array]]:
        solution = solve(*lax.stop_gradient(parameters))
        rest = {k: jnp.asarray(v) for k, v in solution._asdict().items() if k != "value"}
        dtypes.update({k: v.dtype for k, v in rest.items()})
        # custom_root gives what comes beside the root a tangent, which integers cannot have.
        return solution.value, {k: v.astype(guess.dtype) for k, v in rest.items()}

    def invert(linear: Callable[[Array], Array], right: Array) -> Array:
        algorithm = _dense if right.shape[-1] <= DENSE_LIMIT else _iterative
        return lax.custom_linear_solve(linear, right, algorithm, symmetric=True)

    value, rest = lax.custom_root(
        lambda x: conditions(x, *parameters), guess, find, invert, has_aux=True
    )
    return Solution(value, **{k: lax.stop_gradient(v).astype(dtypes[k]) for k, v in rest.items()})


def lasso_conditions(
    w: Float[Array, "problems d"],
    gram: Float[Array, "*problems d d"],
    corr: Float[Array, "problems d"],
    penalty: Float[Array, " problems"],
) -> Float[Array, "problems d"]:
    """Stationarity on the support, Qw − q + λ sign w = 0, and w = 0 off it.

    Restricting Q's argument to the support changes nothing at the solution, and makes the Jacobian
    symmetric: the support's block of Q beside an identity.
    """
    support = w != 0
    inside = jnp.where(support, w, 0)
    slope = products(gram, inside) - corr + penalty[:, None] * jnp.sign(w)
    return jnp.where(support, slope, w)


def ball_conditions(
    w: Float[Array, "problems d"],
    gram: Float[Array, "*problems d d"],
    corr: Float[Array, "problems d"],
    radius: Float[Array, " problems"],
) -> Float[Array, "problems d"]:
    """The same for ‖w‖₁ ≤ r: on the sphere the slope has only its part along the signs σ.

    With Π = I − σσᵀ/|S| the conditions are ΠQ(Πw + σr/|S|) − Πq + κ σ(σ·w − r)/|S| = 0 on the
    support S, with Jacobian ΠQΠ + κσσᵀ/|S|; κ, the mean diagonal of Q, keeps it well scaled.
    """
    size = jnp.abs(w).sum(axis=-1)
    on_sphere = (size >= radius * (1 - jnp.finfo(w.dtype).eps ** 0.5))[:, None]
    support = w != 0
    sign = jnp.sign(lax.stop_gradient(w))
    count = jnp.maximum(support.sum(axis=-1, keepdims=True), 1).astype(w.dtype)
    weight = lax.stop_gradient(jnp.diagonal(gram, axis1=-2, axis2=-1).mean(axis=-1))
    weight = jnp.broadcast_to(weight, radius.shape)[:, None]

    def tangent(x: Array) -> Array:
        x = jnp.where(support, x, 0)
        return x - jnp.where(on_sphere, sign * (sign * x).sum(axis=-1, keepdims=True) / count, 0)

    outward = sign / count
    moved = tangent(w) + jnp.where(on_sphere, outward * radius[:, None], 0)
    slope = tangent(products(gram, moved) - corr)
    excess = (sign * w).sum(axis=-1, keepdims=True) - radius[:, None]
    return jnp.where(support, slope + jnp.where(on_sphere, weight * outward * excess, 0), w)


def two_scale_conditions(
    w: Float[Array, "1 both"],
    coarse_gram: Float[Array, "p p"],
    coarse_corr: Float[Array, " p"],
    fine_gram: Float[Array, "q q"],
    fine_corr: Float[Array, " q"],
    coarse_penalty: Float[Array, ""],
    fine_penalty: Float[Array, ""],
    fine_weight: Float[Array, ""],
    *,
    membership: Float[Array, "q p"],
) -> Float[Array, "1 both"]:
    """The same for MINT's two lassos, fine weights first, which :math:`w_f T = w_c` ties.

    With the projector P onto the weights that are zero where the solution is and meet the tie, the
    conditions are P · slope(Pw) + (1 − P) w = 0.
    """
    best = lax.Precision.HIGHEST
    q = fine_corr.shape[0]
    both = w[0]
    support = both != 0
    tie = jnp.concatenate([membership, -jnp.eye(membership.shape[1], dtype=w.dtype)])
    tie = lax.stop_gradient(jnp.where(support[:, None], tie, 0))
    inverse = jnp.linalg.pinv(jnp.matmul(tie.T, tie, precision=best), hermitian=True)

    def project(x: Array) -> Array:
        x = jnp.where(support, x, 0)
        pull = jnp.matmul(inverse, jnp.matmul(tie.T, x, precision=best), precision=best)
        return x - jnp.matmul(tie, pull, precision=best)

    inside = project(both)
    fine, coarse = inside[:q], inside[q:]
    sign = jnp.sign(both)
    slope = jnp.concatenate(
        [
            fine_weight * (jnp.matmul(fine_gram, fine, precision=best) - fine_corr)
            + fine_penalty * sign[:q],
            jnp.matmul(coarse_gram, coarse, precision=best)
            - coarse_corr
            + coarse_penalty * sign[q:],
        ]
    )
    return (project(slope) + both - inside)[None]


def products(
    gram: Float[Array, "*problems d d"], w: Float[Array, "problems d"]
) -> Float[Array, "problems d"]:
    """Q w for every problem, with one Q for all or one each."""
    if gram.ndim == 2:
        return jnp.matmul(w, gram, precision=lax.Precision.HIGHEST)
    return jnp.einsum("pij,pj->pi", gram, w, precision=lax.Precision.HIGHEST)


def _dense(linear: Callable[[Array], Array], right: Array) -> Array:
    """Inverts every problem's matrix, leaving out directions in which it is zero up to rounding."""
    problems, d = right.shape
    basis = jnp.broadcast_to(jnp.eye(d, dtype=right.dtype)[:, None, :], (d, problems, d))
    matrices = jnp.moveaxis(jax.vmap(linear)(basis), 0, 1)
    values, vectors = jnp.linalg.eigh(matrices)
    floor = 10 * d * jnp.finfo(right.dtype).eps * values[:, -1:]
    inverse = jnp.where(values > floor, 1 / jnp.where(values > floor, values, 1), 0)
    along = jnp.einsum("pij,pi->pj", vectors, right, precision=lax.Precision.HIGHEST)
    return jnp.einsum("pij,pj->pi", vectors, inverse * along, precision=lax.Precision.HIGHEST)


def _iterative(linear: Callable[[Array], Array], right: Array) -> Array:
    """Conjugate gradients on all problems at once, to the last digits."""
    small = 10 * jnp.finfo(right.dtype).eps * jnp.linalg.norm(right, axis=-1)
    return conjugate_gradients(
        linear, right, jnp.zeros_like(right), tolerance=small, max_steps=4 * right.shape[-1]
    )
