r"""Rules: what a site sends backwards instead of its derivative.

Two families share one sweep (`jaxplain.trace.backward`):

- *gradient rules* receive the cotangent that arrives at the site's output and return the one for
  its input (guided backprop, deconvnet);
- *relevance rules* receive the relevance $R_{out}$ that arrives and return $c = R_{in}/x$, or
  $R_{in}$ itself as `Relevance` where the rule does not start from $x$ (layer-wise relevance
  propagation, excitation backprop).

Notation of the affine rules: $z = x \cdot w + b$ with batch norm folded into $w$ and $b$; $T_w(s)$
is the transpose of $x \mapsto x \cdot w$; $a^+ = \max(a, 0)$, $a^- = \min(a, 0)$.

References:
    Bach et al. 2015, doi:10.1371/journal.pone.0130140 (LRP). Montavon et al. 2017, arXiv:1512.02479
    (deep Taylor, z^B). Andeol et al. 2021, arXiv:2108.12204 (generalised gamma). Zhang et al. 2016,
    arXiv:1608.00507 (excitation backprop). Springenberg et al. 2015, arXiv:1412.6806 (guided
    backprop). Zeiler and Fergus 2014, arXiv:1311.2901 (deconvnet).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxplain.trace.compounds import NORMALIZATION
from jaxplain.trace.resampling import unit_stride_convolution, unit_stride_pooling
from jaxplain.trace.sites import Site


class Relevance(NamedTuple):
    """Relevance at a site's input, where a rule gives it directly."""

    value: jax.Array


@dataclasses.dataclass(frozen=True)
class At:
    """A site with its values, as a rule sees it.

    Attributes:
        site: what it is.
        x: its input.
        out: its output; of an affine site in the layout of the product.
        weight: of an affine site, the weights with scale folded in; else None.
        bias: of an affine site, the shift, broadcastable to `out`; else None.
        linear: of an affine site, (x, w) -> x . w.
        input_axis: of an affine site, the axis of the input's channels, if there is exactly one.
        back: of a plain convolution, (signal, w) -> T_w(signal) in a form that is fast in loops.
        params: what the site's first equation is told: strides, padding and the like.
    """

    site: Site
    x: jax.Array
    out: jax.Array
    weight: Any = None
    bias: Any = None
    linear: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    input_axis: int | None = None
    back: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def product(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """Return x . w."""
        assert self.linear is not None
        return self.linear(x, weight)

    def transpose(self, signal: jax.Array, weight: jax.Array) -> jax.Array:
        """Return T_w(signal)."""
        if self.back is not None:
            return self.back(signal, weight)
        _, pull = jax.vjp(lambda x: self.product(x, weight), self.x)
        return pull(signal)[0]


@runtime_checkable
class Rule(Protocol):
    """A hashable function of a site and of what arrives at its output.

    One that has a method `covers(site)` is for the sites of which that is true; the others of its
    kind keep their own derivative.
    """

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array | Relevance:
        """Return what leaves at the site's input."""
        ...


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """Which rule each kind of site gets. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        name: what reports call it.
        rules: (kind, rule) pairs. Kinds are those of `jaxplain.trace.sites.Site`, or names of
            primitives ("tanh").
        transparent: kinds whose own derivative is what this rule set means.
        require: in strict mode at least one site must be of one of these kinds.
        relevance: whether relevance is propagated (and returned) instead of a cotangent.
        first: rule of the affine sites before which there is no other, or None.
        last: rule of the affine sites behind which there is no other, or None.

    Example:
        >>> from jaxplain import Model, RuleSet, backpropagate
        >>> def halved(at, arriving):
        ...     return arriving / 2
        >>> rules = RuleSet("halved", (("relu", halved),), require=("relu",))
        >>> model = Model.from_function(lambda _, x: jax.nn.relu(x).sum((1, 2)))
        >>> found = backpropagate(model, jnp.ones((1, 2, 2, 1)), jnp.array([0]), rules)
        >>> found.attribution[0, ..., 0].tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """

    name: str
    rules: tuple[tuple[str, Rule], ...]
    transparent: frozenset[str] = frozenset({"max_pool", NORMALIZATION})
    require: tuple[str, ...] = ()
    relevance: bool = False
    first: Rule | None = None
    last: Rule | None = None

    def rule(self, site: Site) -> Rule | None:
        """Return the rule of a site, or None where its own derivative holds.

        Example:
            >>> relu = Site("relu", equations=(4,), input=3, output=5)
            >>> GUIDED_BACKPROP.rule(relu), NO_RULES.rule(relu)
            (Guided(), None)
        """
        affine = site.kind in ("conv", "dense")
        if affine and site.first and self.first is not None:
            return self.first
        if affine and site.last and self.last is not None:
            return self.last
        rule = dict(self.rules).get(site.kind)
        covers = getattr(rule, "covers", None)
        return rule if covers is None or covers(site) else None


def stabilise(z: jax.Array, epsilon: float) -> jax.Array:
    """Return z + epsilon sign(z), with sign(0) = 1.

    Example:
        >>> stabilise(jnp.array([0.0, -2.0]), 0.5).tolist()
        [0.5, -2.5]
    """
    return z + jnp.where(z >= 0, epsilon, -epsilon).astype(z.dtype)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return the quotient, and 0 where the denominator is 0.

    Example:
        >>> divide(jnp.array([1.0, 1.0]), jnp.array([4.0, 0.0])).tolist()
        [0.25, 0.0]
    """
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))


def _positive(a: jax.Array) -> jax.Array:
    return jnp.maximum(a, 0)


def _negative(a: jax.Array) -> jax.Array:
    return jnp.minimum(a, 0)


# -- gradient rules --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Guided:
    """Guided backprop: g_in = g [g > 0] [0 < x < cap]."""

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return the cotangent at the input."""
        opened = at.x > 0
        if at.site.cap < math.inf:
            opened &= at.x < at.site.cap
        return jnp.where(opened, _positive(arriving), 0)


@dataclasses.dataclass(frozen=True)
class Deconv:
    """Deconvnet: g_in = g [g > 0], whatever the input was."""

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return the cotangent at the input."""
        return _positive(arriving)


@dataclasses.dataclass(frozen=True)
class UnitStride:
    """A strided site run backwards at stride one, with what arrives resampled to fit.

    Oramas et al. 2019, §3.3, eqs. (2) and (3). A site without a stride keeps its own derivative.
    """

    def covers(self, site: Site) -> bool:
        """Say whether a site has a stride.

        Example:
            >>> UnitStride().covers(Site("conv", (0,), 1, 2, strides=(1, 2)))
            True
        """
        return any(step != 1 for step in site.strides)

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return the cotangent at the input."""
        if at.site.kind == "conv":
            return unit_stride_convolution(arriving, at.weight, at.x, at.params)
        return unit_stride_pooling(arriving, at.x, at.params, largest=at.site.kind == "max_pool")


# -- relevance rules -------------------------------------------------------------------------------


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


# Activations that hand their relevance on: their slope is nowhere that of a gate.
SMOOTH = (
    "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "hard_swish", "hard_silu", "mish",
    "relu6",
)  # fmt: skip
# Normalization hands its relevance on, too: it divides a unit by what its neighbours are. Zhang et
# al. treat it so; Binder et al. 2016, arXiv:1604.00825, compare it with a Taylor expansion.
_PASS: tuple[tuple[str, Rule], ...] = tuple((kind, Pass()) for kind in (*SMOOTH, NORMALIZATION))
_RELUS = frozenset({"relu", "max_pool"})

# Every equation keeps its own derivative: the plain gradient.
NO_RULES = RuleSet("gradient", ())
GUIDED_BACKPROP = RuleSet(
    "guided backprop", (("relu", Guided()), ("relu6", Guided())), require=("relu", "relu6")
)
DECONVNET = RuleSet(
    "deconvnet", (("relu", Deconv()), ("relu6", Deconv())), require=("relu", "relu6")
)


def unit_stride(*, pooling: bool = False) -> RuleSet:
    """Return guided backprop with strided convolutions run backwards at stride one.

    Oramas et al. 2019, §3.3: a stride S sends every signal to one window in S × S, and leaves a
    grid in the map. Here what arrives at a strided convolution is resampled (nearest neighbour) to
    the size that its output would have at stride one, and goes back through that convolution. A
    signal is thereby repeated about S × S times, which scales the map. Without strides the result
    is guided backprop, bit for bit.

    Args:
        pooling: do so in strided pooling, too (maximum and sum, so averages); the authors do not.
            A maximum over windows at stride one then hands each signal to several winners.

    Example:
        >>> unit_stride().rules[-1], unit_stride(pooling=True).rules[-1]
        (('conv', UnitStride()), ('reduce_window_sum', UnitStride()))
    """
    kinds = ("conv", "max_pool", "reduce_window_sum") if pooling else ("conv",)
    return RuleSet(
        "guided backprop at unit stride" + (", pooling too" if pooling else ""),
        (*GUIDED_BACKPROP.rules, *((kind, UnitStride()) for kind in kinds)),
        require=GUIDED_BACKPROP.require,
    )


def relevance_rules(
    name: str, conv: Rule, dense: Rule, *, first: Rule | None = None, last: Rule | None = None
) -> RuleSet:
    """Return a relevance rule set: a rule for convolutions, one for dense layers, one for the ends.

    Activations and local response normalization hand their relevance on, maximum pooling routes it
    to the winner, sums share it in proportion.

    Example:
        >>> rules = relevance_rules("mine", conv=Gamma(0.5), dense=Epsilon(), first=Flat())
        >>> rules.relevance
        True
    """
    return RuleSet(
        name,
        (("conv", conv), ("dense", dense), *_PASS),
        transparent=_RELUS,
        require=("conv", "dense"),
        relevance=True,
        first=first,
        last=last,
    )


def excitation_rules(*, negative_last: bool = False) -> RuleSet:
    """Return the rules of excitation backprop.

    Args:
        negative_last: turn the last layer's weights round.

    Example:
        >>> excitation_rules().rules[0], excitation_rules(negative_last=True).last
        (('conv', Excitation(sign=1.0)), Excitation(sign=-1.0))
    """
    return relevance_rules(
        "excitation backprop" + (" (inhibitory last layer)" if negative_last else ""),
        Excitation(),
        Excitation(),
        last=Excitation(-1.0) if negative_last else None,
    )


def lrp_epsilon(epsilon: float = 1e-6) -> RuleSet:
    """Return LRP-epsilon on every layer.

    Args:
        epsilon: stabiliser, above zero; the larger, the more relevance it absorbs.

    Example:
        >>> lrp_epsilon(0.25).rules[:2]
        (('conv', Epsilon(epsilon=0.25)), ('dense', Epsilon(epsilon=0.25)))
    """
    return relevance_rules("LRP epsilon", Epsilon(epsilon), Epsilon(epsilon))


def lrp_gamma(gamma: float = 0.25, epsilon: float = 1e-6) -> RuleSet:
    """Return LRP-gamma on every layer.

    Args:
        gamma: weight of the favoured contributions; 0 is LRP-epsilon.
        epsilon: stabiliser.

    Example:
        >>> lrp_gamma(0.5).rules[0]
        ('conv', Gamma(gamma=0.5, epsilon=1e-06))
    """
    return relevance_rules("LRP gamma", Gamma(gamma, epsilon), Gamma(gamma, epsilon))


def lrp_alpha_beta(alpha: float = 2.0, beta: float = 1.0, epsilon: float = 1e-6) -> RuleSet:
    """Return LRP-alpha-beta on every layer.

    Args:
        alpha: weight of the contributions that raise a unit, at least 1.
        beta: weight of those that lower it, alpha - 1.
        epsilon: stabiliser.

    Raises:
        ValueError: alpha - beta is not 1, so that relevance would not be conserved.

    Example:
        >>> lrp_alpha_beta(3.0, 2.0).rules[0]
        ('conv', AlphaBeta(alpha=3.0, beta=2.0, epsilon=1e-06))
        >>> lrp_alpha_beta(2.0, 2.0)
        Traceback (most recent call last):
        ...
        ValueError: alpha=2.0, beta=2.0: alpha - beta must be 1 and alpha at least 1
    """
    if abs(alpha - beta - 1) > 1e-6 or alpha < 1:
        raise ValueError(f"alpha={alpha}, beta={beta}: alpha - beta must be 1 and alpha at least 1")
    rule = AlphaBeta(alpha, beta, epsilon)
    return relevance_rules("LRP alpha-beta", rule, rule)


def lrp_z_plus(epsilon: float = 1e-6) -> RuleSet:
    """Return LRP-z^+ on every layer.

    Args:
        epsilon: stabiliser.

    Example:
        >>> lrp_z_plus().rules[0]
        ('conv', AlphaBeta(alpha=1.0, beta=0.0, epsilon=1e-06))
    """
    rule = AlphaBeta(1.0, 0.0, epsilon)
    return relevance_rules("LRP z+", rule, rule)


def epsilon_plus(epsilon: float = 1e-6, *, flat: bool = False) -> RuleSet:
    """Return the composite EpsilonPlus: z^+ on convolutions, epsilon on dense layers.

    Args:
        epsilon: stabiliser of the dense layers.
        flat: share alike on the first layer.

    Example:
        >>> rules = epsilon_plus(flat=True)
        >>> rules.rules[1], rules.first
        (('dense', Epsilon(epsilon=1e-06)), Flat(epsilon=1e-06))
    """
    name = "LRP EpsilonPlusFlat" if flat else "LRP EpsilonPlus"
    return relevance_rules(
        name, AlphaBeta(1.0, 0.0, 1e-6), Epsilon(epsilon), first=Flat() if flat else None
    )


def epsilon_alpha2_beta1(epsilon: float = 1e-6, *, flat: bool = False) -> RuleSet:
    """Return the composite EpsilonAlpha2Beta1: alpha-beta on convolutions, epsilon on dense layers.

    Args:
        epsilon: stabiliser of the dense layers.
        flat: share alike on the first layer.

    Example:
        >>> epsilon_alpha2_beta1().rules[0]
        ('conv', AlphaBeta(alpha=2.0, beta=1.0, epsilon=1e-06))
    """
    name = "LRP EpsilonAlpha2Beta1Flat" if flat else "LRP EpsilonAlpha2Beta1"
    return relevance_rules(
        name, AlphaBeta(2.0, 1.0, 1e-6), Epsilon(epsilon), first=Flat() if flat else None
    )


def epsilon_gamma_box(
    low: float | tuple[float, ...],
    high: float | tuple[float, ...],
    *,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
) -> RuleSet:
    """Return the composite EpsilonGammaBox: z^B first, then gamma and, on dense layers, epsilon.

    Args:
        low: smallest value of a preprocessed pixel, one number or one a channel.
        high: largest value.
        epsilon: stabiliser of the dense layers.
        gamma: weight of the favoured contributions.

    Example:
        >>> epsilon_gamma_box(-1.0, 1.0).first
        ZBox(low=-1.0, high=1.0, epsilon=1e-06)
    """
    return relevance_rules(
        "LRP EpsilonGammaBox", Gamma(gamma, 1e-6), Epsilon(epsilon), first=ZBox(low, high)
    )
