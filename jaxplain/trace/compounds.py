"""Functions that are several equations: smooth activations and local response normalization.

Each ends with a product or quotient of two branches that start at the same tensor. A smooth
activation is recognised by its values, a normalization by its equations, so that neither depends on
a name.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import ensure_compile_time_eval

from jaxplain.trace import jaxpr as jx

if TYPE_CHECKING:
    from jaxplain.trace.patterns import Reader

NORMALIZATION = "local_response_normalization"

_ERF = np.vectorize(math.erf)
_SMOOTH: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: x * (1 + _ERF(x / np.sqrt(2))) / 2,
    "gelu by tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
}
_POINTS = np.linspace(-5, 5, 41)
# What may lie between the energy of a window and the quotient.
_OF_ENERGY = jx.words(
    """add mul div pow sqrt rsqrt integer_pow exp log neg reduce_window_sum pad broadcast_in_dim
    convert_element_type"""
)


class Compound(NamedTuple):
    """Several equations from one tensor to another.

    Attributes:
        kind: what they compute.
        equations: their indices, in order.
        source: the variable that enters.
    """

    kind: str
    equations: tuple[int, ...]
    source: int


def compound(reader: "Reader", index: int) -> Compound | None:
    """Read the function that ends with a product or quotient, if it is one of those known here."""
    found = _between(reader, index)
    if found is None:
        return None
    source, equations = found
    names = [reader.program.equations[i].name for i in equations]
    if set(names) <= jx.ELEMENTWISE:
        kind = _activation(reader, source, equations)
    else:
        kind = NORMALIZATION if _normalizes(reader, source, equations) else None
    return None if kind is None else Compound(kind, tuple(equations), source)


def _between(reader: "Reader", index: int) -> tuple[int, list[int]] | None:
    """Return the nearest tensor that both operands come from, and the equations from there.

    Nothing else may read what is in between.
    """
    front = {a for a in reader.program.equations[index].inputs if reader.depends(a)}
    within = {index}
    while len(front) > 1:
        last = max(reader.producers.get(a, -1) for a in front if isinstance(a, int))
        if last < 0 or reader.program.equations[last].name not in jx.ELEMENTWISE | _OF_ENERGY:
            return None
        within.add(last)
        equation = reader.program.equations[last]
        front -= set(equation.outputs)
        front |= {a for a in equation.inputs if reader.depends(a)}
    (source,) = front or {None}
    if len(within) < 2 or not isinstance(source, int) or not reader.is_active(source):
        return None
    for i in within - {index}:
        for variable in reader.program.equations[i].outputs:
            readers = set(reader.consumers.get(variable, []))
            if not readers <= within or variable in reader.cuts:
                return None
    return source, sorted(within)


def _activation(reader: "Reader", source: int, equations: list[int]) -> str | None:
    """Name an elementwise function by its values."""
    program = reader.program
    with ensure_compile_time_eval():
        values = {source: jnp.asarray(_POINTS, program.avals[source].dtype)}
        for i in equations:
            equation = program.equations[i]
            if equation.name in ("broadcast_in_dim", "stop_gradient"):
                return None
            operands = []
            for atom in equation.inputs:
                known = values.get(atom) if isinstance(atom, int) else None
                if known is None:
                    number = reader.constant(atom)
                    if number is None:
                        return None
                    known = jnp.full(_POINTS.shape, number, _dtype(program, atom))
                operands.append(known)
            (values[equation.outputs[0]],) = equation.bind(operands)
        found = values[program.equations[equations[-1]].outputs[0]]
        y = np.asarray(found, np.float64)
        errors = {
            name: float(np.max(np.abs(y - f(_POINTS)) / (1 + np.abs(y))))
            for name, f in _SMOOTH.items()
        }
    best = min(errors, key=lambda name: errors[name])
    accuracy = max(8 * float(jnp.finfo(found.dtype).eps), 1e-6)
    return best.partition(" ")[0] if errors[best] <= accuracy else None


def _dtype(program: jx.Program, atom: jx.Atom) -> np.dtype:
    return program.avals[atom].dtype if isinstance(atom, int) else jnp.result_type(atom.value)


def _normalizes(reader: "Reader", source: int, equations: list[int]) -> bool:
    """Say whether a tensor is scaled by a function of its energy in a window of channels."""
    *before, last = (reader.program.equations[i] for i in equations)
    squares = [e for e in before if set(e.inputs) & {source}]
    sums = [e for e in before if e.name == "reduce_window_sum"]
    if len(squares) != 1 or len(sums) != 1 or source not in last.inputs:
        return False
    (square,), (energy,) = squares, sums
    squared = (
        square.name == "square"
        or (square.name == "integer_pow" and square.params["y"] == 2)
        or (square.name == "mul" and square.inputs == (source, source))
    )
    axes = [d for d, n in enumerate(energy.params["window_dimensions"]) if n > 1]
    divides = last.name == "mul" or last.inputs[0] == source
    return squared and divides and len(axes) == 1
