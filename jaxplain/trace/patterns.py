"""Patterns: what one site of a program looks like."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import ensure_compile_time_eval

from jaxplain.trace import jaxpr as jx
from jaxplain.trace import signs
from jaxplain.trace.compounds import compound
from jaxplain.trace.jaxpr import Atom, Constant, Equation, Program

AFFINE = frozenset({"conv", "dense"})
# Kinds whose own derivative any rule set means.
LINEAR_KINDS = AFFINE | {"average"}

PRODUCTS = jx.words("conv_general_dilated dot_general")
LAYOUT = jx.words("transpose reshape squeeze expand_dims name")
RECTIFIERS = frozenset({"relu", "relu6"})
COMPARISONS = {"gt": 1, "ge": 1, "lt": -1, "le": -1}
# What a constant may go through before it is used.
_SHAPES = jx.words("broadcast_in_dim convert_element_type reshape squeeze copy pvary pcast reshard")


@dataclasses.dataclass(frozen=True)
class Tail:
    """One step behind a convolution or dense product that still belongs to the affine map.

    Attributes:
        equation: index of the equation.
        operand: the other operand of add, sub, mul or div; None for a change of layout or dtype.
        axis: axis of the channels before this step; None where they are mixed with others.
        per_channel: `operand` varies along that axis only (or not at all).
    """

    equation: int
    operand: Atom | None
    axis: int | None
    per_channel: bool = True


@dataclasses.dataclass(frozen=True)
class Site:
    """A group of equations with one active input and one output.

    Attributes:
        kind: "conv", "dense", "average" (a product with fixed shares for weights: pooling or
            resizing), "relu", "relu6", "leaky_relu", "max_pool", "local_response_normalization",
            another activation's name, or a primitive's.
        equations: their indices, in order.
        input: the active variable that enters.
        output: the variable that leaves.
        layer: the layer's name: the next tag or module output behind it, else its module's path.
        first: no convolution or dense layer comes before it.
        last: none comes behind it.
        axis: of an affine site, the axis of the product's channels, if there is exactly one.
        tail: of an affine site, the steps behind the product.
        nonnegative: the input is provably nowhere negative.
        cap: of "relu6", the upper bound.
        strides: of a convolution or pooling over windows, the steps between them.
    """

    kind: str
    equations: tuple[int, ...]
    input: int
    output: int
    layer: str = ""
    first: bool = False
    last: bool = False
    axis: int | None = None
    tail: tuple[Tail, ...] = ()
    nonnegative: bool = False
    cap: float = math.inf
    strides: tuple[int, ...] = ()


class Reader:
    """Pattern recognition over one program.

    Args:
        program: the program.
        active: the variables that are floating-point functions of what is explained.
        dependent: those that depend on it in another way.
        cuts: variables that no site may reach over.
    """

    def __init__(
        self,
        program: Program,
        active: set[int],
        dependent: set[int],
        cuts: frozenset[int] = frozenset(),
    ):
        self.program, self.active, self.dependent, self.cuts = program, active, dependent, cuts
        self.producers, self.consumers = program.producers(), program.consumers()

    def is_active(self, atom: Atom) -> bool:
        """Say whether an operand is a floating-point function of what is explained."""
        return isinstance(atom, int) and atom in self.active

    def depends(self, atom: Atom) -> bool:
        """Say whether an operand depends on what is explained at all."""
        return isinstance(atom, int) and (atom in self.active or atom in self.dependent)

    def producer(self, atom: Atom) -> Equation | None:
        """Return the equation that makes an operand, if one does."""
        if not isinstance(atom, int) or atom not in self.producers:
            return None
        return self.program.equations[self.producers[atom]]

    def only_consumer(self, variable: int) -> int | None:
        """Return the index of the equation that alone reads a variable, if there is one."""
        readers = set(self.consumers.get(variable, []))
        reader = readers.pop() if len(readers) == 1 else -1
        return None if reader < 0 or variable in self.cuts else reader

    def constant(self, atom: Atom) -> float | None:
        """Return the number that all elements of an operand equal, if that is known."""
        while isinstance(atom, int):
            equation = self.producer(atom)
            if equation is None or equation.name not in _SHAPES:
                return None
            atom = equation.inputs[0]
        if not signs.is_known(atom):
            return None
        values = np.asarray(atom.value)
        if values.size == 0:
            return None
        low, high = float(values.min()), float(values.max())
        return low if low == high else None

    def shape(self, atom: Atom) -> tuple[int, ...]:
        """Return the shape of an operand."""
        return jx.shape(self.program, atom)

    def _site(self, kind: str, equations: Sequence[int], source: Atom, **more: Any) -> Site:
        assert isinstance(source, int)
        output = self.program.equations[equations[-1]].outputs[0]
        return Site(kind, tuple(equations), source, output, **more)

    # -- activations -------------------------------------------------------------------------------

    def activation(self, index: int) -> Site | None:
        """Read an activation that ends with, or begins at, an equation."""
        match self.program.equations[index].name:
            case "custom_jvp_call" | "jit" | "pjit":
                return self._called(index)
            case "max" | "min" | "clamp":
                return self._clipped(index)
            case "select_n":
                return self._selected(index)
            case "mul":
                return self._masked(index) or self._compound(index)
            case "div":
                return self._compound(index)
        return None

    def _compound(self, index: int) -> Site | None:
        """Read a function of several equations: a smooth activation, a normalization."""
        found = compound(self, index)
        return None if found is None else self._site(found.kind, found.equations, found.source)

    def _called(self, index: int) -> Site | None:
        """Read one call: its body decides whether it is a ReLU, its name what else it is."""
        equation = self.program.equations[index]
        sources = [a for a in equation.inputs if self.depends(a)]
        body = jx.body(equation)
        if body is None or len(sources) != 1 or len(equation.outputs) != 1:
            return None
        source = sources[0]
        if not self.is_active(source) or self.shape(source) != self.shape(equation.outputs[0]):
            return None
        position = equation.inputs.index(source)
        found = _whole(body, body.inputs[position])
        if found is not None:
            natural = equation.name != "custom_jvp_call" or has_natural_derivative(
                equation, position, found
            )
            return self._site(found.kind, [index], source, cap=found.cap) if natural else None
        name = jx.called(equation)
        elementwise = all(e.name in jx.ELEMENTWISE or jx.body(e) for e in body.equations)
        if name in jx.ACTIVATIONS - {"relu", "relu6"} and elementwise:
            return self._site(name, [index], source)
        return None

    def _clipped(self, index: int) -> Site | None:
        """max(x, 0); min(max(x, 0), cap); max(min(x, cap), 0); clamp(0, x, cap)."""
        equation = self.program.equations[index]
        if equation.name == "clamp":
            low, source, high = equation.inputs
            cap = self.constant(high)
            if self.constant(low) == 0 and cap is not None and cap > 0 and self.is_active(source):
                return self._site("relu6", [index], source, cap=cap)
            return None
        bound = self._bounded(equation)
        if bound is None:
            return None
        source, value = bound
        if not (value == 0 if equation.name == "max" else value > 0):
            return None
        following = self.only_consumer(equation.outputs[0])
        other = self.program.equations[following] if following is not None else None
        if (
            following is not None
            and other is not None
            and {equation.name, other.name} == {"max", "min"}
        ):
            second = self._bounded(other)
            if second is not None and (second[1] == 0 if other.name == "max" else second[1] > 0):
                cap = max(value, second[1])
                return self._site("relu6", [index, following], source, cap=cap)
        return self._site("relu", [index], source) if equation.name == "max" else None

    def _bounded(self, equation: Equation) -> tuple[Atom, float] | None:
        """Split max/min(x, constant) into (x, constant)."""
        for source, bound in (equation.inputs, equation.inputs[::-1]):
            value = self.constant(bound)
            if self.is_active(source) and value is not None:
                return source, value
        return None

    def _sign_test(self, atom: Atom) -> tuple[Atom, int] | None:
        """Read `x > 0` and its like as (x, +1), `x < 0` and its like as (x, -1)."""
        equation = self.producer(atom)
        while equation is not None and equation.name in (
            "convert_element_type",
            "copy",
            "stop_gradient",
        ):
            equation = self.producer(equation.inputs[0])
        if equation is None or equation.name not in COMPARISONS:
            return None
        left, right = equation.inputs
        direction = COMPARISONS[equation.name]
        if self.is_active(left) and self.constant(right) == 0:
            return left, direction
        if self.is_active(right) and self.constant(left) == 0:
            return right, -direction
        return None

    def _selected(self, index: int) -> Site | None:
        """where(x > 0, x, 0) is a ReLU; where(x > 0, x, slope * x) a leaky one."""
        predicate, *cases = self.program.equations[index].inputs
        test = self._sign_test(predicate)
        if test is None or len(cases) != 2:
            return None
        source, direction = test
        negative, positive = cases if direction > 0 else cases[::-1]
        if positive != source:
            return None
        if self.constant(negative) == 0:
            return self._site("relu", [index], source)
        scaled = self.producer(negative)
        if isinstance(negative, int) and scaled is not None and scaled.name == "mul":
            if source not in scaled.inputs or self.only_consumer(negative) != index:
                return None
            slope = scaled.inputs[1 - scaled.inputs.index(source)]
            if not self.depends(slope):
                return self._site("leaky_relu", [self.producers[negative], index], source)
        return None

    def _masked(self, index: int) -> Site | None:
        """X * (x > 0) is a ReLU."""
        left, right = self.program.equations[index].inputs
        for source, factor in ((left, right), (right, left)):
            gated = self.is_active(source) and not self.is_active(factor)
            if gated and self._sign_test(factor) == (source, 1):
                return self._site("relu", [index], source)
        return None

    # -- pooling and affine maps -------------------------------------------------------------------

    def pooling(self, index: int) -> Site | None:
        """Read a maximum over windows or axes."""
        equation = self.program.equations[index]
        if equation.name in ("reduce_window_max", "reduce_max"):
            strides = tuple(equation.params.get("window_strides", ()))
            return self._site("max_pool", [index], equation.inputs[0], strides=strides)
        return None

    def affine(self, index: int) -> Site | None:
        """Read a convolution or dense product with everything affine behind it."""
        equation = self.program.equations[index]
        if equation.name not in PRODUCTS:
            return None
        flags = [self.depends(a) for a in equation.inputs]
        position = flags.index(True)
        source = equation.inputs[position]
        if sum(flags) != 1 or not self.is_active(source):
            return None
        if self._averages(equation, 1 - position):
            return self._site("average", [index], source)
        strides: tuple[int, ...] = ()
        if equation.name == "conv_general_dilated":
            if position != 0 or equation.params["batch_group_count"] != 1:
                return None
            strides = tuple(equation.params["window_strides"])
            kind, axis = "conv", equation.params["dimension_numbers"].out_spec[1]
        else:
            kind, axis = "dense", _dense_axis(self.program, equation, position)
        tail = self._tail(equation.outputs[0], axis)
        # A change of layout at the end belongs to what follows.
        while tail and tail[-1].operand is None:
            tail.pop()
        steps = [index, *(t.equation for t in tail)]
        return self._site(kind, steps, source, axis=axis, tail=tuple(tail), strides=strides)

    def _averages(self, equation: Equation, position: int) -> bool:
        """Say whether a product pools or resizes: its weights are fixed and shares of one."""
        weight = self._fixed_value(equation.inputs[position])
        if weight is None or not np.all(weight >= 0):
            return False
        if equation.name == "conv_general_dilated":
            kept = equation.params["dimension_numbers"].rhs_spec[0]
            axes = tuple(d for d in range(weight.ndim) if d != kept)
        else:
            axes = tuple(equation.params["dimension_numbers"][0][position])
        return bool(np.allclose(weight.sum(axes), 1, atol=1e-3))

    def _fixed_value(self, atom: Atom) -> np.ndarray | None:
        """Return the value of an operand that depends on no input, if it can be known."""
        while (equation := self.producer(atom)) is not None and equation.name in ("pvary", "pcast"):
            atom = equation.inputs[0]
        if isinstance(atom, Constant):
            return np.asarray(atom.value) if signs.is_known(atom) else None
        needed, inputs = jx.ancestors(self.program, [atom])
        operands = [a for i in needed for a in self.program.equations[i].inputs]
        if inputs or not all(signs.is_known(a) for a in operands if isinstance(a, Constant)):
            return None
        with ensure_compile_time_eval():
            return np.asarray(jx.evaluate(self.program, {}, [atom], equations=needed)[0])

    def _tail(self, variable: int, axis: int | None) -> list[Tail]:
        """Follow the only consumer while it shifts, scales whole channels, or rearranges."""
        steps: list[Tail] = []
        while (index := self.only_consumer(variable)) is not None:
            equation = self.program.equations[index]
            following = axis
            if equation.name in ("add", "sub", "mul", "div"):
                step = self._shift_or_scale(index, variable, axis)
                if step is None:
                    break
                steps.append(step)
            elif equation.name in LAYOUT or self._adds_axes(equation):
                following = self._moved_axis(equation, axis)
                steps.append(Tail(index, None, axis))
            elif equation.name == "convert_element_type" and jx.is_float(
                self.program.avals[equation.outputs[0]]
            ):
                steps.append(Tail(index, None, axis))
            else:
                break
            variable, axis = equation.outputs[0], following
        return steps

    def _shift_or_scale(self, index: int, variable: int, axis: int | None) -> Tail | None:
        equation = self.program.equations[index]
        left, right = equation.inputs
        operand = right if left == variable else left
        if left == right or self.depends(operand):
            return None
        if self.shape(equation.outputs[0]) != self.shape(variable):
            return None
        per_channel = self._per_channel(operand, axis)
        if equation.name == "div" and left != variable:
            return None
        if equation.name in ("mul", "div") and not per_channel:
            return None
        return Tail(index, operand, axis, per_channel)

    def _adds_axes(self, equation: Equation) -> bool:
        """Say whether a broadcast repeats nothing: `x[:, None]` is written as one."""
        sizes = [math.prod(self.shape(a)) for a in (equation.inputs[0], equation.outputs[0])]
        return equation.name == "broadcast_in_dim" and sizes[0] == sizes[1]

    def _per_channel(self, atom: Atom, axis: int | None) -> bool:
        """Say whether an operand provably varies along the channels only."""
        shape = self.shape(atom)
        if all(n == 1 for d, n in enumerate(shape) if d != axis):
            return True
        equation = self.producer(atom)
        if equation is None or equation.name != "broadcast_in_dim":
            return False
        places = equation.params["broadcast_dimensions"]
        inner = self.shape(equation.inputs[0])
        return all(n == 1 or d == axis for n, d in zip(inner, places, strict=True))

    def _moved_axis(self, equation: Equation, axis: int | None) -> int | None:
        """Return where the channel axis is after a change of layout; None if it is mixed up."""
        if equation.name == "name" or axis is None:
            return axis
        if equation.name == "transpose":
            return tuple(equation.params["permutation"]).index(axis)
        old, new = self.shape(equation.inputs[0]), self.shape(equation.outputs[0])
        if [n for n in old if n > 1] != [n for n in new if n > 1] or old[axis] == 1:
            return None
        rank = sum(n > 1 for n in old[:axis])
        return [d for d, n in enumerate(new) if n > 1][rank]


def _dense_axis(program: Program, equation: Equation, operand: int) -> int | None:
    """Return the output axis of the weights' output channels, if there is exactly one."""
    contracting, batch = equation.params["dimension_numbers"]
    weight_rank = len(jx.shape(program, equation.inputs[1 - operand]))
    if batch[0] or weight_rank - len(contracting[1 - operand]) != 1:
        return None
    return len(jx.shape(program, equation.outputs[0])) - 1 if operand == 0 else 0


def _whole(body: Program, source: int) -> Site | None:
    """Return the rectifier or leaky ReLU that is all that a function's body does, if it is one."""
    active, dependent = {source}, set[int]()
    for equation in body.equations:
        if any(a in active or a in dependent for a in equation.inputs):
            for variable in equation.outputs:
                (active if jx.is_float(body.avals[variable]) else dependent).add(variable)
    reader = Reader(body, active, dependent)
    for index in range(len(body.equations)):
        if not any(reader.is_active(a) for a in body.equations[index].inputs):
            continue
        site = reader.activation(index)
        if site is not None:
            whole = site.input == source and site.output == body.outputs[0]
            return site if whole else None
    return None


def has_natural_derivative(equation: Equation, position: int, site: Site) -> bool:
    """Say whether a `custom_jvp` ReLU has a ReLU's derivative, read off the program of its rule.

    Args:
        equation: the call.
        position: the operand that is rectified.
        site: what its body does.
    """
    program = jx.derivative(equation, position)
    (*_, primal, tangent) = program.inputs
    reader = Reader(program, {primal, tangent} | set(program.avals), set())
    output = program.outputs[0]
    last = reader.producer(output)
    if last is None:
        return False
    if last.name == "select_n":
        predicate, closed, opened = last.inputs
        gates = _gates(reader, predicate, primal)
        return (
            opened == tangent
            and reader.constant(closed) == 0
            and gates == ({(0.0, 1)} | ({(site.cap, -1)} if site.cap < math.inf else set()))
        )
    if last.name == "mul" and tangent in last.inputs:
        factor = last.inputs[1 - last.inputs.index(tangent)]
        return site.cap == math.inf and _gates(reader, factor, primal) == {(0.0, 1)}
    return False


def _gates(reader: Reader, atom: Atom, primal: int) -> set[tuple[float, int]] | None:
    """Read comparisons of `primal` with numbers: {(number, +1 for above or -1 for below)}."""
    equation = reader.producer(atom)
    while equation is not None and equation.name in ("convert_element_type", "copy"):
        equation = reader.producer(equation.inputs[0])
    if equation is None:
        return None
    if equation.name == "and":
        left, right = (_gates(reader, a, primal) for a in equation.inputs)
        return None if left is None or right is None else left | right
    if equation.name not in COMPARISONS:
        return None
    left, right = equation.inputs
    direction = COMPARISONS[equation.name]
    if right == primal:
        left, right, direction = right, left, -direction
    bound = reader.constant(right)
    return {(bound, direction)} if left == primal and bound is not None else None
