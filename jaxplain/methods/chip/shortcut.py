"""Where the gates of a layer enter a dense layer, and what each channel adds there.

Between a layer and the first dense product behind it, most networks treat channels apart: ReLU,
pooling and flattening never mix them. The product itself is linear, so its output under any gates
is a sum of contributions, one a channel, which are computed once an image:

    y(d) = y(0) + sum_k d_k (what channel k adds),

and only what follows the product is run for every gate vector. `find` proves on the network's
program that this holds: every element between layer and product is labelled with the channel that
it depends on, and an equation that would mix two labels ends the search.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxplain.methods.streaming import ImageType
from jaxplain.model import Model
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.jaxpr import Equation, Program
from jaxplain.trace.layers import Traced, trace_model

# Equations that only move elements about: what they do to labels is what they do to values.
_MOVES = jx.words("reshape transpose squeeze expand_dims slice rev broadcast_in_dim")
_SAME = jx.words("name copy copy_p optimization_barrier reduce_precision")
_REDUCTIONS = jx.words("reduce_sum reduce_max reduce_min reduce_prod")
_WINDOWS = jx.words("reduce_window_sum reduce_window_max reduce_window_min")


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """The dense product that the gates of a layer enter linearly.

    Attributes:
        layer: its name.
        product: which of the dense products of the network's program it is.
        weight: which of its operands the weights are.
        positions: how many elements a channel has at its input.
    """

    layer: str
    product: int
    weight: int
    positions: int


class Found(NamedTuple):
    """What `find` found.

    Attributes:
        shortcut: None if there is none.
        reason: where it is, or why there is none.
        order: (K, positions) where the elements of each channel lie in the product's input.
    """

    shortcut: Shortcut | None
    reason: str
    order: np.ndarray | None = None


class Prepared(NamedTuple):
    """What the shortcut needs of the parameters.

    Attributes:
        order: as in `Found`.
        weights: (K, positions, units) the product's, by channel.
        closed: (units,) the product with all gates closed.
        at_closed: (K, positions) its input then.
    """

    order: Array
    weights: Float[Array, "k positions units"]
    closed: Float[Array, " units"]
    at_closed: Float[Array, "k positions"]


def find(traced: Traced, layer: str) -> Found:
    """Look for the dense product that the gates of a layer enter linearly.

    Args:
        traced: a model's program for one image.
        layer: one that separates the images from the logits.

    Example:
        >>> from jaxplain.models import outline
        >>> traced = trace_model(outline("vgg16"), ImageType((224, 224, 3)).batch(1))
        >>> found = find(traced, "conv5_3")
        >>> found.reason, found.shortcut.positions
        ('linear in the gates up to fc6', 49)
        >>> find(traced, "conv5_2").reason
        'conv_general_dilated mixes channels before any dense layer'
    """
    program, cut = traced.program, traced.variable(layer)
    shape = program.avals[cut].shape
    if len(shape) != 4:
        return Found(None, "the layer has no positions: its gates are at the dense layer already")
    needed, _ = jx.ancestors(program, program.outputs, frozenset({cut}))
    labels = {cut: np.broadcast_to(np.arange(shape[-1]), shape)}
    for index in needed:
        equation = program.equations[index]
        told = [isinstance(a, int) and a in labels for a in equation.inputs]
        if not any(told):
            continue
        found = _labels(equation, labels, program)
        if found is not None:
            labels[equation.outputs[0]] = found
            continue
        if equation.name != "dot_general":
            return Found(None, f"{equation.name} mixes channels before any dense layer")
        return _product(traced, layer, index, labels, told)
    return Found(None, "no dense layer follows")


def _labels(
    equation: Equation, labels: dict[int, np.ndarray], program: Program
) -> np.ndarray | None:
    """Return which channel each element of the result depends on; None if on several."""
    own = [labels[a] for a in equation.inputs if isinstance(a, int) and a in labels]
    (shape,) = (program.avals[v].shape for v in equation.outputs[:1])
    if len(equation.outputs) != 1:
        return None
    one, name, params = own[0], equation.name, equation.params
    if name in _SAME or name in _elementwise() or jx.elementwise_call(equation.source):
        same = all(other.shape == shape and (other == one).all() for other in own)
        return one if same else None
    if len(own) > 1:
        return None
    if name in _MOVES:
        return np.asarray(equation.bind([jnp.asarray(one, jnp.int32)])[0])
    if name in _REDUCTIONS:
        return _if_equal(one.min(params["axes"]), one.max(params["axes"]))
    if name in _WINDOWS:
        low, high = (_windowed(one, params, worst) for worst in (int(one.max()) + 1, -1))
        return _if_equal(low, high)
    if name == "dot_general":
        return _fixed_product(equation, labels, shape)
    return None


def _elementwise() -> frozenset[str]:
    return jx.ELEMENTWISE - _MOVES


def _if_equal(low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    return low if (low == high).all() else None


def _windowed(labels: np.ndarray, params: Any, worst: int) -> np.ndarray:
    """The least label of each window, or the largest if `worst` is less than all."""
    found = lax.reduce_window(
        jnp.asarray(labels, jnp.int32),
        np.int32(worst),
        lax.max if worst < 0 else lax.min,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["base_dilation"],
        params["window_dilation"],
    )
    return np.asarray(found)


def _fixed_product(
    equation: Equation, labels: dict[int, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray | None:
    """Labels of a product that sums within channels: an average written as a matrix."""
    side = 0 if equation.inputs[0] in labels else 1
    contracting, batch = equation.params["dimension_numbers"]
    own = labels[equation.inputs[side]]  # type: ignore[index]
    low, high = own.min(contracting[side]), own.max(contracting[side])
    if (low != high).any() or any(batch):
        return None
    # The result has the left operand's free axes, then the right one's.
    free = len(shape) - low.ndim
    places = tuple(range(low.ndim, len(shape))) if side == 0 else tuple(range(free))
    return np.broadcast_to(np.expand_dims(low, places), shape)


def _product(
    traced: Traced, layer: str, index: int, labels: dict[int, np.ndarray], told: list[bool]
) -> Found:
    """Judge the product at which channels are mixed."""
    program, equation = traced.program, traced.program.equations[index]
    side = told.index(True)
    contracting, batch = equation.params["dimension_numbers"]
    source, out = equation.inputs[side], equation.outputs[0]
    own = labels[source]  # type: ignore[index]
    flat = own.ndim == 2 and len(jx.shape(program, equation.inputs[1 - side])) == 2
    if all(told) or any(batch) or not flat or tuple(contracting[side]) != (1,):
        return Found(None, "the first product reads more than a row of features an image")
    channels = own.max() + 1
    counts = np.bincount(own[0], minlength=channels)
    if (counts != counts[0]).any():
        return Found(None, "channels have different numbers of elements at the dense layer")
    behind, _ = jx.ancestors(program, program.outputs, frozenset({out}))
    if any(a in labels for i in behind for a in program.equations[i].inputs if isinstance(a, int)):
        return Found(None, "a path goes round the dense layer")
    order = np.argsort(own[0], kind="stable").reshape(channels, -1)
    place = next((n for n, v in traced.names.items() if v > out), "the logits")
    number = _products(program).index(equation)
    shortcut = Shortcut(layer, number, 1 - side, int(counts[0]))
    return Found(shortcut, f"linear in the gates up to {place}", order)


def _products(program: Program) -> list[Equation]:
    """The dense products in order; on a mesh a program has further equations between them."""
    return [equation for equation in program.equations if equation.name == "dot_general"]


def same_program(model: Model, traced: Traced, batch: jax.ShapeDtypeStruct) -> bool:
    """Say whether a model's program for a batch is that for one image, with other shapes.

    Example:
        >>> from jaxplain.models import outline
        >>> model, image = outline("digits"), ImageType((28, 28, 1))
        >>> same_program(model, trace_model(model, image.batch(1)), image.batch(4))
        True
    """
    other = trace_model(model, batch).program.equations
    return [e.name for e in other] == [e.name for e in traced.program.equations]


def prepare(model: Model, traced: Traced, found: Found) -> Prepared:
    """Return what the shortcut needs of a model's parameters.

    Args:
        model: the model.
        traced: its program for one image.
        found: with a shortcut.
    """
    shortcut, order = found.shortcut, found.order
    assert shortcut is not None
    assert order is not None
    program = traced.program
    equation, cut = _products(program)[shortcut.product], traced.variable(shortcut.layer)
    weight = _evaluated(program, traced.bind(model.params, None), equation, shortcut.weight)
    (axis,) = equation.params["dimension_numbers"][0][shortcut.weight]
    weight = jnp.moveaxis(weight, axis, 0)[order]
    nothing = jnp.zeros(program.avals[cut].shape, program.avals[cut].dtype)
    values = {**traced.bind(model.params, None), cut: nothing}
    closed = _evaluated(program, values, equation, 1 - shortcut.weight)[0, order]
    product = jnp.einsum("kp,kpo->o", closed, weight, precision=lax.Precision.HIGHEST)
    return Prepared(jnp.asarray(order), weight, product, closed)


def _evaluated(program: Program, values: dict, equation: Equation, operand: int) -> Any:
    wanted = equation.inputs[operand]
    needed, _ = jx.ancestors(program, [wanted], frozenset(values))
    return jx.evaluate(program, values, [wanted], equations=needed)[0]


def product_outputs(
    model: Model,
    shortcut: Shortcut,
    prepared: Prepared,
    activation: Float[Array, "b h w k"],
    gates: Bool[Array, "b n k"],
    image: ImageType,
) -> Float[Array, "b n units"]:
    """Return the product's output for every image under every gate vector."""
    traced = trace_model(model, image.like(activation))
    equation = _products(traced.program)[shortcut.product]
    values = {**traced.bind(model.params, None), traced.variable(shortcut.layer): activation}
    inputs = _evaluated(traced.program, values, equation, 1 - shortcut.weight)
    change = inputs[:, prepared.order] - prepared.at_closed[None]
    gates = gates.astype(change.dtype)
    closed = prepared.closed[None, None]
    if shortcut.positions == 1:  # contributions would be as many numbers again, and save nothing
        gated = gates * change[:, None, :, 0]
        return closed + jnp.einsum("bnk,ko->bno", gated, prepared.weights[:, 0])
    contributions = jnp.einsum("bkp,kpo->bko", change, prepared.weights)
    return closed + jnp.einsum("bnk,bko->bno", gates, contributions)


def after_product(
    model: Model,
    shortcut: Shortcut,
    outputs: Float[Array, "rows units"],
    image: ImageType,
) -> Float[Array, "rows classes"]:
    """Return the logits of what a product gave."""
    traced = trace_model(model, image.like(outputs))
    program = traced.program
    out = _products(program)[shortcut.product].outputs[0]
    # A product of weights and features, in this order, has its units first.
    outputs = outputs if shortcut.weight == 1 else outputs.T
    outputs = outputs.astype(program.avals[out].dtype)
    needed, _ = jx.ancestors(program, program.outputs, frozenset({out}))
    values = {**traced.bind(model.params, None), out: outputs}
    return jx.evaluate(program, values, program.outputs, equations=needed)[0]
