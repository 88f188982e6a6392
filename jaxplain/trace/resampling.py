r"""Strided operations run backwards as if their stride were one.

Oramas, Wang and Tuytelaars 2019, "Visual Explanation by Interpretation", §3.3. A window of M
elements with stride S over A elements with O of padding on each side has

.. math:: B = \lfloor (A + 2 O - M) / S \rfloor + 1 \quad (3)

positions; the floor is missing in the paper. At stride one there are A + 2 O − M + 1. A signal of B
elements is resampled to that many by its nearest neighbours, with half-pixel centres, and then goes
through the transpose of the operation at stride one, whose result has A elements whatever A, M, S
and O are. A is the extent of the operation's own input, and every axis has its own numbers. Padding
may differ on the two sides, and M counts what dilation adds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxplain.trace.convolution import is_plain, transposed


def unit_size(
    size: int,
    window: int,
    padding: tuple[int, int],
    *,
    dilation: int = 1,
    input_dilation: int = 1,
) -> int:
    """Return how many positions a window has at stride one: A + O + O' − M + 1.

    Args:
        size: elements of the input, A.
        window: elements of the window.
        padding: before and behind.
        dilation: of the window, so that M = (window − 1) dilation + 1.
        input_dilation: of the input, which then has (A − 1) input_dilation + 1 elements.

    Example:
        >>> unit_size(11, 3, (0, 1)), unit_size(11, 3, (2, 2), dilation=2)
        (10, 11)
    """
    seen = (size - 1) * input_dilation + 1
    return seen + sum(padding) - ((window - 1) * dilation + 1) + 1


def nearest(signal: jax.Array, axes: Sequence[int], sizes: Sequence[int]) -> jax.Array:
    """Return a signal resampled along some axes by its nearest neighbours.

    Example:
        >>> nearest(jnp.arange(3.0), [0], [7]).tolist()
        [0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0]
    """
    for axis, size in zip(axes, sizes, strict=True):
        count = signal.shape[axis]
        if size != count:
            # Centre (i + ½) count / size, in whole numbers: no rounding decides.
            source = (2 * np.arange(size) + 1) * count // (2 * size)
            signal = jnp.take(signal, jnp.asarray(source), axis=axis)
    return signal


def unit_stride_convolution(
    signal: jax.Array, weight: jax.Array, x: jax.Array, params: Mapping[str, Any]
) -> jax.Array:
    """Return what a convolution sends to its input at stride one.

    Args:
        signal: what arrived, in the layout of the convolution's output.
        weight: its weights.
        x: its input; only the shape matters.
        params: of the `conv_general_dilated` equation.

    Returns:
        Of the shape of `x`.
    """
    numbers = params["dimension_numbers"]
    dilations = zip(params["rhs_dilation"], params["lhs_dilation"], strict=True)
    sizes = [
        unit_size(
            x.shape[place], weight.shape[window], padding, dilation=dilation, input_dilation=spread
        )
        for place, window, padding, (dilation, spread) in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], params["padding"], dilations, strict=True
        )
    ]
    signal = nearest(signal, numbers.out_spec[2:], sizes)
    unit = {**params, "window_strides": (1,) * len(sizes)}
    if is_plain(params):
        return transposed(signal, weight, x.shape[1:3], unit)
    kept = (
        "window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers",
        "feature_group_count", "batch_group_count", "precision", "preferred_element_type",
    )  # fmt: skip

    def forward(image: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(image, weight, **{name: unit[name] for name in kept})

    like, pull = jax.vjp(forward, x)
    return pull(signal.astype(like.dtype))[0]


def unit_stride_pooling(
    signal: jax.Array, x: jax.Array, params: Mapping[str, Any], *, largest: bool
) -> jax.Array:
    """Return what a pooling over windows sends to its input at stride one.

    Args:
        signal: what arrived at its output.
        x: its input.
        params: of the `reduce_window_max` or `reduce_window_sum` equation.
        largest: maxima are taken; if not, sums.

    Returns:
        Of the shape of `x`.
    """
    window, padding = params["window_dimensions"], params["padding"]
    dilations = params["window_dilation"], params["base_dilation"]
    sizes = [
        unit_size(size, extent, pads, dilation=dilation, input_dilation=spread)
        for size, extent, pads, dilation, spread in zip(
            x.shape, window, padding, *dilations, strict=True
        )
    ]
    signal = nearest(signal, range(x.ndim), sizes)
    start, combine = (-jnp.inf, lax.max) if largest else (0.0, lax.add)

    def forward(image: jax.Array) -> jax.Array:
        return lax.reduce_window(
            image,
            np.asarray(start, image.dtype),
            combine,
            window,
            (1,) * x.ndim,
            padding,
            base_dilation=params["base_dilation"],
            window_dilation=params["window_dilation"],
        )

    like, pull = jax.vjp(forward, x)
    return pull(signal.astype(like.dtype))[0]
