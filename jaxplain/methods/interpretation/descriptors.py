r"""What an image makes of a network: how strongly every channel of every layer responds.

Oramas et al. 2019, §3.1: the L2 norm of each channel over its positions, the norms of a layer
divided by their sum (which makes up for the layers' different lengths), all layers one behind the
other:

.. math:: x = \bigl[x^1 \dots x^P\bigr], \qquad
    x^p_q = \frac{\|A^p_q\|_2}{\sum_{q'} \|A^p_{q'}\|_2}

The authors' code takes the squared norm in place of the norm; both are here.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxplain.model import Model, check_images
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.layers import INPUT, Traced, trace_model

Kind = Literal["convolution", "pooling", "dense", "other"]

_WINDOWS = jx.words("reduce_window_max reduce_window_sum reduce_window_min")
_REDUCTIONS = jx.words("reduce_max reduce_sum reduce_min")


class Block(NamedTuple):
    """The part of a descriptor that one layer has.

    Attributes:
        layer: its name.
        kind: what made it: the last convolution, pooling or dense product before it.
        channels: how many numbers it has.
    """

    layer: str
    kind: Kind
    channels: int


def blocks(
    model: Model,
    layers: Sequence[str] | None = None,
    *,
    skip_last: int = 0,
    image_shape: tuple[int, int, int] | None = None,
) -> tuple[Block, ...]:
    """Return the parts of the descriptor of a model's images.

    Args:
        model: any model with layers.
        layers: names; None for every layer that the logits are made of, but the logits themselves,
            which are the classes and not what made them.
        skip_last: with None, how many of the last layers to leave out besides.
        image_shape: (H, W, C) when it differs from `model.input_shape`.

    Raises:
        ValueError: an unknown layer, one twice, one without channels, or no layer left.

    Example:
        >>> from jaxplain.models import load_model
        >>> [tuple(block) for block in blocks(load_model("digits"))][:3]
        [('conv1', 'convolution', 20), ('pool1', 'pooling', 20), ('conv2', 'convolution', 50)]
    """
    size = image_shape or model.input_shape
    if size is None:
        raise ValueError("image_shape is needed: the model does not say its input_shape")
    traced = trace_model(model, jax.ShapeDtypeStruct((1, *size), jnp.float32))
    if layers is None:
        if skip_last < 0:
            raise ValueError(f"skip_last is {skip_last}; expected 0 or more")
        chosen = _leading_to_logits(traced)
        if skip_last >= len(chosen):
            raise ValueError(
                f"skip_last is {skip_last}; expected fewer than all {len(chosen)} layers"
            )
        chosen = chosen[: len(chosen) - skip_last]
    else:
        chosen = list(layers)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"layers are {chosen}; expected one or several, each once")
    sees = _behind_image(traced)
    found = []
    for layer in chosen:
        variable = traced.variable(layer)
        shape = jx.shape(traced.program, variable)
        if len(shape) < 2:
            raise ValueError(f"layer {layer!r} has no channels")
        found.append(Block(layer, _kind(traced, variable, sees), shape[-1]))
    return tuple(found)


def descriptors(
    model: Model,
    images: Float[Array, "b h w c"],
    layers: Sequence[str] | None = None,
    *,
    squared: bool = False,
    skip_last: int = 0,
) -> Float[Array, "b m"]:
    """Return the descriptors of images, eq. of §3.1.

    Args:
        model: any model with layers.
        images: (B, H, W, C) preprocessed floats.
        layers: as in `blocks`.
        squared: squares of the norms in place of the norms.
        skip_last: as in `blocks`.

    Returns:
        (B, m); each layer's part sums to 1, or is zero where the layer is.

    Raises:
        ValueError, TypeError: as `blocks`, or images that do not fit.

    Example:
        >>> from jaxplain.models import load_model
        >>> found = descriptors(load_model("digits"), jnp.ones((2, 28, 28, 1)), ["conv1", "conv2"])
        >>> found.shape, round(float(found[0, :20].sum()), 5)
        ((2, 70), 1.0)
    """
    images = check_images(images, model)
    shape = images.shape[1:]
    parts = blocks(model, layers, skip_last=skip_last, image_shape=shape)  # type: ignore[arg-type]
    return _descriptors(model, images, parts, squared)


@jax.jit(static_argnames=("parts", "squared"))
def _descriptors(
    model: Model, images: jax.Array, parts: tuple[Block, ...], squared: bool
) -> jax.Array:
    traced = trace_model(model, images)
    wanted = [traced.variable(part.layer) for part in parts]
    needed, _ = jx.ancestors(traced.program, wanted)
    values = traced.bind(model.params, images)
    return describe(jx.evaluate(traced.program, values, wanted, equations=needed), squared=squared)


def describe(activations: Sequence[jax.Array], *, squared: bool = False) -> Float[Array, "b m"]:
    """Return the descriptors of images whose activations (B, ..., K) are known.

    Example:
        >>> describe([jnp.array([[[3.0, 0.0], [4.0, 5.0]]]), jnp.zeros((1, 2))]).tolist()
        [[0.5, 0.5, 0.0, 0.0]]
    """
    parts = []
    for activation in activations:
        dtype = jnp.promote_types(jnp.float32, activation.dtype)
        positions = tuple(range(1, activation.ndim - 1))
        strength = jnp.sum(jnp.square(activation.astype(dtype)), positions)
        if not squared:
            # The root has no derivative at zero, where a channel is silent.
            active = strength > 0
            strength = jnp.where(active, jnp.sqrt(jnp.where(active, strength, 1)), 0)
        total = strength.sum(-1, keepdims=True)
        parts.append(strength / jnp.where(total > 0, total, 1))
    return jnp.concatenate(parts, -1)


def _leading_to_logits(traced: Traced) -> list[str]:
    """Return the layers on the way to the logits, each tensor once, without the logits."""
    program = traced.program
    end = program.outputs[0]
    needed, _ = jx.ancestors(program, program.outputs[:1])
    inside = {v for index in needed for v in program.equations[index].outputs}
    seen = {end, _behind_names(traced, end)}
    chosen = []
    for name, variable in traced.names.items():
        origin = _behind_names(traced, variable)
        shape = jx.shape(program, variable)
        if name == INPUT or variable not in inside or origin in seen or len(shape) < 2:
            continue
        seen.add(origin)
        chosen.append(name)
    return chosen


def _behind_names(traced: Traced, variable: jx.Atom) -> jx.Atom:
    """Return the variable that tags were put on."""
    producers = traced.program.producers()
    while isinstance(variable, int) and variable in producers:
        equation = traced.program.equations[producers[variable]]
        if equation.name != "name":
            break
        variable = equation.inputs[0]
    return variable


def _kind(traced: Traced, variable: int, sees: set[int]) -> Kind:
    """Return what made a tensor: the nearest product or pooling before it."""
    program = traced.program
    producers = program.producers()
    current, seen = [variable], {variable}
    while current:
        following = []
        for one in current:
            if one not in producers:
                continue
            equation = program.equations[producers[one]]
            if equation.name == "conv_general_dilated":
                return "convolution"
            if equation.name == "dot_general":
                return _kind_of_product(program, equation, sees)
            if equation.name in _WINDOWS or _pools(traced, equation):
                return "pooling"
            following += [a for a in equation.inputs if isinstance(a, int) and a in sees - seen]
        seen.update(following)
        current = following
    return "other"


def _kind_of_product(program: jx.Program, equation: jx.Equation, sees: set[int]) -> Kind:
    """Return what a product is: of channels at every position, a convolution of one by one."""
    place = 0 if equation.inputs[0] in sees else 1
    channels = len(jx.shape(program, equation.inputs[place])) - 1
    if channels not in equation.params["dimension_numbers"][0][place]:
        return "pooling"  # shares of positions, channel by channel
    return "convolution" if len(jx.shape(program, equation.outputs[0])) > 2 else "dense"


def _pools(traced: Traced, equation: jx.Equation) -> bool:
    """Say whether an equation is a sum or maximum over positions."""
    if equation.name not in _REDUCTIONS:
        return False
    rank = len(jx.shape(traced.program, equation.inputs[0]))
    axes = {int(axis) for axis in equation.params["axes"]}
    return rank > 2 and bool(axes) and not axes & {0, rank - 1}


def _behind_image(traced: Traced) -> set[int]:
    """Return the variables that depend on the images."""
    found = {traced.image}
    for equation in traced.program.equations:
        if any(a in found for a in equation.inputs):
            found.update(equation.outputs)
    return found
