"""Which tensors of a program can nowhere be negative, proved from its structure."""

from collections.abc import Callable, Collection

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxplain.trace.jaxpr import Atom, Constant, Equation, Program, words

# Non-negative where the first operand is.
_KEEP = words(
    """reshape transpose broadcast_in_dim squeeze expand_dims rev copy copy_p name reduce_sum
    reduce_max
    reduce_min cumsum cummax cummin convert_element_type slice reduce_precision sharding_constraint
    reshard pvary pcast device_put stop_gradient sqrt rsqrt cbrt pow split
    reduce_window_sum integer_pow floor ceil round sign dynamic_slice"""
)
# Each output is, where its own operand is.
_EACH = words("sort psum psum_invariant")
# Non-negative where all operands are.
_TOGETHER = words(
    """add add_any mul div concatenate min pad dot_general conv_general_dilated rem
    optimization_barrier"""
)
_ALWAYS = words("abs exp exp2 logistic square iota erfc")


def nonnegative(program: Program, rectifiers: Collection[int]) -> set[int]:
    """Return the variables that are provably nowhere negative, whatever the inputs are.

    Args:
        program: the program.
        rectifiers: indices of equations known to be, or to end, a ReLU.
    """
    found: set[int] = set()

    def known(atom: Atom) -> bool:
        if isinstance(atom, int):
            return atom in found
        return is_known(atom) and bool(np.all(np.asarray(atom.value) >= 0))

    for index, equation in enumerate(program.equations):
        rectified = index in rectifiers
        for variable in equation.outputs:
            unsigned = np.issubdtype(program.avals[variable].dtype, np.unsignedinteger)
            if rectified or unsigned or program.avals[variable].dtype == bool:
                found.add(variable)
        if rectified:
            continue
        if equation.name in _EACH:
            pairs = zip(equation.inputs, equation.outputs, strict=True)
            found.update(output for operand, output in pairs if known(operand))
        elif _proved(equation, known):
            found.update(equation.outputs)
    return found


def is_known(atom: Constant) -> bool:
    """Say whether a constant is an array of numbers that can be looked at now."""
    value = atom.value
    if isinstance(value, Tracer) or not getattr(value, "is_fully_addressable", True):
        return False
    dtype = jnp.result_type(value)
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def _proved(equation: Equation, known: Callable[[Atom], bool]) -> bool:
    inputs, params, name = equation.inputs, equation.params, equation.name
    match name:
        case "max":
            return any(known(a) for a in inputs)
        case "clamp":
            low, value, high = inputs
            return known(high) and (known(low) or known(value))
        case "select_n":
            return all(known(a) for a in inputs[1:])
        case "gather":
            return known(inputs[0]) and params.get("fill_value") is None
        case "dynamic_update_slice":
            return known(inputs[0]) and known(inputs[1])
        case "scatter" | "scatter-add":
            return known(inputs[0]) and known(inputs[2])
        case "integer_pow" if params["y"] % 2 == 0:
            return True
        case "mul" if inputs[0] == inputs[1] and isinstance(inputs[0], int):
            return True
        case "reduce_window_max":
            # A window of padding alone would give -inf.
            inside = all(
                max(pads) < size
                for pads, size in zip(params["padding"], params["window_dimensions"], strict=True)
            )
            plain = set(params["window_dilation"]) | set(params["base_dilation"]) == {1}
            return inside and plain and known(inputs[0])
    if name in _ALWAYS:
        return True
    if name in _KEEP:
        return known(inputs[0])
    if name in _TOGETHER:
        return all(known(a) for a in inputs)
    return False
