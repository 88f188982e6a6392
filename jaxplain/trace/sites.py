"""Sites: what a network does, read off its program.

A *site* is a group of equations that the rules treat as one thing: a ReLU however it is written, a pooling, or a
convolution (dense layer) together with the bias and the batch norm behind it. `survey` finds them and says which variables
depend on the explained input:

- *active*: a floating-point path leads there from the input;
- *dependent*: it depends on the input without a derivative (`x > 0`, an index, a stopped gradient).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.trace import jaxpr as jx
from jaxplain.trace.jaxpr import Atom, Constant, Equation, Program

# Linear in all active operands together.
LINEAR = frozenset(
    """add add_any sub neg reshape transpose broadcast_in_dim reduce_sum reduce_window_sum convert_element_type pad slice
    concatenate squeeze expand_dims rev copy copy_p name cumsum sharding_constraint optimization_barrier pvary pcast
    device_put split reduce_precision psum psum_invariant reshard""".split()
)
# Linear in one active operand, provided that the others do not depend on the input.
BILINEAR = frozenset("mul dot_general conv_general_dilated".split())
INDEXED = frozenset(
    "gather dynamic_slice dynamic_update_slice scatter scatter-add select_n".split()
)
COMPARISONS = {"gt": 1, "ge": 1, "lt": -1, "le": -1}
PRODUCTS = frozenset("conv_general_dilated dot_general".split())
LAYOUT = frozenset("transpose reshape squeeze expand_dims name".split())


@dataclasses.dataclass(frozen=True)
class Tail:
    """One step behind a convolution or dense product that still belongs to the affine map.

    Attributes:
        equation: index of the equation.
        operand: the other operand of add, sub, mul or div; None for a change of layout.
        axis: axis of the channels before this step.
    """

    equation: int
    operand: Atom | None
    axis: int


@dataclasses.dataclass(frozen=True)
class Site:
    """A group of equations with one active input and one output.

    Attributes:
        kind: "conv", "dense", "relu", "relu6", "leaky_relu", "max_pool", another activation's name, or a primitive's.
        equations: their indices, in order.
        input: the active variable that enters.
        output: the variable that leaves.
        layer: name of the layer: the next tag downstream, else the module path.
        first: no convolution or dense layer comes before it.
        last: none comes behind it.
        tail: for an affine site, the steps behind the product.
        cap: for "relu6", the upper bound.
    """

    kind: str
    equations: tuple[int, ...]
    input: int
    output: int
    layer: str = ""
    first: bool = False
    last: bool = False
    tail: tuple[Tail, ...] = ()
    cap: float = math.inf


@dataclasses.dataclass(frozen=True)
class Survey:
    """What `survey` found: the sites by the index of their last equation, and the variables that matter."""

    sites: Mapping[int, Site]
    inner: frozenset[int]
    active: frozenset[int]
    dependent: frozenset[int]

    def is_active(self, atom: Atom) -> bool:
        """Say whether an operand is a floating-point function of the input."""
        return isinstance(atom, int) and atom in self.active

    def depends(self, atom: Atom) -> bool:
        """Say whether an operand depends on the input at all."""
        return isinstance(atom, int) and (atom in self.active or atom in self.dependent)


def activity(program: Program, inputs: Iterable[int]) -> tuple[set[int], set[int]]:
    """Return the (active, dependent) variables, given the active inputs."""
    active, dependent = set(inputs), set()
    for equation in program.equations:
        touched = [
            a for a in equation.inputs if isinstance(a, int) and (a in active or a in dependent)
        ]
        if not touched:
            continue
        flows = any(a in active for a in touched) and equation.name != "stop_gradient"
        outputs_active: Sequence[bool] = [flows] * len(equation.outputs)
        if equation.name in ("scan", "cond") and flows:
            outputs_active = output_activity(
                equation, [isinstance(a, int) and a in active for a in equation.inputs]
            )
        for variable, flag in zip(equation.outputs, outputs_active, strict=True):
            (active if flag and jx.is_float(program.avals[variable]) else dependent).add(variable)
    return active, dependent


def output_activity(equation: Equation, inputs: Sequence[bool]) -> list[bool]:
    """Return which outputs of a `scan` or `cond` are active, given which inputs are."""
    if equation.name == "cond":
        flags = [False] * len(equation.outputs)
        for branch in jx.branches(equation):
            found, _ = activity(
                branch, [v for v, a in zip(branch.inputs, inputs[1:], strict=True) if a]
            )
            flags = [
                f or (isinstance(o, int) and o in found)
                for f, o in zip(flags, branch.outputs, strict=True)
            ]
        return flags
    step, outputs = scan_activity(equation, inputs)
    del step
    return outputs


def scan_activity(equation: Equation, inputs: Sequence[bool]) -> tuple[list[bool], list[bool]]:
    """Return which inputs and outputs of a scan's step are active: the fixed point over its carry."""
    body = jx.scan_body(equation)
    start, count = equation.params["num_consts"], equation.params["num_carry"]
    inputs = list(inputs)
    while True:
        found, _ = activity(body, [v for v, a in zip(body.inputs, inputs, strict=True) if a])
        outputs = [isinstance(o, int) and o in found for o in body.outputs]
        carry = [
            a or b for a, b in zip(inputs[start : start + count], outputs[:count], strict=True)
        ]
        if carry == inputs[start : start + count]:
            return inputs, carry + outputs[count:]
        inputs[start : start + count] = carry


def survey(
    program: Program, inputs: Iterable[int], names: Mapping[int, str] | None = None
) -> Survey:
    """Find the sites of a program whose variables `inputs` are explained.

    Args:
        program: the flat program.
        inputs: the active input variables.
        names: further names of variables (module outputs), beside the tags.
    """
    active, dependent = activity(program, inputs)
    reader = _Reader(program, active, dependent)
    sites: dict[int, Site] = {}
    claimed: set[int] = set()
    for index, equation in enumerate(program.equations):
        if index in claimed or not any(isinstance(a, int) and a in active for a in equation.inputs):
            continue
        site = reader.affine(index) or reader.activation(index) or reader.pooling(index)
        if site is not None and not claimed & set(site.equations):
            sites[site.equations[-1]] = site
            claimed.update(site.equations)
    labels = reader.labels(names or {})
    firsts, lasts = _ends(program, sites, active)
    for index, site in sites.items():
        position = site.equations[0] if site.kind in ("conv", "dense") else index
        sites[index] = dataclasses.replace(
            site, layer=labels[position], first=index in firsts, last=index in lasts
        )
    inner = frozenset(claimed - set(sites))
    return Survey(sites, inner, frozenset(active), frozenset(dependent))


def _ends(
    program: Program, sites: Mapping[int, Site], active: set[int]
) -> tuple[set[int], set[int]]:
    """Return the affine sites before which, and behind which, no other affine site comes."""
    affine = {i: s for i, s in sites.items() if s.kind in ("conv", "dense")}
    after: set[int] = set()  # variables behind an affine site
    firsts = set()
    for index, equation in enumerate(program.equations):
        if index in affine:
            if affine[index].input not in after:
                firsts.add(index)
            after.update(equation.outputs)
        elif any(isinstance(a, int) and a in after for a in equation.inputs):
            after.update(equation.outputs)
    before: set[int] = set()  # variables before an affine site
    lasts = set()
    for index in range(len(program.equations) - 1, -1, -1):
        equation = program.equations[index]
        if index in affine and affine[index].output not in before:
            lasts.add(index)
        starts_site = equation.name in PRODUCTS
        if starts_site or any(v in before for v in equation.outputs):
            before.update(a for a in equation.inputs if isinstance(a, int) and a in active)
    return firsts, lasts


class _Reader:
    """Pattern recognition over one program."""

    def __init__(self, program: Program, active: set[int], dependent: set[int]):
        self.program, self.active, self.dependent = program, active, dependent
        self.producers, self.consumers = program.producers(), program.consumers()

    def is_active(self, atom: Atom) -> bool:
        return isinstance(atom, int) and atom in self.active

    def depends(self, atom: Atom) -> bool:
        return isinstance(atom, int) and (atom in self.active or atom in self.dependent)

    def producer(self, atom: Atom) -> Equation | None:
        if not isinstance(atom, int) or atom not in self.producers:
            return None
        return self.program.equations[self.producers[atom]]

    def only_consumer(self, variable: int) -> int | None:
        readers = self.consumers.get(variable, [])
        return readers[0] if len(readers) == 1 and readers[0] >= 0 else None

    def constant(self, atom: Atom) -> float | None:
        """Return the number that all elements of an operand equal, if that is known."""
        while not isinstance(atom, Constant):
            equation = self.producer(atom)
            if equation is None or equation.name not in (
                "broadcast_in_dim",
                "convert_element_type",
                "reshape",
                "copy",
            ):
                return None
            atom = equation.inputs[0]
        if isinstance(atom.value, jax.core.Tracer):
            return None
        values = np.asarray(atom.value)
        if values.size == 0 or not np.issubdtype(values.dtype, np.number):
            return None
        low, high = float(values.min()), float(values.max())
        return low if low == high else None

    def shape(self, atom: Atom) -> tuple[int, ...]:
        return (
            np.shape(atom.value)
            if isinstance(atom, Constant)
            else tuple(self.program.avals[atom].shape)
        )

    # -- activations ---------------------------------------------------------------------------------------------

    def activation(self, index: int) -> Site | None:
        equation = self.program.equations[index]
        match equation.name:
            case "custom_jvp_call" | "jit" | "pjit":
                return self._named(index)
            case "max" | "min" | "clamp":
                return self._clipped(index)
            case "select_n":
                return self._selected(index)
            case "mul":
                return self._masked(index)
        return None

    def _site(self, kind: str, equations: Sequence[int], source: int, **more: Any) -> Site:
        return Site(
            kind, tuple(equations), source, self.program.equations[equations[-1]].outputs[0], **more
        )

    def _named(self, index: int) -> Site | None:
        """An activation that is one call: its body decides whether it is a ReLU, its name what else it is."""
        equation = self.program.equations[index]
        sources = [a for a in equation.inputs if self.depends(a)]
        body = jx.body(equation)
        if (
            body is None
            or len(sources) != 1
            or not self.is_active(sources[0])
            or len(equation.outputs) != 1
        ):
            return None
        source = sources[0]
        assert isinstance(source, int)
        if self.shape(source) != self.shape(equation.outputs[0]):
            return None
        position = equation.inputs.index(source)
        found = survey(body, [body.inputs[position]])
        if len(found.sites) == 1:
            inner = next(iter(found.sites.values()))
            steps = [e for i, e in enumerate(body.equations) if i not in inner.equations]
            if inner.output == body.outputs[0] and not any(
                found.is_active(a)
                and e.name in jx.ELEMENTWISE
                and e.name not in (*COMPARISONS, "mul", "stop_gradient", "convert_element_type")
                for e in steps
                for a in e.inputs
            ):
                return self._site(inner.kind, [index], source, cap=inner.cap)
        name = equation.params.get("name")
        if name in jx.ACTIVATIONS - {"relu", "relu6"} and all(
            e.name in jx.ELEMENTWISE or jx.body(e) for e in body.equations
        ):
            return self._site(str(name), [index], source)
        return None

    def _clipped(self, index: int) -> Site | None:
        """max(x, 0); min(max(x, 0), cap); max(min(x, cap), 0); clamp(0, x, cap)."""
        equation = self.program.equations[index]
        if equation.name == "clamp":
            low, source, high = equation.inputs
            if (
                self.constant(low) == 0
                and self.constant(high) is not None
                and not self.depends(low)
            ):
                return self._site(
                    "relu6", [index], int(source), cap=float(self.constant(high) or 0.0)
                )  # type: ignore[arg-type]
            return None
        bound = self._bounded(equation)
        if bound is None:
            return None
        source, value = bound
        if equation.name == "max" and value != 0 or equation.name == "min" and not value > 0:
            return None
        following = self.only_consumer(equation.outputs[0])
        other = self.program.equations[following] if following is not None else None
        if other is not None and {equation.name, other.name} == {"max", "min"}:
            second = self._bounded(other)
            if second is not None and (second[1] == 0 if other.name == "max" else second[1] > 0):
                return self._site("relu6", [index, following], source, cap=max(value, second[1]))  # type: ignore[list-item]
        return self._site("relu", [index], source) if equation.name == "max" else None

    def _bounded(self, equation: Equation) -> tuple[int, float] | None:
        """Split max/min(x, constant) into (x, constant)."""
        for source, bound in (equation.inputs, equation.inputs[::-1]):
            value = self.constant(bound)
            if self.is_active(source) and value is not None:
                return source, value  # type: ignore[return-value]
        return None

    def _sign_test(self, atom: Atom) -> tuple[int, int] | None:
        """Read `x > 0` (or >=, <, <=, or the mirrored form) as (x, +1 where it asks for positive, -1 for negative)."""
        equation = self.producer(atom)
        while equation is not None and equation.name in ("convert_element_type", "copy"):
            equation = self.producer(equation.inputs[0])
        if equation is None or equation.name not in COMPARISONS:
            return None
        left, right = equation.inputs
        direction = COMPARISONS[equation.name]
        if self.is_active(left) and self.constant(right) == 0:
            return left, direction  # type: ignore[return-value]
        if self.is_active(right) and self.constant(left) == 0:
            return right, -direction  # type: ignore[return-value]
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
        if scaled is not None and scaled.name == "mul" and source in scaled.inputs:
            slope = scaled.inputs[1 - scaled.inputs.index(source)]
            if not self.depends(slope) and self.only_consumer(scaled.outputs[0]) == index:
                return self._site("leaky_relu", [self.producers[negative], index], source)  # type: ignore[index]
        return None

    def _masked(self, index: int) -> Site | None:
        """X * (x > 0) is a ReLU."""
        left, right = self.program.equations[index].inputs
        for source, factor in ((left, right), (right, left)):
            if self.is_active(source) and not self.is_active(factor):
                test = self._sign_test(factor)
                if test == (source, 1):
                    return self._site("relu", [index], source)  # type: ignore[arg-type]
        return None

    # -- pooling and affine maps -----------------------------------------------------------------------------------

    def pooling(self, index: int) -> Site | None:
        equation = self.program.equations[index]
        if equation.name in ("reduce_window_max", "reduce_max"):
            return self._site("max_pool", [index], int(equation.inputs[0]))  # type: ignore[arg-type]
        return None

    def affine(self, index: int) -> Site | None:
        equation = self.program.equations[index]
        if equation.name not in PRODUCTS:
            return None
        flags = [self.depends(a) for a in equation.inputs]
        if sum(flags) != 1 or not self.is_active(equation.inputs[flags.index(True)]):
            return None
        source = equation.inputs[flags.index(True)]
        axis = _channel_axis(equation, flags.index(True), len(self.shape(equation.outputs[0])))
        kind = "conv" if equation.name == "conv_general_dilated" else "dense"
        tail = self._tail(equation.outputs[0], axis) if axis is not None else []
        while (
            tail and tail[-1].operand is None
        ):  # a change of layout at the end belongs to what follows
            tail.pop()
        return self._site(kind, [index, *(t.equation for t in tail)], int(source), tail=tuple(tail))  # type: ignore[arg-type]

    def _tail(self, variable: int, axis: int) -> list[Tail]:
        """Follow the only consumer as long as it scales, shifts or rearranges whole channels."""
        steps: list[Tail] = []
        while (index := self.only_consumer(variable)) is not None:
            equation = self.program.equations[index]
            step_axis: int | None = axis
            if equation.name in ("add", "sub", "mul", "div"):
                left, right = equation.inputs
                operand = right if left == variable else left
                swapped_division = equation.name == "div" and left != variable
                if left == right or swapped_division or self.depends(operand):
                    break
                if not self._per_channel(operand, axis):
                    break
                steps.append(Tail(index, operand, axis))
            elif equation.name in LAYOUT:
                step_axis = self._moved_axis(equation, axis)
                if step_axis is None:
                    break
                steps.append(Tail(index, None, axis))
            else:
                break
            variable, axis = equation.outputs[0], step_axis
        return steps

    def _per_channel(self, atom: Atom, axis: int) -> bool:
        """Say whether an operand provably varies along the channels only."""
        shape = self.shape(atom)
        if all(n == 1 for d, n in enumerate(shape) if d != axis):
            return True
        equation = self.producer(atom)
        if equation is None or equation.name != "broadcast_in_dim":
            return False
        inner = self.shape(equation.inputs[0])
        return all(
            n == 1 or d == axis
            for n, d in zip(inner, equation.params["broadcast_dimensions"], strict=True)
        )

    def _moved_axis(self, equation: Equation, axis: int) -> int | None:
        """Return where the channel axis is after a change of layout, or None if the channels are mixed up."""
        if equation.name == "name":
            return axis
        if equation.name == "transpose":
            return tuple(equation.params["permutation"]).index(axis)
        old, new = self.shape(equation.inputs[0]), self.shape(equation.outputs[0])
        if [n for n in old if n > 1] != [n for n in new if n > 1] or old[axis] == 1:
            return None
        rank = sum(n > 1 for n in old[:axis])
        return [d for d, n in enumerate(new) if n > 1][rank]

    # -- names -----------------------------------------------------------------------------------------------------

    def labels(self, names: Mapping[int, str]) -> list[str]:
        """Name every equation by the next named tensor before another product, else by its module path."""
        named: list[str] = [""] * len(self.program.equations)
        for index in range(len(self.program.equations) - 1, -1, -1):
            equation = self.program.equations[index]
            if equation.name == "name":
                named[index] = str(equation.params["name"])
                continue
            known = [names[v] for v in equation.outputs if v in names]
            following = min(
                (i for v in equation.outputs for i in self.consumers.get(v, [-1])), default=-1
            )
            if known:
                named[index] = known[0]
            elif following >= 0 and self.program.equations[following].name not in PRODUCTS:
                named[index] = named[following]
        return [
            name or _module_path(equation) or f"equation {index} ({equation.name})"
            for index, (name, equation) in enumerate(
                zip(named, self.program.equations, strict=True)
            )
        ]


def _module_path(equation: Equation) -> str:
    """Return the path that Linen and Haiku leave, without the outermost module."""
    return ".".join(equation.scope.split("/")[1:])


def _channel_axis(equation: Equation, operand: int, rank: int) -> int | None:
    """Return the output axis along which the weights' output channels lie, if there is exactly one."""
    if equation.name == "conv_general_dilated":
        plain = equation.params["batch_group_count"] == 1 and operand == 0
        return equation.params["dimension_numbers"].out_spec[1] if plain else None
    (left, right), (batch, _) = equation.params["dimension_numbers"]
    if batch:
        return None
    del left, right
    weight_rank = _weight_free_rank(equation, 1 - operand)
    if weight_rank != 1:
        return None
    return rank - 1 if operand == 0 else 0


def _weight_free_rank(equation: Equation, weight: int) -> int:
    contracting, _ = equation.params["dimension_numbers"]
    atom = equation.inputs[weight]
    shape = (
        np.shape(atom.value)
        if isinstance(atom, Constant)
        else equation.source.invars[weight].aval.shape
    )
    return len(shape) - len(contracting[weight])


def weight_channel_axis(equation: Equation, weight: int) -> int:
    """Return the axis of the weights along which the output channels lie."""
    if equation.name == "conv_general_dilated":
        return equation.params["dimension_numbers"].rhs_spec[0]
    contracting, _ = equation.params["dimension_numbers"]
    rank = len(equation.source.invars[weight].aval.shape)
    return next(d for d in range(rank) if d not in contracting[weight])


def fold(program: Program, site: Site, env: Mapping[int, Any]) -> tuple[jax.Array, jax.Array]:
    """Return (scale, bias), each (K,): the site maps the product z to scale * z + bias, channel by channel."""
    product = program.equations[site.equations[0]].outputs[0]
    aval = program.avals[product]
    axis = site.tail[0].axis if site.tail else len(aval.shape) - 1
    scale, bias = jnp.ones(aval.shape[axis], aval.dtype), jnp.zeros(aval.shape[axis], aval.dtype)
    variable = product
    for step in site.tail:
        equation = program.equations[step.equation]
        if step.operand is not None:
            value = jnp.asarray(jx.read(env, step.operand))
            if value.ndim:
                value = value[
                    tuple(slice(None) if d == step.axis else 0 for d in range(value.ndim))
                ]
            match equation.name:
                case "add":
                    bias = bias + value
                case "mul":
                    scale, bias = scale * value, bias * value
                case "div":
                    scale, bias = scale / value, bias / value
                case "sub" if equation.inputs[0] == variable:
                    bias = bias - value
                case "sub":
                    scale, bias = -scale, value - bias
        variable = equation.outputs[0]
    return scale, bias


def nonlinearity(equation: Equation, found: Survey) -> str | None:
    """Say why the equation's own derivative may not stand for a rule, or None where it is linear in the input."""
    active = [found.is_active(a) for a in equation.inputs]
    depends = [found.depends(a) for a in equation.inputs]
    name = equation.name
    if name in LINEAR:
        return None
    if name in BILINEAR:
        return None if sum(depends) == 1 else "multiplies two things that depend on the input"
    if name == "div":
        return None if not depends[1] else "divides by something that depends on the input"
    if name in INDEXED:
        others = [d and not a for d, a in zip(depends, active, strict=True)]
        return "selects by something that depends on the input" if any(others) else None
    if name in ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"):
        label = equation.params.get("name") or getattr(
            equation.params.get("call_jaxpr"), "debug_info", None
        )
        return f"is a function with a derivative of its own ({label})"
    return "is not linear in the input"
