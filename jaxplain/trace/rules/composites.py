"""Composites: which relevance rule each kind of layer of a network gets."""

from jaxplain.trace.compounds import NORMALIZATION
from jaxplain.trace.rules.relevance import (
    AlphaBeta,
    Epsilon,
    Excitation,
    Flat,
    Gamma,
    Pass,
    ZBox,
)
from jaxplain.trace.rules.rule import Rule, RuleSet

# Activations that hand their relevance on: their slope is nowhere that of a gate.
SMOOTH = (
    "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "hard_swish", "hard_silu", "mish",
    "relu6",
)  # fmt: skip
# Normalization hands its relevance on, too: it divides a unit by what its neighbours are. Zhang et
# al. treat it so; Binder et al. 2016, arXiv:1604.00825, compare it with a Taylor expansion.
_PASS: tuple[tuple[str, Rule], ...] = tuple((kind, Pass()) for kind in (*SMOOTH, NORMALIZATION))
_RELUS = frozenset({"relu", "max_pool"})


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
