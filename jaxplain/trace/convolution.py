"""The transpose of a convolution, written so that it is fast inside loops too.

XLA's CPU backend turns a convolution into a form that it has fast code for only where it stands
outside of every loop. JAX's own transpose lacks that form, and inside a `lax.scan` it runs up to
fifty times slower (jax 0.10.2). Here it is a plain convolution with weights that are turned round
beforehand.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import lax

_NHWC = (0, 3, 1, 2)
_HWIO = (3, 2, 0, 1)


def is_plain(params: Mapping[str, Any]) -> bool:
    """Say whether a convolution has layouts NHWC, HWIO, NHWC and one batch group.

    Args:
        params: parameters of a `conv_general_dilated` equation.
    """
    specs = params["dimension_numbers"]
    return (
        params["batch_group_count"] == 1
        and tuple(specs.lhs_spec) == tuple(specs.out_spec) == _NHWC
        and tuple(specs.rhs_spec) == _HWIO
    )


def transposed(
    signal: jax.Array, weight: jax.Array, image_size: Sequence[int], params: Mapping[str, Any]
) -> jax.Array:
    """Return the transpose of a plain convolution, applied to `signal`.

    With the convolution y = x * w of (H, W) images, it is the linear map with
    <transposed(s), x> = <s, x * w>.

    Args:
        signal: (B, h, w, O), where the convolution's output was.
        weight: (kh, kw, I / groups, O).
        image_size: (H, W) of the convolution's input.
        params: parameters of the `conv_general_dilated` equation.

    Returns:
        (B, H, W, I).
    """
    groups = params["feature_group_count"]
    height, width, inputs, outputs = weight.shape
    turned = weight[::-1, ::-1].reshape(height, width, inputs, groups, outputs // groups)
    turned = turned.transpose(0, 1, 4, 3, 2).reshape(
        height, width, outputs // groups, groups * inputs
    )
    padding = []
    for axis, (before, _) in enumerate(params["padding"]):
        window = (weight.shape[axis] - 1) * params["rhs_dilation"][axis] + 1
        seen = (image_size[axis] - 1) * params["lhs_dilation"][axis] + 1
        spread = (signal.shape[1 + axis] - 1) * params["window_strides"][axis] + 1
        low = window - 1 - before
        padding.append((low, seen + window - 1 - spread - low))
    return lax.conv_general_dilated(
        signal,
        turned,
        window_strides=params["lhs_dilation"],
        padding=padding,
        lhs_dilation=params["window_strides"],
        rhs_dilation=params["rhs_dilation"],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
