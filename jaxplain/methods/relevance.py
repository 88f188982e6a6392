"""Methods made of rules: guided backprop, deconvnet, LRP, excitation backprop.

All are `jaxplain.backpropagate` with a rule set of `jaxplain.rules`, where equations and references
stand; they return the audit beside the map and, in strict mode, refuse networks that the rules do
not cover.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxplain.methods.method import explainer, map_layer, no_positions, resize_maps
from jaxplain.model import Model
from jaxplain.scores import Score
from jaxplain.trace import Audit, RuleSet, UncoveredError, backpropagate
from jaxplain.trace.backward import LAST_INPUT, Seed, Sweep, one_hot
from jaxplain.trace.rules import (
    DECONVNET,
    GUIDED_BACKPROP,
    epsilon_alpha2_beta1,
    epsilon_gamma_box,
    epsilon_plus,
    excitation_rules,
    lrp_alpha_beta,
    lrp_epsilon,
    lrp_gamma,
    lrp_z_plus,
)


class Attribution(NamedTuple):
    """What a rule method attributes to the input.

    Attributes:
        attribution: (B, H, W, C).
        audit: which rule every site of the network got.
    """

    attribution: Float[Array, "b h w c"]
    audit: Audit


@explainer("score", "strict")
def guided_backprop(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    score: Score = "logit",
    strict: bool = True,
) -> Attribution:
    """Return the guided backprop of each target (Springenberg et al. 2015, arXiv:1412.6806).

    Every ReLU lets only positive signals back, and only where it was open.

    Args:
        model: any model with ReLUs.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        score: as in `gradient`.
        strict: as in `backpropagate`.

    Returns:
        Attributions (B, H, W, C) and the audit.

    Raises:
        UncoveredError: no ReLU, or a non-linearity without a rule.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> found = jxp.guided_backprop(model, jnp.ones((1, 28, 28, 1)), jnp.array([3]))
        >>> found.attribution.shape
        (1, 28, 28, 1)
    """
    found = backpropagate(model, images, targets, GUIDED_BACKPROP, score=score, strict=strict)
    return Attribution(found.attribution, found.audit)


@explainer("score", "strict")
def deconvnet(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    score: Score = "logit",
    strict: bool = True,
) -> Attribution:
    """Return the deconvnet map of each target (Zeiler and Fergus 2014, arXiv:1311.2901).

    Every ReLU lets only positive signals back, whether it was open or not; poolings route to the
    winner.

    Args:
        model: any model with ReLUs.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        score: as in `gradient`.
        strict: as in `backpropagate`.

    Returns:
        Attributions (B, H, W, C) and the audit.

    Raises:
        UncoveredError: no ReLU, or a non-linearity without a rule.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> found = jxp.deconvnet(model, jnp.ones((1, 28, 28, 1)), jnp.array([3]))
        >>> found.attribution.shape
        (1, 28, 28, 1)
    """
    found = backpropagate(model, images, targets, DECONVNET, score=score, strict=strict)
    return Attribution(found.attribution, found.audit)


Lrp = Literal[
    "epsilon", "gamma", "alpha2_beta1", "z_plus", "epsilon_plus", "epsilon_plus_flat",
    "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box",
]  # fmt: skip


def lrp_rules(rules: Lrp, model: Model) -> RuleSet:
    """Return the rule set of an LRP variant.

    The box of EpsilonGammaBox is what `model.preprocessing` can produce.

    Raises:
        ValueError: no such variant, or a box for a model without preprocessing.
    """
    match rules:
        case "epsilon":
            return lrp_epsilon()
        case "gamma":
            return lrp_gamma()
        case "alpha2_beta1":
            return lrp_alpha_beta()
        case "z_plus":
            return lrp_z_plus()
        case "epsilon_plus" | "epsilon_plus_flat":
            return epsilon_plus(flat=rules.endswith("flat"))
        case "epsilon_alpha2_beta1" | "epsilon_alpha2_beta1_flat":
            return epsilon_alpha2_beta1(flat=rules.endswith("flat"))
        case "epsilon_gamma_box":
            if model.preprocessing is None:
                raise ValueError(
                    "rules='epsilon_gamma_box' needs model.preprocessing; "
                    "or pass jaxplain.rules.epsilon_gamma_box(low, high)"
                )
            low, high = (tuple(bound.tolist()) for bound in model.preprocessing.bounds())
            return epsilon_gamma_box(low, high)
    raise ValueError(f"rules={rules!r}; expected a RuleSet or one of {get_args(Lrp)}")


@explainer("rules", "strict")
def lrp(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    rules: RuleSet | Lrp = "epsilon_plus",
    strict: bool = True,
) -> Attribution:
    """Return the layer-wise relevance propagation of each target.

    Bach et al. 2015, doi:10.1371/journal.pone.0130140.

    Relevance 1 starts at the target's logit. Batch norm is folded into the convolution before it.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        rules: the name of a composite, or a rule set made with `jaxplain.rules`.
        strict: as in `backpropagate`.

    Returns:
        Relevance (B, H, W, C), which sums to 1 up to what biases and the stabiliser keep, and the
        audit.

    Raises:
        UncoveredError: a non-linearity without a rule.
        ValueError: an unknown composite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> found = jxp.lrp(model, jnp.ones((1, 28, 28, 1)), jnp.array([3]), rules="z_plus")
        >>> found.attribution.shape
        (1, 28, 28, 1)
    """
    chosen = rules if isinstance(rules, RuleSet) else lrp_rules(rules, model)
    found = backpropagate(model, images, targets, chosen, strict=strict)
    return Attribution(found.attribution, found.audit)


class Excitation(NamedTuple):
    """An excitation backprop map.

    Attributes:
        heatmap: (B, H, W), or (B, h, w) at the layer's size; the latter sums to one for plain
            excitation backprop.
        audit: which rule every site behind the layer got.
    """

    heatmap: Float[Array, "b y x"]
    audit: Audit


@explainer("layer", "upsample", "strict")
def excitation_backprop(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    layer: str | None = None,
    upsample: bool = True,
    strict: bool = True,
) -> Excitation:
    """Return the marginal winning probability of every position of a layer.

    Zhang et al. 2016, arXiv:1608.00507.

    Args:
        model: any model with non-negative activations.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        layer: where the map is read; None takes `model.evidence_layer`, else `model.default_layer`.
            The input itself will not do: its values may be negative.
        upsample: resize to (H, W).
        strict: as in `backpropagate`.

    Returns:
        The map, summed over channels, and the audit.

    Raises:
        UncoveredError: a non-linearity without a rule, or activations that may be negative.
        ValueError: no such layer, or one without positions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> found = jxp.excitation_backprop(model, images, targets, layer="pool2", upsample=False)
        >>> print(f"{float(found.heatmap.sum()):.3f}")
        1.000
    """
    layer = map_layer(model, layer, evidence=True)
    rules = excitation_rules()
    sweep = Sweep(model, images)
    seed = {"logits": Seed(relevance=one_hot(targets, sweep.logits))}
    found = sweep.pull(rules, seed, [layer], strict=strict)[layer].value
    audit = sweep.audit(rules, strict=strict, layers=[layer])
    _check_excitable(audit, strict=strict)
    return Excitation(_summed(found, layer, images, upsample), audit)


@explainer("layer", "contrast", "upsample", "strict")
def contrastive_excitation_backprop(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    layer: str | None = None,
    contrast: str | None = None,
    upsample: bool = True,
    strict: bool = True,
) -> Excitation:
    """Return the winning probability of the target minus that of its dual, where positive.

    Zhang et al. 2016, arXiv:1608.00507, section 3.3. The dual unit has the last dense layer's
    weights turned round. Both signals travel to the contrast layer, are subtracted, and go on as
    one.

    Args:
        model: any model with non-negative activations.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        layer: as in `excitation_backprop`.
        contrast: where the signals are subtracted; None takes the input of the last dense layer.
        upsample: resize to (H, W).
        strict: as in `backpropagate`.

    Returns:
        The map, summed over channels and non-negative, and the audit.

    Raises:
        UncoveredError: a non-linearity without a rule, or activations that may be negative.
        ValueError: no such layer, or one without positions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> jxp.contrastive_excitation_backprop(model, images, targets).heatmap.shape
        (1, 28, 28)
    """
    layer = map_layer(model, layer, evidence=True)
    rules = excitation_rules()
    sweep = Sweep(model, images)
    seed = {"logits": Seed(relevance=one_hot(targets, sweep.logits))}
    audit = sweep.audit(rules, strict=strict, layers=[layer])
    _check_excitable(audit, strict=strict)
    # Checked as a whole: behind the contrast layer, say, there may be nothing left to match.
    at = contrast or LAST_INPUT
    target = sweep.pull(rules, seed, [at], strict=False)[at].value
    dual = sweep.pull(excitation_rules(negative_last=True), seed, [at], strict=False)[at].value
    found = sweep.pull(rules, {at: Seed(relevance=target - dual)}, [layer], strict=False)[
        layer
    ].value
    maps = jnp.maximum(found.sum(-1), 0)[..., None]
    return Excitation(_summed(maps, layer, images, upsample), audit)


def _check_excitable(audit: Audit, *, strict: bool) -> None:
    """Raise UncoveredError where a layer may read negative values: they have no probability."""
    signed = [
        f"{site.kind} at {site.layer}"
        for site in audit.sites
        if site.kind in ("conv", "dense") and site.nonnegative is False
    ]
    if strict and signed:
        raise UncoveredError(
            "excitation backprop needs activations that are nowhere negative, as behind ReLUs; "
            f"not proved of what is read by {', '.join(signed)}. Read a layer behind it, or pass "
            "strict=False if it is so."
        )


def _summed(found: jax.Array, layer: str, images: jax.Array, upsample: bool) -> jax.Array:
    if found.ndim != 4:
        raise ValueError(no_positions(layer, found.shape))
    maps = found.sum(-1)
    return resize_maps(maps, images.shape[1:3]) if upsample else maps
