"""A model's computation as a flat list of equations: the only contact with JAX's jaxpr internals.

`trace` runs `jax.make_jaxpr`, inlines every transparent call (nested `jit`, `remat`, ...) and
numbers the variables, so that what reads a program sees one list in evaluation order. Opaque
calls stay one equation: functions with a derivative of their own (`custom_jvp`, `custom_vjp`),
`scan`, `cond`, `while`, and jitted functions named like an activation (`jax.nn.silu` is one).

Inlining a `remat` keeps its numbers and loses its saving of memory.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxplain.trace.convolution import blocked, is_plain, pays


def words(text: str) -> frozenset[str]:
    """Return the words of a text: names of primitives, say.

    Example:
        >>> sorted(words("mul div"))
        ['div', 'mul']
    """
    return frozenset(text.split())


# Calls whose body means the same as the call, with the parameter that holds the body.
TRANSPARENT_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
# Jitted functions kept whole, because their name says more than their equations.
ACTIVATIONS = words(
    "relu relu6 leaky_relu elu selu celu gelu silu swish softplus hard_swish hard_silu mish"
)
# Equations of a body that computes each output element from the same element of its input.
ELEMENTWISE = words(
    """abs add and cbrt clamp convert_element_type copy div eq erf erf_inv erfc exp exp2 expm1 ge gt
    integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow rsqrt select_n
    sign sin cos sqrt square stop_gradient sub tan tanh xor broadcast_in_dim pvary pcast"""
)


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An operand that is no variable: a literal, or an array that the function closes over."""

    value: Any


Atom = int | Constant


@dataclasses.dataclass(frozen=True)
class Equation:
    """One primitive applied to variables (numbers) and constants."""

    source: Any
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.source.primitive.name

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameters of the primitive."""
        return self.source.params

    @property
    def scope(self) -> str:
        """Module path that Linen and Haiku leave in the equation, or an empty string."""
        return str(self.source.source_info.name_stack)

    def bind(self, values: Sequence[Any], **overrides: Any) -> list[Any]:
        """Apply the primitive to `values`, with some parameters replaced."""
        params = self.source.primitive.get_bind_params({**self.params, **overrides})
        with self.source.ctx.manager:
            outputs = self.source.primitive.bind(*values, **params)
        return list(outputs) if self.source.primitive.multiple_results else [outputs]

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Apply the primitive in the fastest way that we know: not for what is traced again."""
        if self.name == "conv_general_dilated" and is_plain(self.params):
            image, weight = values
            if pays(image, weight, self.params):
                return [blocked(image, weight, self.params)]
        return self.bind(values)


@dataclasses.dataclass(frozen=True)
class Program:
    """Equations in evaluation order between numbered inputs and outputs."""

    equations: tuple[Equation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[Atom, ...]
    avals: Mapping[int, Any]

    def producers(self) -> dict[int, int]:
        """Return the index of the equation that makes each variable."""
        return {v: i for i, e in enumerate(self.equations) for v in e.outputs}

    def consumers(self) -> dict[int, list[int]]:
        """Return the indices of the equations that read each variable; -1 stands for an output."""
        readers: dict[int, list[int]] = {}
        for index, equation in enumerate(self.equations):
            for atom in equation.inputs:
                if isinstance(atom, int):
                    readers.setdefault(atom, []).append(index)
        for atom in self.outputs:
            if isinstance(atom, int):
                readers.setdefault(atom, []).append(-1)
        return readers

    def names(self) -> dict[str, int]:
        """Return the variable of every tensor tagged with `checkpoint_name`, in evaluation order.

        A name given to several tensors becomes "name#0", "name#1", ... A tag whose result nothing
        reads names the tensor that it was put on.
        """
        read = self.consumers()
        found: dict[str, list[int]] = {}
        for equation in self.equations:
            if equation.name != "name":
                continue
            (source,), (variable,) = equation.inputs, equation.outputs
            if variable not in read and isinstance(source, int):
                variable = source
            variables = found.setdefault(str(equation.params["name"]), [])
            if (
                isinstance(source, int) and source in variables
            ):  # the same tag once more: the outer one counts
                variables.remove(source)
            if variable not in variables:
                variables.append(variable)
        return numbered(found)

    def pruned(self, outputs: Sequence[Atom], named: Iterable[int]) -> "Program":
        """Return the program of some of the outputs, without equations that nothing asks for."""
        needed = set(ancestors(self, [*outputs, *named])[0])
        kept = [e for i, e in enumerate(self.equations) if i in needed or not e.outputs]
        return dataclasses.replace(self, equations=tuple(kept), outputs=tuple(outputs))

    def inner_names(self) -> set[str]:
        """Return the tags inside loops and branches, which no single tensor carries."""
        names = set()
        for equation in self.equations:
            if equation.name == "scan":
                inside: tuple[Program, ...] = (scan_body(equation),)
            elif equation.name == "cond":
                inside = branches(equation)
            else:
                continue
            for program in inside:
                names |= set(program.names()) | program.inner_names()
        return names


T = TypeVar("T")


def numbered(found: Mapping[str, Sequence[T]]) -> dict[str, T]:
    """Flatten {name: things}: a name with several things becomes "name#0", "name#1", ...

    Example:
        >>> numbered({"conv": [1], "relu": [2, 3]})
        {'conv': 1, 'relu#0': 2, 'relu#1': 3}
    """
    return {
        f"{name}#{number}" if len(things) > 1 else name: thing
        for name, things in found.items()
        for number, thing in enumerate(things)
    }


def _body(call: Any) -> tuple[Any, Sequence[Any]]:
    """Return (equations' owner, constants) of an open or closed jaxpr."""
    return getattr(call, "jaxpr", call), getattr(call, "consts", ())


def _is_activation(equation: Any) -> bool:
    if equation.params.get("name") not in ACTIVATIONS or len(equation.outvars) != 1:
        return False
    return all(
        _is_activation(inner) or inner.primitive.name in ELEMENTWISE or elementwise_call(inner)
        for inner in _body(equation.params["jaxpr"])[0].eqns
    )


def elementwise_call(equation: Any) -> bool:
    """Say whether a jaxpr equation calls a function that is elementwise in all it does."""
    key = TRANSPARENT_CALLS.get(equation.primitive.name) or (
        "call_jaxpr" if equation.primitive.name == "custom_jvp_call" else None
    )
    return key is not None and all(
        e.primitive.name in ELEMENTWISE or elementwise_call(e)
        for e in _body(equation.params[key])[0].eqns
    )


def flatten(jaxpr: Any, consts: Sequence[Any] | None = None) -> Program:
    """Inline the transparent calls of a jaxpr (open or closed) and number its variables."""
    equations: list[Equation] = []
    avals: dict[int, Any] = {}

    def fresh(var: Any) -> int:
        avals[len(avals)] = var.aval
        return len(avals) - 1

    def inline(owner: Any, constants: Sequence[Any], arguments: Sequence[Atom]) -> list[Atom]:
        env: dict[Any, Atom] = dict(zip(owner.invars, arguments, strict=True))
        env.update((v, Constant(c)) for v, c in zip(owner.constvars, constants, strict=True))

        def read(var: Any) -> Atom:
            return Constant(var.val) if isinstance(var, core.Literal) else env[var]

        for eqn in owner.eqns:
            inputs = [read(v) for v in eqn.invars]
            key = TRANSPARENT_CALLS.get(eqn.primitive.name)
            if key is not None and not _is_activation(eqn):
                env.update(zip(eqn.outvars, inline(*_body(eqn.params[key]), inputs), strict=True))
                continue
            outputs = tuple(fresh(v) for v in eqn.outvars)
            equations.append(Equation(eqn, tuple(inputs), outputs))
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in owner.outvars]

    owner, own_consts = _body(jaxpr)
    inputs = tuple(fresh(v) for v in owner.invars)
    outputs = inline(owner, own_consts if consts is None else consts, inputs)
    return Program(tuple(equations), inputs, tuple(outputs), avals)


def trace(function: Callable[..., Any], *args: Any) -> tuple[Program, Any]:
    """Return the flat program of `function(*args)` and its result as shapes.

    Arguments may be arrays, tracers or `jax.ShapeDtypeStruct`; the program's inputs and outputs
    are the flattened leaves.
    """
    closed, result = jax.make_jaxpr(function, return_shape=True)(*args)
    return flatten(closed), result


def body(equation: Equation) -> Program | None:
    """Return the program inside a `custom_jvp_call` or a kept activation, or None."""
    call = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
    if equation.name not in ("custom_jvp_call", *TRANSPARENT_CALLS) or call is None:
        return None
    inner = flatten(call)
    # The body may itself be one kept activation (`relu` is a jitted function in a `custom_jvp`).
    while len(inner.equations) == 1 and inner.equations[0].name in TRANSPARENT_CALLS:
        inner = flatten(inner.equations[0].params[TRANSPARENT_CALLS[inner.equations[0].name]])
    return inner


def called(equation: Equation) -> str | None:
    """Return the name of a jitted function."""
    name = equation.params.get("name")
    return None if name is None else str(name)


def source(equation: Equation) -> str:
    """Say where a function with a derivative of its own was written: "name at file:line"."""
    info = getattr(_body(equation.params.get("call_jaxpr"))[0], "debug_info", None)
    return str(getattr(info, "func_src_info", None) or equation.name)


def derivative(equation: Equation, position: int) -> Program:
    """Return the program (operands, tangent of one) -> tangent of the first output."""
    # Abstract values as they are: they say how an array lies on a mesh.
    others = [v.aval for v in equation.source.invars]
    primal = others.pop(position)

    def tangent(rest: Sequence[Any], x: Any, t: Any) -> Any:
        def function(x: Any) -> Any:
            return equation.bind([*rest[:position], x, *rest[position:]])[0]

        return jax.jvp(function, (x,), (t,))[1]

    return flatten(jax.make_jaxpr(tangent)(others, primal, primal))


def shape(program: Program, atom: Atom) -> tuple[int, ...]:
    """Return the shape of an operand."""
    if isinstance(atom, Constant):
        return tuple(jnp.shape(atom.value))
    return tuple(program.avals[atom].shape)


def branches(equation: Equation) -> tuple[Program, ...]:
    """Return the programs of a `cond` equation's branches."""
    programs = [flatten(b) for b in equation.params["branches"]]
    return tuple(p.pruned(p.outputs, ()) for p in programs)


def scan_body(equation: Equation) -> Program:
    """Return the program of a `scan`'s step: (constants, carry, slices) -> (carry, slices)."""
    program = flatten(equation.params["jaxpr"])
    return program.pruned(program.outputs, ())


def is_float(value: Any) -> bool:
    """Say whether a value or an abstract value carries derivatives."""
    dtype = value.dtype if hasattr(value, "dtype") else jnp.result_type(value)
    return jnp.issubdtype(dtype, jnp.inexact)


def evaluate(
    program: Program,
    values: Mapping[int, Any],
    wanted: Sequence[Atom],
    *,
    equations: Sequence[int] | None = None,
    edits: Mapping[int, Callable[[Any], Any]] | None = None,
    fast: bool = False,
) -> list[Any]:
    """Run equations (all, or those listed) from known variables and return the wanted ones.

    Args:
        program: what to run.
        values: the known variables, by number.
        wanted: variables or constants to return.
        equations: indices to run, in ascending order; None runs all.
        edits: functions applied to variables the moment they are known, before anything reads them.
        fast: in the fastest way that we know, whose equations are not those of the program.
    """
    env = dict(values)
    edits = edits or {}
    for variable in set(env) & set(edits):
        env[variable] = edits[variable](env[variable])
    for index in range(len(program.equations)) if equations is None else equations:
        equation = program.equations[index]
        operands = [read(env, a) for a in equation.inputs]
        # An edited tag is not laid a second time under the edit, which may lay its own.
        edited_tag = equation.name == "name" and equation.outputs[0] in edits
        apply = equation.run if fast else equation.bind
        outputs = operands if edited_tag else apply(operands)
        for variable, output in zip(equation.outputs, outputs, strict=True):
            env[variable] = edits[variable](output) if variable in edits else output
    return [read(env, a) for a in wanted]


def read(env: Mapping[int, Any], atom: Atom) -> Any:
    """Return the value of a variable or constant."""
    return atom.value if isinstance(atom, Constant) else env[atom]


def ancestors(
    program: Program, wanted: Sequence[Atom], stop: frozenset[int] = frozenset()
) -> tuple[list[int], set[int]]:
    """Return the equations that `wanted` needs, and the inputs that these read.

    The search ends at the variables in `stop`.
    """
    producers = program.producers()
    needed: set[int] = set()
    inputs: set[int] = set()
    pending = [a for a in wanted if isinstance(a, int)]
    seen = set(pending)
    while pending:
        variable = pending.pop()
        if variable in stop:
            continue
        if variable not in producers:
            inputs.add(variable)
            continue
        needed.add(producers[variable])
        for atom in program.equations[producers[variable]].inputs:
            if isinstance(atom, int) and atom not in seen:
                seen.add(atom)
                pending.append(atom)
    return sorted(needed), inputs
