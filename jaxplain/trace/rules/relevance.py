r"""Relevance rules of affine sites, and the one of activations.

Notation: $z = x \cdot w + b$ with batch norm folded into $w$ and $b$; $T_w(s)$ is the transpose of
$x \mapsto x \cdot w$; $a^+ = \max(a, 0)$, $a^- = \min(a, 0)$.

References:
    Bach et al. 2015, doi:10.1371/journal.pone.0130140 (LRP). Montavon et al. 2017, arXiv:1512.02479
    (deep Taylor, z^B). Andeol et al. 2021, arXiv:2108.12204 (generalised gamma). Zhang et al. 2016,
    arXiv:1608.00507 (excitation backprop).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxplain.trace.rules.rule import At, Relevance, divide, stabilise


def _positive(a: jax.Array) -> jax.Array:
    return jnp.maximum(a, 0)


def _negative(a: jax.Array) -> jax.Array:
    return jnp.minimum(a, 0)


@dataclasses.dataclass(frozen=True)
class Pass:
    """An activation hands its relevance on: R_in = R_out."""

    def __call__(self, at: At, arriving: jax.Array) -> Relevance:
        """Return the relevance at the input."""
        return Relevance(arriving)


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """LRP-epsilon: c = T_w(R / (z + epsilon sign z)). The bias keeps its share."""

    epsilon: float = 1e-6

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return R_in / x."""
        return at.transpose(arriving / stabilise(at.out, self.epsilon), at.weight)


@dataclasses.dataclass(frozen=True)
class Gamma:
    """LRP-gamma, generalised to inputs and outputs of either sign (Andeol et al. 2021).

    Where z > 0, contributions that raise z are favoured, x^+ (w + gamma w^+) + x^- (w + gamma w^-);
    where z < 0, those that lower it.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return R_in / x."""
        w, b, gamma = at.weight, at.bias, self.gamma
        raised, lowered = w + gamma * _positive(w), w + gamma * _negative(w)
        up = _signed(at, raised, lowered) + b + gamma * _positive(b)
        down = _signed(at, lowered, raised) + b + gamma * _negative(b)
        s_up = jnp.where(at.out > 0, arriving, 0) / stabilise(up, self.epsilon)
        s_down = jnp.where(at.out < 0, arriving, 0) / stabilise(down, self.epsilon)
        return _where_signed(
            at,
            lambda: at.transpose(s_up, raised) + at.transpose(s_down, lowered),
            lambda: at.transpose(s_up, lowered) + at.transpose(s_down, raised),
        )


@dataclasses.dataclass(frozen=True)
class AlphaBeta:
    """LRP-alpha-beta: alpha times the raising shares minus beta times the lowering ones.

    alpha - beta = 1. The positive (negative) part of the bias counts as a contribution.
    z^+ is alpha = 1, beta = 0.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return R_in / x."""
        wp, wn = _positive(at.weight), _negative(at.weight)
        raising = _signed(at, wp, wn) + _positive(at.bias)
        up = self.alpha * arriving / stabilise(raising, self.epsilon)
        if not self.beta:
            return _where_signed(at, lambda: at.transpose(up, wp), lambda: at.transpose(up, wn))
        lowering = _signed(at, wn, wp) + _negative(at.bias)
        down = self.beta * arriving / stabilise(lowering, self.epsilon)
        return _where_signed(
            at,
            lambda: at.transpose(up, wp) - at.transpose(down, wn),
            lambda: at.transpose(up, wn) - at.transpose(down, wp),
        )


def _signed(at: At, for_positive: jax.Array, for_negative: jax.Array) -> jax.Array:
    """Return x^+ . w1 + x^- . w2; one product where x is known to be nowhere negative."""
    if at.site.nonnegative:
        return at.product(at.x, for_positive)
    return at.product(_positive(at.x), for_positive) + at.product(_negative(at.x), for_negative)


def _where_signed(
    at: At, for_positive: Callable[[], jax.Array], for_negative: Callable[[], jax.Array]
) -> jax.Array:
    """Return the first where x >= 0, the second elsewhere."""
    if at.site.nonnegative:
        return for_positive()
    return jnp.where(at.x >= 0, for_positive(), for_negative())


@dataclasses.dataclass(frozen=True)
class ZBox:
    """LRP-z^B for inputs between `low` and `high`: numbers, or one a channel.

    R_in = x T_w(s) - low T_w+(s) - high T_w-(s), s = R / (z - low . w^+ - high . w^-).
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    epsilon: float = 1e-6

    def __call__(self, at: At, arriving: jax.Array) -> Relevance:
        """Return R_in."""
        wp, wn = _positive(at.weight), _negative(at.weight)
        low, high = (self._bound(name, at) for name in ("low", "high"))
        z = at.product(at.x, at.weight) - at.product(low, wp) - at.product(high, wn)
        s = arriving / stabilise(z, self.epsilon)
        return Relevance(
            at.x * at.transpose(s, at.weight)
            - low * at.transpose(s, wp)
            - high * at.transpose(s, wn)
        )

    def _bound(self, name: str, at: At) -> jax.Array:
        bound = jnp.asarray(getattr(self, name), at.x.dtype)
        if bound.ndim:
            axis = at.input_axis
            channels = None if axis is None else at.x.shape[axis]
            if bound.shape != (channels,):
                raise ValueError(
                    f"{name} of the box has {bound.size} values; layer {at.site.layer!r} has "
                    f"{channels or 'no'} input channels"
                )
            bound = bound.reshape([-1 if d == axis else 1 for d in range(at.x.ndim)])
        return jnp.broadcast_to(bound, at.x.shape)


@dataclasses.dataclass(frozen=True)
class Flat:
    """LRP-flat: every input in the window gets the same share, R_in = T_1(R / (1 . 1))."""

    epsilon: float = 1e-6

    def __call__(self, at: At, arriving: jax.Array) -> Relevance:
        """Return R_in."""
        ones = jnp.ones_like(at.weight)
        count = at.product(jnp.ones_like(at.x), ones)
        return Relevance(at.transpose(arriving / stabilise(count, self.epsilon), ones))


@dataclasses.dataclass(frozen=True)
class Excitation:
    """Excitation backprop: P_in = x T_w+(P / (x . w^+)), and 0 where the denominator is 0.

    P is the marginal winning probability.

    `sign` = -1 propagates through the inhibitory weights instead: the dual unit of contrastive
    excitation backprop. Biases and batch norms do not compete: a unit hands on all of its
    probability to the inputs that excite it.
    """

    sign: float = 1.0

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return P_in / x."""
        w = _positive(self.sign * at.weight)
        return at.transpose(divide(arriving, at.product(at.x, w)), w)
