r"""Class activation maps: CAM, Grad-CAM, guided Grad-CAM.

With $A_k$ the channels of a layer with $Z$ positions and $S$ the target's score:

- Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): $\alpha_k = \frac1Z\sum_{ij} \partial
  S/\partial A_k^{ij}$ (1), $L = \mathrm{ReLU}(\sum_k \alpha_k A_k)$ (2); guided Grad-CAM is guided
  backprop times the upsampled $L$;
- CAM (Zhou et al. 2016, arXiv:1512.04150), for networks whose logits are a dense layer of globally
  averaged channels: $\sum_k w_k^c A_k$.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxplain.methods.method import explainer, map_layer, no_positions, resize_maps
from jaxplain.model import Model
from jaxplain.scores import Score
from jaxplain.trace import Audit, backpropagate
from jaxplain.trace.backward import Sweep
from jaxplain.trace.layers import Traced
from jaxplain.trace.patterns import LINEAR_KINDS
from jaxplain.trace.rules import GUIDED_BACKPROP
from jaxplain.trace.sites import nonlinearity, survey


class _Behind(NamedTuple):
    """A layer and the derivative of the score behind it."""

    activation: jax.Array
    gradient: jax.Array


def _behind(sweep: Sweep, targets: jax.Array, layer: str, score: Score) -> _Behind:
    """Differentiate only what follows the layer, wherever it is."""
    activation = sweep.activation(layer)
    if activation.ndim != 4:
        raise ValueError(no_positions(layer, activation.shape))
    return _Behind(activation, sweep.gradient(targets, score, layer))


@explainer("layer", "relu", "upsample", "score")
def grad_cam(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    layer: str | None = None,
    relu: bool = True,
    upsample: bool = True,
    score: Score = "logit",
) -> Float[Array, "b y x"]:
    """Return the Grad-CAM of each target.

    Selvaraju et al. 2017, arXiv:1610.02391, equations (1) and (2).

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        layer: the layer whose channels are weighed, usually the last convolution; None takes
            `model.default_layer`.
        relu: keep evidence for the target only, as in the paper.
        upsample: resize to (H, W); otherwise the map has the layer's size.
        score: as in `gradient`.

    Returns:
        (B, H, W), or (B, h, w) at the layer's size.

    Raises:
        ValueError: no such layer, or one without positions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> jxp.grad_cam(model, images, targets, layer="pool1", upsample=False).shape
        (1, 12, 12)
    """
    layer = map_layer(model, layer)
    behind = _behind(Sweep(model, images), targets, layer, score)
    alpha = behind.gradient.mean((1, 2))  # (1)
    return _map(
        jnp.einsum("bk,bhwk->bhw", alpha, behind.activation, precision="highest"),
        images,
        relu,
        upsample,
    )  # (2)


def _map(maps: jax.Array, images: jax.Array, relu: bool, upsample: bool) -> jax.Array:
    maps = jnp.maximum(maps, 0) if relu else maps
    return resize_maps(maps, images.shape[1:3]) if upsample else maps


class GuidedGradCam(NamedTuple):
    """A guided Grad-CAM map.

    Attributes:
        attribution: (B, H, W, C).
        audit: which sites were guided.
    """

    attribution: Float[Array, "b h w c"]
    audit: Audit


@explainer("layer", "interpolation", "score", "strict")
def guided_grad_cam(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    layer: str | None = None,
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    score: Score = "logit",
    strict: bool = True,
) -> GuidedGradCam:
    """Return guided backprop times the upsampled Grad-CAM.

    Selvaraju et al. 2017, arXiv:1610.02391.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        layer: as in `grad_cam`.
        interpolation: how the Grad-CAM is resized; the paper's is bilinear, Captum's default
            nearest.
        score: as in `gradient`.
        strict: as in `backpropagate`.

    Returns:
        Attributions and the audit.

    Raises:
        UncoveredError: as `backpropagate`.
        ValueError: as `grad_cam`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> jxp.guided_grad_cam(model, jnp.ones((1, 28, 28, 1)), jnp.array([3])).attribution.shape
        (1, 28, 28, 1)
    """
    guided = backpropagate(model, images, targets, GUIDED_BACKPROP, score=score, strict=strict)
    coarse = grad_cam(model, images, targets, layer=layer, upsample=False, score=score)
    fine = jax.image.resize(coarse, images.shape[:3], interpolation)
    return GuidedGradCam(guided.attribution * fine[..., None], guided.audit)


@explainer("layer", "relu", "upsample")
def cam(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    layer: str | None = None,
    relu: bool = False,
    upsample: bool = True,
) -> Float[Array, "b y x"]:
    """Return the class activation map: what every position adds to the target's logit.

    Zhou et al. 2016, arXiv:1512.04150.

    In the map, contributions are multiplied by the number of positions, so that their mean is the
    logit up to the bias.

    Needs a network that is linear behind the layer and averages its channels over all positions
    before its dense layer; this is checked on the network's program.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        layer: the layer that is averaged; None takes `model.default_layer`.
        relu: keep evidence for the target only.
        upsample: resize to (H, W); otherwise the map has the layer's size.

    Returns:
        (B, H, W), or (B, h, w) at the layer's size, whose mean is the logit up to the bias.

    Raises:
        ValueError: no such layer, or a network of another form.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("an8flower-single-6c")
        >>> jxp.cam(model, jnp.ones((1, 112, 112, 3)), jnp.array([3])).shape
        (1, 112, 112)
    """
    layer = map_layer(model, layer)
    sweep = Sweep(model, images)
    _check_averaged(sweep.traced, layer)
    behind = _behind(sweep, targets, layer, "logit")
    positions = behind.gradient.shape[1] * behind.gradient.shape[2]
    # The gradient is w_k / Z at every position.
    return _map(positions * (behind.gradient * behind.activation).sum(-1), images, relu, upsample)


def _check_averaged(traced: Traced, layer: str) -> None:
    """Raise unless the logits are a dense layer of the globally averaged channels of `layer`."""
    program, variable = traced.program, traced.variable(layer)
    channels = program.avals[variable].shape[-1]
    found = survey(program, [variable])
    products = [s for s in found.sites.values() if s.kind in ("conv", "dense")]
    bent = [s.kind for s in found.sites.values() if s.kind not in LINEAR_KINDS]
    bent += [
        e.name
        for i, e in enumerate(program.equations)
        if i not in found.sites
        and i not in found.inner
        and any(found.is_active(a) for a in e.inputs)
        and nonlinearity(e, found)
    ]
    averaged = len(products) == 1 and program.avals[products[0].input].shape[1:] in (
        (channels,),
        (1, 1, channels),
    )
    if bent or not averaged:
        raise ValueError(
            f"CAM needs one dense layer on the global average of layer {layer!r}; "
            + (
                f"behind it comes {bent[0]}"
                if bent
                else f"behind it come {len(products)} layers on other features"
            )
            + "; use grad_cam"
        )
