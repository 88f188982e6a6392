r"""MINT's optimisation: coarse and fine sparse weights, tied by :math:`w_f T = w_c`.

.. math:: \min_{w_f, w_c} \tfrac12 w_c G_c w_c^T - q_c \cdot w_c + \lambda_c \|w_c\|_1
    + \mu (\tfrac12 w_f G_f w_f^T - q_f \cdot w_f) + \lambda_f \|w_f\|_1
    \quad \text{s.t. } w_f T = w_c

(Cui, Wang and Wang, "Multi-scale Interpretation Model for Convolutional Neural Networks", eq. 21
with the constraint 13.) T is q × p, :math:`t_{ij} = 1` if fine superpixel i lies in coarse
superpixel j; the paper's text says m × p. Both ways to the solution are here and certified by the
same duality gap: Algorithm 1 as printed, nested ADMM with eqs. (28)–(42), and the problem in
:math:`w_f` alone that is left once :math:`w_c = w_f T` is put in, solved by interior points.
Features of a deep layer that are a hundred times those of a shallow one make Algorithm 1 crawl;
interior points take no notice of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxplain.solvers.implicit import differentiable, two_scale_conditions
from jaxplain.solvers.interior import Point, Terms, residual, start, step
from jaxplain.solvers.linear import factor, inverse, mean_diagonal, product, with_ridge
from jaxplain.solvers.loop import Certificate, Solution, all_finite, default_tolerance, iterate
from jaxplain.solvers.problems import floating, refuse
from jaxplain.solvers.prox import soft_threshold
from jaxplain.solvers.quadratic import Anchor, find_anchor, penalty_certificate

METHODS = ("nested", "eliminated")

# Interior points are as near as numbers allow after a few dozen steps.
MOST_STEPS = 60


class TwoScale(NamedTuple):
    """MINT's weights: the split variables m, which have exact zeros.

    Attributes:
        coarse: one weight a coarse superpixel.
        fine: one weight a fine superpixel.
    """

    coarse: Float[Array, " p"]
    fine: Float[Array, " q"]


class _Scale(NamedTuple):
    """One inner ADMM: weights w, split variable m, scaled dual g, the last change of m."""

    w: Array
    m: Array
    g: Array
    change: Array


class _Joint(NamedTuple):
    """The problem in w_f alone: H, h, and what a certificate needs."""

    gram: Array
    corr: Array
    largest: Array
    anchor: Anchor


class _Method(NamedTuple):
    """A step, the certificate of a state, the start, the value of a state, the ridge it took."""

    step: Callable[[Any], Any]
    bound: Callable[[Any], Certificate]
    start: Any
    value: Callable[[Any], TwoScale]
    ridge: Array


def check_method(method: str, **rhos: Any) -> None:
    """Refuses an unknown method, and numbers that it has not.

    Args:
        method: as in `two_scale`.
        **rhos: of "nested": its coupling and its two ρ, by name; None where they are not given.

    Raises:
        ValueError: naming the argument.

    >>> check_method("nested", coupling=1.0)
    >>> check_method("eliminated", coupling=1.0)
    Traceback (most recent call last):
    ValueError: coupling has no meaning for method 'eliminated'; expected None
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}; expected one of {METHODS}")
    refuse(**{name: (value, None, None) for name, value in rhos.items()})
    given = [name for name, value in rhos.items() if value is not None]
    if method == "eliminated" and given:
        raise ValueError(f"{given[0]} has no meaning for method 'eliminated'; expected None")


def two_scale(
    coarse_gram: Float[Array, "p p"],
    coarse_corr: Float[Array, " p"],
    fine_gram: Float[Array, "q q"],
    fine_corr: Float[Array, " q"],
    membership: Float[Array, "q p"],
    *,
    coarse_penalty: float | Float[Array, ""],
    fine_penalty: float | Float[Array, ""],
    fine_weight: float | Float[Array, ""] = 1.0,
    coupling: float | Float[Array, ""] | None = None,
    coarse_rho: float | Float[Array, ""] | None = None,
    fine_rho: float | Float[Array, ""] | None = None,
    energy: float | Float[Array, ""] | None = None,
    method: str = "nested",
    tolerance: float | None = None,
    max_steps: int = 2_000,
    inner_steps: int = 30,
) -> Solution:
    r"""Solves MINT's two lassos together; `jax.vmap` solves many.

    Args:
        coarse_gram: Σ h zᶜzᶜᵀ.
        coarse_corr: Σ h y zᶜ.
        fine_gram: Σ h zᶠzᶠᵀ.
        fine_corr: Σ h y zᶠ.
        membership: T.
        coarse_penalty: λ_c ≥ 0.
        fine_penalty: λ_f ≥ 0. At zero, only `energy` gives a certificate, and a loose one.
        fine_weight: μ > 0, how much the fine fit counts.
        coupling: λ > 0 of the augmented Lagrangian; it changes the speed, not the solution. The
            default for this and the two ρ is the mean diagonal of the Gram matrix they join.
        coarse_rho: ρ_c > 0.
        fine_rho: ρ_f > 0. The eliminated problem has none of these, and refuses them.
        energy: Σ h y²; without it the certificate needs another factorisation.
        method: "nested", the paper's Algorithm 1, or "eliminated", the problem in w_f alone, by
            interior points.
        tolerance: relative gap that counts as converged; None is ε^⅔ of the dtype.
        max_steps: limit on the outer iterations; interior points never take more than 60.
        inner_steps: limit on the iterations of each inner loop ("until some stopping criterion").

    Returns:
        Solution whose value is a `TwoScale`. `gap` bounds the suboptimality of `fine` in the
        eliminated problem plus (λ_c + λ_f) ‖m_f T − m_c‖₁, what the two scales still disagree by.
        `value` is differentiable in the statistics, the penalties and `fine_weight`.

    Raises:
        ValueError: if shapes do not fit, a plain number is out of range, `method` is unknown, or
            another method's numbers are given.

    >>> t = jnp.array([[1.0], [1.0]])
    >>> s = two_scale(jnp.eye(1), jnp.ones(1), jnp.eye(2), jnp.array([1.0, 0.0]), t,
    ...               coarse_penalty=0.1, fine_penalty=0.2)
    >>> [round(float(x), 2) for x in s.value.fine], bool(s.converged)
    ([0.85, 0.0], True)
    """
    refuse(
        coarse_penalty=(coarse_penalty, 0, None),
        fine_penalty=(fine_penalty, 0, None),
        fine_weight=(fine_weight, None, None),
        inner_steps=(inner_steps, None, None),
        max_steps=(max_steps, 0, None),
    )
    check_method(method, coupling=coupling, coarse_rho=coarse_rho, fine_rho=fine_rho)
    coarse_gram, coarse_corr, fine_gram, fine_corr, membership = floating(
        coarse_gram, coarse_corr, fine_gram, fine_corr, membership
    )
    p, q = coarse_corr.shape[-1], fine_corr.shape[-1]
    expected = {"coarse_gram": (p, p), "fine_gram": (q, q), "membership": (q, p)}
    arrays = {"coarse_gram": coarse_gram, "fine_gram": fine_gram, "membership": membership}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ValueError(
                f"{name} must be {shape} for {p} coarse and {q} fine weights, "
                f"got {arrays[name].shape}"
            )
    if tolerance is None:
        tolerance = default_tolerance(fine_corr.dtype)
    return _two_scale(
        (coarse_gram, coarse_corr),
        (fine_gram, fine_corr),
        membership,
        (coarse_penalty, fine_penalty, fine_weight),
        (coupling, coarse_rho, fine_rho),
        energy,
        tolerance,
        method=method,
        max_steps=max_steps,
        inner_steps=inner_steps,
    )


@functools.partial(jax.jit, static_argnames=("method", "inner_steps"))
def _two_scale(
    coarse: tuple[Array, Array],
    fine: tuple[Array, Array],
    membership: Array,
    weights: tuple[float | Array, float | Array, float | Array],
    rhos: tuple[float | Array | None, float | Array | None, float | Array | None],
    energy: float | Array | None,
    tolerance: float | Array,
    *,
    method: str,
    max_steps: int | Array,
    inner_steps: int,
) -> Solution:
    dtype = fine[1].dtype
    q = fine[1].shape[0]

    def solve(*data: Array) -> Solution:
        gram_c, corr_c, gram_f, corr_f, lambda_c, lambda_f, mu = data
        found = _solve(
            (gram_c, corr_c),
            (gram_f, corr_f),
            membership,
            (lambda_c, lambda_f, mu),
            rhos,
            energy,
            tolerance,
            method=method,
            max_steps=max_steps,
            inner_steps=inner_steps,
        )
        whole = found._replace(value=jnp.concatenate([found.value.fine, found.value.coarse]))
        return jax.tree.map(lambda x: x[None], whole)

    data = (*coarse, *fine, *(jnp.asarray(x, dtype) for x in weights))
    conditions = functools.partial(two_scale_conditions, membership=membership)
    guess = jnp.zeros((1, sum(membership.shape)), dtype)
    found = jax.tree.map(lambda x: x[0], differentiable(solve, conditions, data, guess))
    return found._replace(value=TwoScale(coarse=found.value[q:], fine=found.value[:q]))


def _solve(
    coarse: tuple[Array, Array],
    fine: tuple[Array, Array],
    membership: Array,
    weights: tuple[Array, Array, Array],
    rhos: tuple[float | Array | None, float | Array | None, float | Array | None],
    energy: float | Array | None,
    tolerance: float | Array,
    *,
    method: str,
    max_steps: int | Array,
    inner_steps: int,
) -> Solution:
    """Either method, and the certificate that both share."""
    lambda_c, lambda_f, mu = weights
    joint = _eliminate(coarse, fine, membership, mu, lambda_f, energy)

    def choose_rho(rho: float | Array | None, default: Array) -> Array:
        return default if rho is None else jnp.asarray(rho, default.dtype)

    terms = Terms(*coarse, mu * fine[0], mu * fine[1], membership, lambda_c, lambda_f)

    def certify(point: Point) -> Certificate:
        eps = jnp.finfo(membership.dtype).eps
        # |multiplier| ≤ λ_c up to rounding; the bound needs it without that.
        a = jnp.clip(point.multiplier, -lambda_c, lambda_c)
        sums = terms.sums(point.fine)
        # Large weights that cancel in a sum leave rounding there, which G may make large: where
        # there is nothing else between the scales, the coarse weights speak for themselves.
        near = jnp.abs(sums - point.coarse) <= 8 * eps * terms.sums(jnp.abs(point.fine))
        u = jnp.where(near, point.coarse, sums)
        fine_left, coarse_left = terms.left(point.fine, u)
        left = fine_left + terms.spread(coarse_left)
        largest = jnp.abs(fine_left).max() + jnp.abs(coarse_left).max() + jnp.abs(a).max()
        fine_size = jnp.diagonal(terms.fine_gram).max() * jnp.abs(point.fine).sum()
        bound = penalty_certificate(
            point.fine,
            joint.corr - left,
            left - terms.spread(a),
            joint.corr,
            lambda_f,
            joint.largest,
            joint.anchor,
            other=lambda_c * jnp.abs(u).sum() - (a * u).sum(),
            rounding=eps * (largest + fine_size + jnp.abs(terms.fine_corr).max()),
        )
        apart = jnp.where(near, jnp.abs(residual(u, membership.T, point.fine)), 0)
        steep = ((jnp.abs(coarse_left) + lambda_c) * apart).sum()
        bent = (jnp.sqrt(jnp.maximum(jnp.diagonal(coarse[0]), 0)) * apart).sum() ** 2 / 2
        disagreement = (lambda_c + lambda_f) * jnp.abs(sums - point.coarse).sum()
        return bound._replace(gap=bound.gap + disagreement + steep + bent)

    coupling, rho_c, rho_f = rhos
    if method == "nested":
        chosen = (
            choose_rho(coupling, mean_diagonal(coarse[0])),
            choose_rho(rho_c, mean_diagonal(coarse[0])),
            choose_rho(rho_f, mu * mean_diagonal(fine[0])),
        )
        solver = _nested(
            coarse,
            fine,
            membership,
            weights,
            chosen,
            certify,
            inner_steps=inner_steps,
            inner_tolerance=tolerance / 10,
        )
    else:
        solver = _eliminated(terms, certify)
        max_steps = jnp.minimum(max_steps, MOST_STEPS)
    advance, bound, begin, value, ridge = solver
    run = iterate(advance, bound, begin, tolerance=tolerance, max_steps=max_steps)
    return Solution(value(run.state), run.converged, run.steps, run.gap, ridge)


def _nested(
    coarse: tuple[Array, Array],
    fine: tuple[Array, Array],
    t: Array,
    weights: tuple[Array, Array, Array],
    rhos: tuple[Array, Array, Array],
    certify: Callable[[Point], Certificate],
    *,
    inner_steps: int,
    inner_tolerance: float | Array,
) -> _Method:
    """Algorithm 1. Both matrices are factored once, before the loops."""
    lambda_c, lambda_f, mu = weights
    coupling, rho_c, rho_f = rhos
    (gram_c, corr_c), (gram_f, corr_f) = coarse, fine
    factor_c = factor(with_ridge(gram_c, coupling + rho_c))
    factor_f = factor(with_ridge(mu * gram_f + coupling * _matmul(t, t.T), rho_f))
    matrix_c, matrix_f = inverse(factor_c.lower), inverse(factor_f.lower)
    usable = all_finite((matrix_c, matrix_f), 0)

    def scale(
        state: _Scale, right: Array, matrix: Array, rho: Array, ridge: Array, penalty: Array
    ) -> _Scale:
        """An inner loop: `right` is what does not change in (28) or (38)."""
        rho = rho + ridge

        def step(state: _Scale) -> _Scale:
            w = product(matrix, right + rho * (state.m + state.g))  # (28), (38)
            m = soft_threshold(w - state.g, penalty / rho)  # (30), (40)
            g = state.g - (w - m)  # (31), (41)
            return _Scale(w, m, g, rho * jnp.abs(m - state.m).max())

        def settled(state: _Scale) -> Certificate:
            return Certificate(
                jnp.maximum(rho * jnp.abs(state.w - state.m).max(), state.change),
                jnp.abs(right).max(),
            )

        start = step(state)
        return iterate(step, settled, start, tolerance=inner_tolerance, max_steps=inner_steps).state

    def step(state: tuple[_Scale, _Scale, Array]) -> tuple[_Scale, _Scale, Array]:
        c, f, g = state
        right_c = corr_c + coupling * (_matmul(f.w, t) - g)
        c = scale(c, right_c, matrix_c, rho_c, factor_c.ridge, lambda_c)
        right_f = mu * corr_f + coupling * _matmul(t, c.w + g)
        f = scale(f, right_f, matrix_f, rho_f, factor_f.ridge, lambda_f)
        g = g - (_matmul(f.w, t) - c.w)  # (42)
        return c, f, g

    def bound(state: tuple[_Scale, _Scale, Array]) -> Certificate:
        c, f, _ = state
        found = certify(Point(f.m, c.m, -(rho_c + factor_c.ridge) * c.g))
        return found._replace(gap=jnp.where(usable, found.gap, jnp.nan))

    def zero(corr: Array) -> _Scale:
        empty = jnp.zeros_like(corr)
        return _Scale(empty, empty, empty, jnp.full((), jnp.finfo(corr.dtype).max))

    start = (zero(corr_c), zero(corr_f), jnp.zeros_like(corr_c))
    ridge = jnp.maximum(factor_c.ridge, factor_f.ridge)
    return _Method(step, bound, start, lambda state: TwoScale(state[0].m, state[1].m), ridge)


def _eliminated(terms: Terms, certify: Callable[[Point], Certificate]) -> _Method:
    """Interior points; see `jaxplain.solvers.interior`."""
    return _Method(
        lambda state: step(terms, state, lambda point: certify(point).gap),
        lambda state: certify(state.best),
        start(terms),
        lambda state: TwoScale(state.best.coarse, state.best.fine),
        jnp.zeros_like(terms.fine_penalty),
    )


def _eliminate(
    coarse: tuple[Array, Array],
    fine: tuple[Array, Array],
    t: Array,
    mu: Array,
    penalty: Array,
    energy: float | Array | None,
) -> _Joint:
    """H = T G_c Tᵀ + μ G_f and h = T q_c + μ q_f."""
    gram = _matmul(_matmul(t, coarse[0]), t.T) + mu * fine[0]
    corr = _matmul(t, coarse[1]) + mu * fine[1]
    whole = None if energy is None else (1 + mu) * jnp.asarray(energy, corr.dtype)
    anchor = find_anchor(lambda: gram, corr, penalty, whole)
    return _Joint(gram, corr, jnp.diagonal(gram).max(), anchor)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
