r"""CHIP: channels weighed by how much a class needs them, as learned from many images.

Cui, Wang and Wang 2019, "CHIP: Channel-wise Disentangled Interpretation of Deep Convolutional
Neural Networks", arXiv:1902.02497. Gates :math:`d \in \{0,1\}^K` close channels of a layer at
random; a sparse linear model of the gated global averages :math:`z` predicts what the network then
says, class by class:

.. math:: \min_{w_c} \tfrac12 \sum_n h(d_n) \sum_s f^c(X_s)
    \bigl[w_c \cdot z_{s,n} - g^c(X_s, d_n)\bigr]^2 + \lambda \|w_c\|_1 \quad (11)

with f the prediction of the whole network, which says how much image s is one of class c, g that of
the gated one, and h the proximity of the gates to all open (7). The weights belong to the network,
not to an image: `fit` learns them once, and an explanation is one weighted sum of channels (10).

    importances = chip.fit(model, batches, ["conv1_1", "conv5_3"], key=key)
    chip.heatmap(model, images, targets, importance=importances, layer="conv5_3")
    chip.refined(model, images, targets, importance=importances)

What the paper leaves open is chosen here: the units of σ and λ (see `fit`, `solve`), and the sign
(`relu`). `fit` runs on one device or many, goes on from checkpoints, and keeps statistics of
constant size only: see `jaxplain.methods.chip.statistics`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxplain.methods.chip.fit import fit, gather
from jaxplain.methods.chip.importance import (
    ChipImportance,
    Settings,
    check_model,
    load,
    pick,
    save,
    shipped,
)
from jaxplain.methods.chip.overlap import Overlap, important, overlap
from jaxplain.methods.chip.solve import ChipStatistics, solve
from jaxplain.methods.method import explainer, map_layer, no_positions, resize_maps
from jaxplain.methods.streaming import Progress
from jaxplain.model import Model
from jaxplain.trace import Audit, backpropagate
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.layers import trace_model
from jaxplain.trace.rules import GUIDED_BACKPROP

__all__ = [
    "ChipImportance",
    "ChipStatistics",
    "GuidedChip",
    "Overlap",
    "Progress",
    "Settings",
    "check_model",
    "fit",
    "gather",
    "guided",
    "heatmap",
    "important",
    "load",
    "overlap",
    "refined",
    "save",
    "shipped",
    "solve",
]

Importance = ChipImportance | Mapping[str, ChipImportance]


@explainer("layer", "relu", "upsample")
def heatmap(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    importance: Importance,
    layer: str | None = None,
    relu: bool = False,
    upsample: bool = True,
) -> Float[Array, "b y x"]:
    """Return the CHIP map of each target: its layer's channels, weighed by their importance.

    Cui, Wang and Wang 2019, arXiv:1902.02497, eq. (10).

    Args:
        model: the model that the importances were fitted for.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        importance: what `fit` returned, or one of its layers.
        layer: one that was fitted and has positions; None takes `model.default_layer`, or the one
            layer there is.
        relu: keep evidence for the target only. The paper keeps both signs.
        upsample: resize to (H, W); otherwise the map has the layer's size.

    Returns:
        (B, H, W), or (B, h, w) at the layer's size. Zero for a class that was never predicted while
        fitting, which `ChipImportance.fitted` tells.

    Raises:
        ValueError: no such layer, one that was not fitted, one without positions, or importances of
            another model.
        TypeError: importance is something else.

    Example:
        >>> from jaxplain.models import load_model
        >>> model = load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> found = shipped(model)
        >>> heatmap(model, images, targets, importance=found, layer="pool1", upsample=False).shape
        (1, 12, 12)
    """
    if layer is None and isinstance(importance, ChipImportance):
        layer = importance.layer
    layer = map_layer(model, layer)
    (found,) = _maps(model, images, targets, importance, (layer,), relu)
    return resize_maps(found, images.shape[1:3]) if upsample else found


@explainer("first", "last", "relu", "upsample")
def refined(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    importance: Mapping[str, ChipImportance],
    first: str | None = None,
    last: str | None = None,
    relu: bool = True,
    upsample: bool = True,
) -> Float[Array, "b y x"]:
    """Return the Refined CHIP of each target: a shallow layer's detail where a deep one looks.

    Cui, Wang and Wang 2019, arXiv:1902.02497, §III-B: the product of the CHIP maps of the first and
    the last convolution.

    Args:
        model: the model that the importances were fitted for.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        importance: what `fit` returned.
        first: the shallow layer; None takes the first one with positions that was fitted.
        last: the deep layer; None takes `model.default_layer`, or the last one with positions that
            was fitted.
        relu: keep evidence for the target only, before the maps are multiplied: evidence against,
            twice, would make evidence for.
        upsample: resize to (H, W); otherwise the map has the size of the first layer.

    Returns:
        (B, H, W), or (B, h, w) at the size of the first layer.

    Raises:
        ValueError: as `heatmap`, or there are not two layers.
        TypeError: as `heatmap`.

    Example:
        >>> from jaxplain.models import load_model
        >>> model = load_model("an8flower-single-6c")
        >>> images, targets = jnp.ones((1, 112, 112, 3)), jnp.array([3])
        >>> refined(model, images, targets, importance=shipped(model)).shape
        (1, 112, 112)
    """
    chosen = _ends(model, images, importance, first, last)
    fine, coarse = _maps(model, images, targets, importance, chosen, relu)
    size = images.shape[1:3] if upsample else fine.shape[1:]
    return resize_maps(fine, size) * resize_maps(coarse, size)


class GuidedChip(NamedTuple):
    """A guided CHIP map.

    Attributes:
        attribution: (B, H, W, C).
        audit: which sites were guided.
    """

    attribution: Float[Array, "b h w c"]
    audit: Audit


@explainer("layer", "strict")
def guided(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    importance: Importance,
    layer: str | None = None,
    strict: bool = True,
) -> GuidedChip:
    """Return guided backprop times the upsampled CHIP map, as guided Grad-CAM does it.

    Cui, Wang and Wang 2019, arXiv:1902.02497, §III-B. Evidence against the target is left out.

    Args:
        model: any model with ReLUs.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        importance: as in `heatmap`.
        layer: as in `heatmap`.
        strict: as in `backpropagate`.

    Returns:
        Attributions and the audit.

    Raises:
        UncoveredError: as `backpropagate`.
        ValueError, TypeError: as `heatmap`.

    Example:
        >>> from jaxplain.models import load_model
        >>> model = load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> guided(model, images, targets, importance=shipped(model)).attribution.shape
        (1, 28, 28, 1)
    """
    sharp = backpropagate(model, images, targets, GUIDED_BACKPROP, strict=strict)
    where = heatmap(model, images, targets, importance=importance, layer=layer, relu=True)
    return GuidedChip(sharp.attribution * where[..., None], sharp.audit)


def _maps(
    model: Model,
    images: jax.Array,
    targets: jax.Array,
    importance: Importance,
    layers: tuple[str, ...],
    relu: bool,
) -> list[jax.Array]:
    """Return the maps of some layers, at the layers' sizes."""
    traced = trace_model(model, images)
    chosen = [pick(importance, layer, tuple(traced.names)) for layer in layers]
    variables = [traced.variable(layer) for layer in layers]
    for layer, variable, own in zip(layers, variables, chosen, strict=True):
        shape = traced.program.avals[variable].shape
        if len(shape) != 4:
            raise ValueError(no_positions(layer, shape))
        if shape[-1] != own.weights.shape[-1]:
            raise ValueError(
                f"importance of layer {layer!r} is for {own.weights.shape[-1]} channels, the layer "
                f"has {shape[-1]}: it was fitted for another model"
            )
    needed, _ = jx.ancestors(traced.program, variables)
    values = traced.bind(model.params, images)
    activations = jx.evaluate(traced.program, values, variables, equations=needed)
    maps = [
        jnp.einsum(
            "bhwk,bk->bhw", a, _of_targets(own.weights, targets, a.dtype), precision="highest"
        )
        for a, own in zip(activations, chosen, strict=True)
    ]
    return [jnp.maximum(found, 0) if relu else found for found in maps]


def _of_targets(weights: jax.Array, targets: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Return the weights (B, K) of each target; NaN for a class that does not exist."""
    # Products, which work on any mesh; a gather does not.
    chosen = (jnp.arange(weights.shape[0])[None] == targets[:, None]).astype(dtype)
    found = jnp.matmul(chosen, weights.astype(dtype), precision=lax.Precision.HIGHEST)
    return jnp.where(chosen.any(1)[:, None], found, jnp.nan)


def _ends(
    model: Model,
    images: jax.Array,
    importance: Mapping[str, ChipImportance],
    first: str | None,
    last: str | None,
) -> tuple[str, str]:
    """Return the first and the last layer of `refined`."""
    traced = trace_model(model, images)
    if isinstance(importance, ChipImportance):
        importance = {importance.layer: importance}
    fitted = [
        name
        for name, variable in traced.names.items()
        if name in importance and len(traced.program.avals[variable].shape) == 4
    ]
    own = model.default_layer if model.default_layer in fitted else None
    chosen = (first or next(iter(fitted), ""), last or own or next(reversed(fitted), ""))
    if not all(chosen) or chosen[0] == chosen[1]:
        raise ValueError(
            "Refined CHIP needs a first and a last layer with positions; fitted: "
            f"{', '.join(fitted) or 'none'}"
        )
    return chosen
