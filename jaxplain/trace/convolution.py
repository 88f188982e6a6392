"""Convolutions and their transposes, written so that XLA's CPU backend is fast at them.

It turns a convolution into a form that it has fast code for only where it stands outside of every
loop. JAX's own transpose lacks that form, and inside a `lax.scan` it runs up to fifty times slower
(jax 0.10.2). Here it is a plain convolution with weights that are turned round beforehand.

And its fast code is slow where there are few channels, as in the first layer of a small network:
there `blocked` is about three times as fast.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    options = {
        "window_strides": params["lhs_dilation"],
        "padding": padding,
        "lhs_dilation": params["window_strides"],
        "rhs_dilation": params["rhs_dilation"],
        "feature_group_count": groups,
        "precision": params["precision"],
        "preferred_element_type": params["preferred_element_type"],
    }
    if pays(signal, turned, options):
        return blocked(signal, turned, options)
    return lax.conv_general_dilated(
        signal, turned, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def pays(
    image: jax.Array | np.ndarray, weight: jax.Array | np.ndarray, params: Mapping[str, Any]
) -> bool:
    """Say whether `blocked` covers a plain convolution and is the faster way.

    Args:
        image: (B, H, W, I).
        weight: (kh, kw, I, O).
        params: parameters of the `conv_general_dilated` equation.
    """
    if (
        jax.default_backend() != "cpu"
        or image.ndim != 4
        or params["feature_group_count"] != 1
        or any(
            n != 1
            for name in ("window_strides", "lhs_dilation", "rhs_dilation")
            for n in params[name]
        )
        or any(low < 0 or high < 0 for low, high in params["padding"])
    ):
        return False
    height, width, inputs, outputs = weight.shape
    work = inputs * outputs
    for axis, size in enumerate((height, width)):
        # Sizes that are odd would be padded first, which takes longer than the convolution.
        if image.shape[1 + axis] % 2 or (sum(params["padding"][axis]) - size + 1) % 2:
            return False
        before, after = _reach(size, params["padding"][axis][0])
        work *= 2 * (before + after + 1) / size
    # Measured: beyond, the zeros in the blocks' weights cost more than wider rows save.
    return work <= 192 and (outputs <= 8 or inputs <= 4)


def _reach(size: int, before: int) -> tuple[int, int]:
    """Return how many blocks before and after its own a block of two sees."""
    return -(-before // 2), (size - before) // 2


def blocked(
    image: jax.Array | np.ndarray, weight: jax.Array | np.ndarray, params: Mapping[str, Any]
) -> jax.Array:
    """Return the plain convolution, computed on blocks of 2 × 2 pixels as pixels of 4 I channels.

    Its sums have the same terms, and others that are zero.

    Args:
        image: (B, H, W, I), H and W even.
        weight: (kh, kw, I, O).
        params: parameters of the `conv_general_dilated` equation; strides and dilations are one.

    Returns:
        (B, h, w, O).
    """
    batch, height, width, inputs = image.shape
    outputs = weight.shape[-1]
    padding, reaches = [], []
    for axis in (0, 1):
        size, (before, after) = weight.shape[axis], params["padding"][axis]
        low, high = _reach(size, before)
        count = image.shape[1 + axis] + before + after - size + 1
        reaches.append((low, high))
        padding.append((low, count // 2 + high - image.shape[1 + axis] // 2))

    def placed(phase: tuple[int, int]) -> jax.Array:
        """Return the weights of one of a block's outputs, among all pixels that the block sees."""
        room = []
        for axis in (0, 1):
            low, high = reaches[axis]
            start = 2 * low - params["padding"][axis][0] + phase[axis]
            room.append((start, 2 * (low + high + 1) - start - weight.shape[axis]))
        return jnp.pad(weight, (*room, (0, 0), (0, 0)))

    phases = [(a, b) for a in (0, 1) for b in (0, 1)]
    wide = jnp.stack([placed(phase) for phase in phases], 3)
    rows, columns = wide.shape[0] // 2, wide.shape[1] // 2
    wide = wide.reshape(rows, 2, columns, 2, inputs, 4 * outputs)
    wide = wide.transpose(0, 2, 1, 3, 4, 5).reshape(rows, columns, 4 * inputs, 4 * outputs)
    blocks = jnp.asarray(image).reshape(batch, height // 2, 2, width // 2, 2, inputs)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * inputs)
    found = lax.conv_general_dilated(
        blocks,
        wide,
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    h, w = found.shape[1:3]
    found = found.reshape(batch, h, w, 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5)
    return found.reshape(batch, 2 * h, 2 * w, outputs)
