"""Receptive fields read off a model's program."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxplain.model import ReceptiveField
from jaxplain.trace.jaxpr import Constant, Equation, Program

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Window:
    """A receptive field and the array axes (height, width) that it belongs to."""

    axes: Pair
    size: Pair = (1, 1)
    stride: Pair = (1, 1)
    offset: Pair = (0, 0)

    def slide(self, size: Pair, stride: Pair, padding: Pair) -> "_Window":
        """Compose with a window of `size`, moved by `stride`, that starts `padding` before the first element."""
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


def _pair(numbers) -> Pair:
    first, second = numbers
    return int(first), int(second)


def receptive_fields(program: Program, image: int) -> Mapping[int, ReceptiveField]:
    """Return the receptive field of every variable that sees the image through a regular window.

    Size, stride and offset compose as r' = r + (k - 1) s, s' = s d, o' = o - p s for a window of k (dilated) elements,
    stride d and padding p. Where branches join, strides must agree and the union is taken.

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
            else _step(program, equation, [windows[a] for a in seen])
        )
        for variable in equation.outputs:
            if window is None:
                global_.add(variable)
            else:
                windows[variable] = window
    return {v: ReceptiveField(w.size, w.stride, w.offset) for v, w in windows.items()}


def _step(program: Program, equation: Equation, windows: list[_Window]) -> _Window | None:
    first, params = windows[0], equation.params
    rank = len(program.avals[equation.outputs[0]].shape)
    match equation.name:
        case "conv_general_dilated":
            numbers = params["dimension_numbers"]
            source = next(a for a in equation.inputs if isinstance(a, int) and a in program.avals)
            del source
            if tuple(numbers.lhs_spec[2:]) != first.axes or any(
                d != 1 for d in params["lhs_dilation"]
            ):
                return None
            kernel = _shape(program, equation.inputs[1])
            size = _pair(
                (kernel[axis] - 1) * d + 1
                for axis, d in zip(numbers.rhs_spec[2:], params["rhs_dilation"], strict=True)
            )
            moved = dataclasses.replace(first, axes=_pair(numbers.out_spec[2:]))
            return moved.slide(
                size, _pair(params["window_strides"]), _pair(p[0] for p in params["padding"])
            )
        case "reduce_window_max" | "reduce_window_sum" | "reduce_window_min":
            if any(d != 1 for d in params["base_dilation"]):
                return None
            axes = first.axes
            size = _pair(
                (params["window_dimensions"][a] - 1) * params["window_dilation"][a] + 1
                for a in axes
            )
            stride = _pair(params["window_strides"][a] for a in axes)
            return first.slide(size, stride, _pair(params["padding"][a][0] for a in axes))
        case "pad":
            low = [params["padding_config"][a] for a in first.axes]
            return (
                first.slide((1, 1), (1, 1), _pair(p[0] for p in low))
                if all(p[2] == 0 for p in low)
                else None
            )
        case "slice":
            starts = _pair(-params["start_indices"][a] for a in first.axes)
            strides = params["strides"] or (1,) * rank
            return first.slide((1, 1), _pair(strides[a] for a in first.axes), starts)
        case "transpose":
            order = list(params["permutation"])
            return dataclasses.replace(first, axes=_pair(order.index(a) for a in first.axes))
        case "dot_general":
            (contracting, _), (batch, _) = params["dimension_numbers"]
            last = len(_shape(program, equation.inputs[0])) - 1
            return (
                first
                if not batch and tuple(contracting) == (last,) and last not in first.axes
                else None
            )
        case (
            "reshape"
            | "squeeze"
            | "expand_dims"
            | "reduce_sum"
            | "reduce_max"
            | "gather"
            | "while"
            | "scan"
            | "cond"
        ):
            same = _shape(program, equation.outputs[0]) == _shape(program, equation.inputs[0])
            return first if same else None
    if any(_shape(program, v) and len(_shape(program, v)) != rank for v in equation.outputs):
        return None
    return _union(windows)


def _union(windows: list[_Window]) -> _Window | None:
    first = windows[0]
    if any(w.stride != first.stride or w.axes != first.axes for w in windows):
        return None
    offset = _pair(min(w.offset[a] for w in windows) for a in (0, 1))
    end = _pair(max(w.offset[a] + w.size[a] for w in windows) for a in (0, 1))
    return dataclasses.replace(
        first, offset=offset, size=_pair(e - o for e, o in zip(end, offset, strict=True))
    )


def _shape(program: Program, atom) -> tuple[int, ...]:
    return np.shape(atom.value) if isinstance(atom, Constant) else tuple(program.avals[atom].shape)
