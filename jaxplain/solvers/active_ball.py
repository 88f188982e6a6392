r"""The μ-Lasso by active sets: from a rough point, a handful of linear systems to the exact one.

w minimises :math:`\tfrac12 w^T Q w - q \cdot w` inside :math:`\|w\|_1 \le \mu` exactly if, for its
support A and signs s, there is a :math:`\lambda \ge 0` with

.. math:: Q_{AA} w_A = q_A - \lambda s_A, \qquad
    \lambda = \max\Bigl(0, \frac{s_A \cdot Q_{AA}^{-1} q_A - \mu}{s_A \cdot Q_{AA}^{-1} s_A}\Bigr)

and no slope outside A above λ. A turn solves this for the last A and s; then features whose weight
has the wrong sign leave, and those whose slope is above λ enter, all at once. These are the primal
dual active sets of Hintermüller, Ito and Kunisch (SIAM J. Optim. 2002), here with λ an unknown as
well. From the support of a few projected gradients they repeat after three to seven turns, and the
point is then exact. They may cycle, and do not exist where :math:`Q_{AA}` is singular: what they
have found is then a start for slower methods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array

from jaxplain.solvers.active import Best
from jaxplain.solvers.linear import dot, product
from jaxplain.solvers.loop import Certificate, Solution, closed

TURNS = 12


class _Turn(NamedTuple):
    """Where the turns have led.

    Attributes:
        best: the best point.
        sign: the signs of the next active set, 0 outside.
        turns: systems solved.
        going: the set has changed, and nothing was NaN.
    """

    best: Best
    sign: Array
    turns: Array
    going: Array


def finish(
    gram: Array,
    corr: Array,
    radius: Array,
    certify: Callable[[Array, Array], Certificate],
    start: Solution,
    tolerance: Array,
    max_steps: Array,
    *,
    nonnegative: bool = False,
) -> Solution:
    """Goes on from a rough solution; the best point met, which may be the start.

    Args:
        gram: Q.
        corr: q.
        radius: μ.
        certify: from a point and its product with Q to its certificate.
        start: where to start from, inside the ball.
        tolerance: relative gap that counts as converged.
        max_steps: limit on the steps, those of `start` included.
        nonnegative: whether w ≥ 0.
    """
    d = corr.shape[-1]
    table = jnp.array(sizes(d))

    def solve(sign: Array, *, size: int) -> tuple[Array, Array, Array, Array]:
        """The minimiser for these signs, its product with Q, λ, and the signs that it asks for."""
        chosen = lax.top_k(jnp.abs(sign), size)[1]
        s, q = sign[chosen], corr[chosen]
        inside = s != 0
        # In units in which the diagonal is one; outside A the identity stands.
        unit = jnp.where(inside, lax.rsqrt(jnp.where(inside, gram[chosen, chosen], 1)), 0)
        own = gram[chosen[:, None], chosen[None, :]] * unit[:, None] * unit[None, :]
        own = own + jnp.diag((~inside).astype(own.dtype))
        lower = lax.linalg.cholesky(own, symmetrize_input=False)
        right = jnp.stack([q, s], axis=1) * unit[:, None]
        free, pull = (cho_solve((lower, True), right) * unit[:, None]).T
        level = jnp.maximum(0, (dot(s, free) - radius) / dot(s, pull))
        found = free - level * pull
        w = jnp.zeros_like(corr).at[chosen].set(found)
        image = product(gram, w)
        slope = corr - image
        steep = (slope > level).astype(corr.dtype)
        if not nonnegative:
            steep = steep - (slope < -level)
        stays = jnp.where(jnp.sign(found) == s, s, 0)
        sign = jnp.where(sign != 0, 0, steep).at[chosen].add(stays)
        # Until the signs agree, the norm may be above μ.
        length = jnp.abs(found).sum()
        share = jnp.minimum(1, radius / jnp.where(length > 0, length, 1))
        return share * w, share * image, level, sign

    branches = [functools.partial(solve, size=size) for size in sizes(d)]

    def going(turn: _Turn) -> Array:
        fits = (turn.sign != 0).sum() <= table[-1]
        limit = jnp.minimum(TURNS, max_steps - start.steps)
        return turn.going & fits & (turn.turns < limit) & ~closed(turn.best.bound, tolerance)

    def step(turn: _Turn) -> _Turn:
        count = (turn.sign != 0).sum()
        w, image, level, sign = lax.switch((table < count).sum(), branches, turn.sign)
        bound = certify(w, image)
        sound = jnp.isfinite(level) & ~jnp.isnan(bound.gap)
        changed = (sign != turn.sign).any()
        return _Turn(turn.best.or_better(w, bound), sign, turn.turns + 1, sound & changed)

    # A support that is still too large may well end small: its largest weights are tried.
    largest = lax.top_k(jnp.abs(start.value), sizes(d)[-1])[1]
    sign = jnp.zeros_like(corr).at[largest].set(jnp.sign(start.value[largest]))
    # Of the start, only the gap is known.
    best = Best(start.value, Certificate(start.gap, jnp.zeros_like(start.gap)))
    none = jnp.zeros((), jnp.int32)
    last = lax.while_loop(going, step, _Turn(best, sign, none, (sign != 0).any()))
    best = last.best
    converged = start.converged | closed(best.bound, tolerance)
    return Solution(best.point, converged, start.steps + last.turns, best.bound.gap, start.ridge)


def sizes(d: int) -> list[int]:
    """Sizes of systems for d features: what a set is filled up to; each is compiled.

    No support above the last one is solved for, which bounds the memory.

    >>> sizes(50), sizes(1000), sizes(9000)
    ([50], [128, 256, 384, 512], [128, 256, 384, 512, 1024, 2048])
    """
    if d <= 512:
        return [*[size for size in (128, 256) if size < 0.8 * d], d]
    found = [128, 256, 384, 512]
    while 8 * found[-1] <= d:
        found.append(2 * found[-1])
    return found
