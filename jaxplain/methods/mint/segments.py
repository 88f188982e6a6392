"""The layers that MINT reads, and the superpixels that it hides."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from jaxplain import superpixels
from jaxplain.methods.cam import grad_cam
from jaxplain.methods.method import map_layer
from jaxplain.methods.scene import MOST, on_host
from jaxplain.model import Model

MOST_COARSE = 48
"""Coarse superpixels an image may have where their number is not known to the compiler."""

SHALLOW = {"conv1_2": "VGG", "Conv2d_2b_3x3": "Inception-V3"}
"""Shallow layers of the networks that the paper explains: the last ones at their finest scale."""


class Nest(NamedTuple):
    """Nested superpixels of B images for T targets.

    Attributes:
        coarse: (B, T, H, W) labels 0 … P - 1.
        fine: (B, H, W) labels 0 … Q - 1.
        sizes: (P, Q), which is static.
    """

    coarse: Int[Array, "b t h w"]
    fine: Int[Array, "b h w"]
    sizes: tuple[int, int]


def deep_layer(model: Model, layer: str | None = None) -> str:
    """Return the deep layer: `layer`, or the model's default, its last convolution.

    Raises:
        ValueError: None, and the model names no default.

    Example:
        >>> import jaxplain as jxp
        >>> deep_layer(jxp.load_model("digits"))
        'conv2'
    """
    return map_layer(model, layer)


def shallow_layer(model: Model, layer: str | None = None) -> str:
    """Return the shallow layer: `layer`, the preset, or the model's first layer with positions.

    The presets are conv1_2 of VGG and Conv2d_2b_3x3 of Inception-V3. (The paper names no layers.)

    Raises:
        ValueError: None, and no layer has positions.

    Example:
        >>> import jaxplain as jxp
        >>> shallow_layer(jxp.load_model("digits"))
        'conv1'
    """
    if layer is not None:
        return layer
    names = [found.name for found in model.layers() if len(found.shape) == 3]
    if not names:
        raise ValueError(f"shallow is needed: no layer of model {model.name!r} has positions")
    return next((name for name in names if name in SHALLOW), names[0])


def find_nested(
    model: Model, images: jax.Array, targets: jax.Array, segments: Any, deep: str
) -> Nest:
    """Return the superpixels at both scales, given ones or the paper's.

    Args:
        model: any model.
        images: (B, H, W, C).
        targets: (B, T).
        segments: None, or (coarse, fine).
        deep: layer of the class-discriminative map.

    Raises:
        TypeError: given ones that are not integers.
        ValueError: given ones of another size, not nested, or fewer than two in an image.
    """
    shape = (*targets.shape, *images.shape[1:3])
    if segments is None:
        heat = [grad_cam(model, images, t, layer=deep) for t in targets.T]
        bare = dataclasses.replace(model, params=())
        coarse, fine = on_host(
            lambda x, h: _cut(x, h, bare),
            (
                jax.ShapeDtypeStruct(shape, jnp.int32),
                jax.ShapeDtypeStruct((shape[0], *shape[2:]), jnp.int32),
            ),
            images,
            jnp.stack(heat, 1),
        )
    else:
        coarse, fine = _given(segments, shape)
    if isinstance(coarse, Tracer) or isinstance(fine, Tracer):
        return Nest(coarse, fine, (MOST_COARSE, MOST))
    for number, labels in enumerate(np.asarray(fine)):
        if len(np.unique(labels)) < 2:
            raise ValueError(
                f"fine segments of image {number}: there is 1 superpixel; at least 2 are needed"
            )
    sizes = (
        superpixels.bucket(int(np.max(coarse)) + 1),
        superpixels.bucket(int(np.max(fine)) + 1),
    )
    return Nest(jnp.asarray(coarse), jnp.asarray(fine), sizes)


def _cut(images: np.ndarray, heat: np.ndarray, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Run `superpixels.nested` on each image.

    Numbers that are not finite only compiled code can meet; what they make NaN is not this.
    """
    found = [
        superpixels.nested(
            superpixels.picture(image, model), maps, most_coarse=MOST_COARSE, most_fine=MOST
        )
        for image, maps in zip(np.nan_to_num(images), np.nan_to_num(heat), strict=True)
    ]
    return np.stack([f.coarse for f in found]), np.stack([f.fine for f in found])


def _given(segments: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    batch, several, *size = shape
    if not isinstance(segments, (tuple, list)) or len(segments) != 2:
        raise ValueError("segments are expected as a pair, (coarse, fine)")
    coarse, fine = segments
    if isinstance(coarse, Tracer) or isinstance(fine, Tracer):
        coarse = coarse if coarse.ndim == 4 else jnp.broadcast_to(coarse, (batch, *size))[:, None]
        return jnp.broadcast_to(coarse, shape), jnp.broadcast_to(fine, (batch, *size))
    fine = superpixels.check_segments(fine, (batch, *size))
    if np.ndim(coarse) == 4 and np.shape(coarse) == shape:
        flat = np.asarray(coarse).reshape(-1, *size)
        coarse = superpixels.check_segments(flat, (batch * several, *size)).reshape(shape)
    else:
        one = superpixels.check_segments(coarse, (batch, *size))
        coarse = np.broadcast_to(one[:, None], shape)
    for labels, inside in zip(coarse, fine, strict=True):
        for target in labels:
            superpixels.membership(target, inside)
    return coarse, fine
