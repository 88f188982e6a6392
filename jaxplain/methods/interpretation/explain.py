r"""What an answer rests on: the features of a class that respond most, each with a map of its own.

Oramas et al. 2019, §3.2: the weighted response of an image is :math:`r = w_{\hat j} \circ x`; the
features of the largest responses are shown, each by sending its channel's whole activation map
back to the image (guided backprop, at unit stride: §3.3).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxplain.methods.descent import gaussian_blur
from jaxplain.methods.interpretation.descriptors import Block, describe
from jaxplain.methods.interpretation.features import RelevantFeatures, check_features
from jaxplain.methods.method import check_inputs, resize_maps
from jaxplain.model import Model, check_differentiable
from jaxplain.names import unknown
from jaxplain.trace import Audit
from jaxplain.trace.backward import Seed, Sweep
from jaxplain.trace.layers import INPUT
from jaxplain.trace.rules import GUIDED_BACKPROP, RuleSet, unit_stride

P = ParamSpec("P")
R = TypeVar("R")

RULES: dict[str, RuleSet] = {
    "unit_stride": unit_stride(),
    "unit_stride_pooling": unit_stride(pooling=True),
    "guided": GUIDED_BACKPROP,
}
FEEDBACK = (*RULES, "activation")
SIGNS = ("positive", "both")
STATIC = ("top", "feedback", "signs", "smoothing", "strict")


class Interpretation(NamedTuple):
    """The features that an answer rests on.

    Attributes:
        heatmap: (B, H, W), 0 to 1: at every pixel the largest value of the features' maps.
        maps: (B, k, H, W), 0 to 1, the strongest feature first; zero where there is none left.
        features: (B, k) which number of the descriptor each is; see `RelevantFeatures.feature`.
        responses: (B, k) r; zero where there is none left.
        audit: which rule every site of the network got; None for upsampled activations.
    """

    heatmap: Float[Array, "b h w"]
    maps: Float[Array, "b k h w"]
    features: Int[Array, "b k"]
    responses: Float[Array, "b k"]
    audit: Audit | None = None


def _checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check what is given and compile the function, as `explainer` does; features besides."""
    compiled = jax.jit(function, static_argnames=STATIC)

    @functools.wraps(function)
    def checked(model: Model, images: Any, targets: Any, **options: Any) -> R:
        check_differentiable(model, "interpretation")
        images, targets = check_inputs(model, images, targets)
        check_features(options.get("importance"), targets)
        return compiled(model, images, targets, **options)

    return checked  # type: ignore[return-value]


@_checked
def explain(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    importance: RelevantFeatures,
    top: int = 3,
    feedback: str = "unit_stride",
    signs: str = "positive",
    smoothing: float = 0.0,
    strict: bool = True,
) -> Interpretation:
    """Return the features that a class rests on in each image, with their maps.

    Oramas et al. 2019, "Visual Explanation by Interpretation", §3.2, arXiv:1712.06302. A map is the
    length over the colours of what arrives at the image, from 0 to 1, unless told otherwise of its
    positive part. The paper does not say so, its authors' code does; nor that only features with a
    positive response are shown and that maps are combined by their maximum.

    Args:
        model: any model with ReLUs.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes: what the network predicts, or any other.
        importance: what `select` returned.
        top: k, features shown.
        feedback: "unit_stride"; "unit_stride_pooling" for strides of pooling, too; "guided" for
            guided backprop; "activation" for the channel itself, enlarged bilinearly (zero for
            features of layers without positions, where there is nothing to enlarge).
        signs: "positive" for the positive part of what arrives at the image, as in the authors'
            code; "both" for all of it: also where a colour that is there speaks for the feature by
            being dark, so that maps are more even (docs/visual-explanation.md).
        smoothing: standard deviation in pixels of a Gaussian that each map is blurred with; the
            paper has none. ReLUs and maximum pooling hand what arrives to single pixels: a stride
            of one fills no gaps between those, and a blur does (docs/visual-explanation.md).
        strict: as in `backpropagate`.

    Returns:
        Maps, the features that they belong to, and the audit. Everything is zero for a class that
        had no images, where it cannot be refused because its number is not known yet (`jax.jit`).

    Raises:
        UncoveredError: as `backpropagate`.
        ValueError: a number or a name out of range, a class without images, or features of another
            model.
        TypeError: importance is something else.

    Example:
        >>> from jaxplain.data.digits import digits
        >>> from jaxplain.methods.interpretation import shipped
        >>> from jaxplain.models import load_model
        >>> model, test = load_model("digits"), digits("test")
        >>> images = model.preprocessing.batch(test.images[:2])
        >>> found = explain(model, images, test.labels[:2], importance=shipped(model))
        >>> found.maps.shape, bool((found.responses[:, 0] >= found.responses[:, 1]).all())
        ((2, 3, 28, 28), True)
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected at least 1")
    if feedback not in FEEDBACK:
        raise ValueError(unknown("feedback", feedback, FEEDBACK))
    if signs not in SIGNS:
        raise ValueError(unknown("signs", signs, SIGNS))
    if not 0 <= smoothing < float("inf"):
        raise ValueError(f"smoothing is {smoothing}; expected 0 or more")
    sweep = Sweep(model, images)
    blocks = importance.blocks
    _check_model(sweep, importance)
    activations = [sweep.activation(block.layer) for block in blocks]
    x = describe(activations, squared=importance.settings.squared)
    weights = _of_targets(importance.weights, targets, x.dtype)
    top = min(top, x.shape[1])
    responses, chosen = lax.top_k(weights * x, top)
    shown = jnp.where(jnp.isnan(responses), responses, jnp.maximum(responses, 0))
    # (k, B, m): the one feature that each round sends back.
    marks = jnp.moveaxis(jax.nn.one_hot(chosen, x.shape[1], dtype=x.dtype), 1, 0)
    size = images.shape[1:3]
    if feedback == "activation":
        audit = None
        rounds = [_enlarged(activations, blocks, mark, size) for mark in marks]
        maps = jnp.stack(rounds, 1)
    else:
        rules = RULES[feedback]
        audit = sweep.audit(rules, strict=strict)

        def back(mark: jax.Array) -> jax.Array:
            seeds = _seeds(activations, blocks, mark)
            arrived = sweep.pull(rules, seeds, [INPUT], strict=False)[INPUT].value
            return _length(arrived if signs == "both" else jnp.maximum(arrived, 0))

        maps = jnp.moveaxis(jax.vmap(back)(marks), 0, 1)
    if smoothing > 0:
        several = maps.reshape(-1, *size, 1)
        maps = gaussian_blur(several, smoothing).reshape(maps.shape)
    maps = _unit_range(maps) * (shown > 0)[..., None, None]
    # NaN where a class does not exist: what is no answer must not look like one.
    maps = jnp.where(jnp.isnan(shown)[..., None, None], jnp.nan, maps)
    return Interpretation(maps.max(1), maps, chosen, shown, audit)


def _check_model(sweep: Sweep, features: RelevantFeatures) -> None:
    """Raise ValueError for features of another model."""
    own, classes = features.weights.shape[0], sweep.logits.shape[-1]
    if own != classes:
        raise ValueError(
            f"importance is for {own} classes, the model has {classes}: it was selected for "
            "another model"
        )
    for block in features.blocks:
        channels = sweep.activation(block.layer).shape[-1]
        if channels != block.channels:
            raise ValueError(
                f"importance has {block.channels} channels for layer {block.layer!r}, the layer "
                f"has {channels}: it was selected for another model"
            )


def _of_targets(weights: jax.Array, targets: jax.Array, dtype: Any) -> jax.Array:
    """Return the weights (B, m) of each target; NaN for a class that does not exist."""
    # Products, which work on any mesh; a gather does not.
    chosen = (jnp.arange(weights.shape[0])[None] == targets[:, None]).astype(dtype)
    found = jnp.matmul(chosen, weights.astype(dtype), precision=lax.Precision.HIGHEST)
    return jnp.where(chosen.any(1)[:, None], found, jnp.nan)


def _parts(mark: jax.Array, blocks: tuple[Block, ...]) -> list[jax.Array]:
    """Cut (B, m) into the layers' parts (B, K)."""
    found, start = [], 0
    for block in blocks:
        found.append(mark[:, start : start + block.channels])
        start += block.channels
    return found


def _seeds(
    activations: list[jax.Array], blocks: tuple[Block, ...], mark: jax.Array
) -> dict[str, Seed]:
    """Return the chosen channel's activation at its layer, and zero at all others.

    So one sweep serves all images, whatever layers their features are in.
    """
    seeds = {}
    for activation, block, part in zip(activations, blocks, _parts(mark, blocks), strict=True):
        positions = (1,) * (activation.ndim - 2)
        own = part.reshape(part.shape[0], *positions, part.shape[1])
        seeds[block.layer] = Seed(activation * own.astype(activation.dtype))
    return seeds


def _enlarged(
    activations: list[jax.Array],
    blocks: tuple[Block, ...],
    mark: jax.Array,
    size: tuple[int, ...],
) -> jax.Array:
    """Return the chosen channel of each image at the image's size."""
    found = jnp.zeros((mark.shape[0], *size), mark.dtype)
    for activation, part in zip(activations, _parts(mark, blocks), strict=True):
        if activation.ndim != 4:
            continue
        own = jnp.einsum("bhwk,bk->bhw", activation, part, precision=lax.Precision.HIGHEST)
        found += resize_maps(own, size)
    return found


def _length(attribution: jax.Array) -> jax.Array:
    """Return the Euclidean norm over the colours, whose derivative at zero is zero."""
    square = jnp.sum(jnp.square(attribution), -1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _unit_range(maps: jax.Array) -> jax.Array:
    """Map each map onto 0..1; a constant one, but for rounding, becomes zero."""
    low, high = (f(maps, (-2, -1), keepdims=True) for f in (jnp.min, jnp.max))
    span = high - low
    rounding = 8 * jnp.finfo(maps.dtype).eps * jnp.maximum(jnp.abs(low), jnp.abs(high))
    varies = span > rounding
    # One is said outright: XLA may divide by way of the reciprocal.
    scaled = jnp.where(maps == high, 1, (maps - low) / jnp.where(varies, span, 1))
    # NaN is no constant.
    return jnp.where(varies | jnp.isnan(span), scaled, 0)
