"""Receptive fields read off a model's program."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping

from jaxplain.model import ReceptiveField
from jaxplain.trace.jaxpr import (
    ELEMENTWISE,
    Atom,
    Equation,
    Program,
    elementwise_call,
    shape,
    words,
)

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Window:
    """A receptive field and the array axes (height, width) that it belongs to."""

    axes: Pair
    size: Pair = (1, 1)
    stride: Pair = (1, 1)
    offset: Pair = (0, 0)

    def slide(self, size: Pair, stride: Pair, padding: Pair) -> "_Window":
        """Compose with a window that starts `padding` before the first element."""
        return dataclasses.replace(
            self,
            size=_pair(
                r + (k - 1) * s for r, k, s in zip(self.size, size, self.stride, strict=True)
            ),
            stride=_pair(s * d for s, d in zip(self.stride, stride, strict=True)),
            offset=_pair(
                o - p * s for o, p, s in zip(self.offset, padding, self.stride, strict=True)
            ),
        )


def _pair(numbers: Iterable[int]) -> Pair:
    first, second = numbers
    return int(first), int(second)


def receptive_fields(program: Program, image: int) -> Mapping[int, ReceptiveField]:
    """Return the receptive field of every variable that sees the image through a regular window.

    Size, stride and offset compose as r' = r + (k - 1) s, s' = s d, o' = o - p s for a window
    of k (dilated) elements, stride d and padding p. Where branches join, strides must agree and
    the union is taken.

    Args:
        program: the flat program of a model.
        image: its (B, H, W, C) input variable.
    """
    windows: dict[int, _Window] = {image: _Window((1, 2))}
    global_: set[int] = set()  # sees the image, but not through a window
    for equation in program.equations:
        seen = [a for a in equation.inputs if isinstance(a, int) and (a in windows or a in global_)]
        if not seen:
            continue
        window = (
            None
            if any(a in global_ for a in seen)
            else _step(program, equation, [windows[a] for a in seen], seen)
        )
        for variable in equation.outputs:
            if window is None:
                global_.add(variable)
            else:
                windows[variable] = window
    return {v: ReceptiveField(w.size, w.stride, w.offset) for v, w in windows.items()}


# Every output element depends on the input elements at its own place only.
_ELEMENTWISE = ELEMENTWISE - {"broadcast_in_dim"} | words(
    """name copy_p add_any rem atan2 nextafter round floor ceil sinh cosh asin acos atan
    reduce_precision optimization_barrier sharding_constraint reshard device_put"""
)


def _step(
    program: Program, equation: Equation, windows: list[_Window], seen: Collection[Atom]
) -> _Window | None:
    first, params = windows[0], equation.params
    before, after = shape(program, equation.inputs[0]), shape(program, equation.outputs[0])
    match equation.name:
        case "conv_general_dilated":
            return _convolution(program, equation, first) if len(windows) == 1 else None
        case "reduce_window_max" | "reduce_window_sum" | "reduce_window_min":
            if any(d != 1 for d in params["base_dilation"]):
                return None
            size, dilation = params["window_dimensions"], params["window_dilation"]
            return first.slide(
                _pair((size[a] - 1) * dilation[a] + 1 for a in first.axes),
                _pair(params["window_strides"][a] for a in first.axes),
                _pair(params["padding"][a][0] for a in first.axes),
            )
        case "pad":
            pads = [params["padding_config"][a] for a in first.axes]
            if any(interior for _, _, interior in pads):
                return None
            return first.slide((1, 1), (1, 1), _pair(low for low, _, _ in pads))
        case "slice":
            starts = _pair(-params["start_indices"][a] for a in first.axes)
            strides = params["strides"] or (1,) * len(before)
            return first.slide((1, 1), _pair(strides[a] for a in first.axes), starts)
        case "transpose":
            order = list(params["permutation"])
            return dataclasses.replace(first, axes=_pair(order.index(a) for a in first.axes))
        case "concatenate":
            return _union(windows) if params["dimension"] not in first.axes else None
        case "dot_general":
            return _dense(program, equation, first, seen) if len(windows) == 1 else None
        case "cumsum" | "cumprod" | "cummax" | "cummin" | "cumlogsumexp":
            return first if params["axis"] not in first.axes else None
        case "sort":
            return _union(windows) if params["dimension"] not in first.axes else None
        case "rev":
            return first if not set(params["dimensions"]) & set(first.axes) else None
        case "reduce_sum" | "reduce_max" | "reduce_min" | "argmax" | "argmin":
            if set(params["axes"]) & set(first.axes):
                return None
            moved = [a - sum(d < a for d in params["axes"]) for a in first.axes]
            return dataclasses.replace(first, axes=_pair(moved))
        case "broadcast_in_dim":
            places = params["broadcast_dimensions"]
            moved = _pair(places[a] for a in first.axes)
            kept = all(before[a] == after[m] for a, m in zip(first.axes, moved, strict=True))
            return dataclasses.replace(first, axes=moved) if kept else None
        case "reshape" | "squeeze" | "expand_dims":
            return _reshaped(first, before, after)
    if equation.name not in _ELEMENTWISE and not elementwise_call(equation.source):
        return None
    # An operand of length one along height or width is the same for all units.
    for atom in equation.inputs:
        size = shape(program, atom)
        if atom in seen and any(size[a] != after[a] for a in first.axes):
            return None
    return _union(windows)


def _convolution(program: Program, equation: Equation, window: _Window) -> _Window | None:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    if tuple(numbers.lhs_spec[2:]) != window.axes or set(params["lhs_dilation"]) != {1}:
        return None
    kernel = shape(program, equation.inputs[1])
    size = _pair(
        (kernel[axis] - 1) * d + 1
        for axis, d in zip(numbers.rhs_spec[2:], params["rhs_dilation"], strict=True)
    )
    moved = dataclasses.replace(window, axes=_pair(numbers.out_spec[2:]))
    return moved.slide(
        size, _pair(params["window_strides"]), _pair(p[0] for p in params["padding"])
    )


def _dense(
    program: Program, equation: Equation, window: _Window, seen: Collection[Atom]
) -> _Window | None:
    """A product over the channels only is a convolution of one by one."""
    (left, right), (batch, _) = equation.params["dimension_numbers"]
    mine = 0 if equation.inputs[0] in seen else 1
    contracting = (left, right)[mine]
    if batch or set(contracting) & set(window.axes):
        return None
    rank = len(shape(program, equation.inputs[mine]))
    free = [d for d in range(rank) if d not in contracting]
    start = 0
    if mine == 1:
        start = len(shape(program, equation.inputs[0])) - len(left)
    return dataclasses.replace(window, axes=_pair(start + free.index(a) for a in window.axes))


def _reshaped(window: _Window, before: tuple[int, ...], after: tuple[int, ...]) -> _Window | None:
    """Follow height and width where what lies before and behind each keeps its size."""
    moved = []
    for axis in window.axes:
        places = [
            d
            for d, n in enumerate(after)
            if n == before[axis]
            and math.prod(after[:d]) == math.prod(before[:axis])
            and math.prod(after[d + 1 :]) == math.prod(before[axis + 1 :])
        ]
        if len(places) != 1:
            return None
        moved.append(places[0])
    return dataclasses.replace(window, axes=_pair(moved))


def _union(windows: list[_Window]) -> _Window | None:
    first = windows[0]
    if any(w.stride != first.stride or w.axes != first.axes for w in windows):
        return None
    offset = _pair(min(w.offset[a] for w in windows) for a in (0, 1))
    end = _pair(max(w.offset[a] + w.size[a] for w in windows) for a in (0, 1))
    return dataclasses.replace(
        first, offset=offset, size=_pair(e - o for e, o in zip(end, offset, strict=True))
    )
