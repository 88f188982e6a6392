"""Convolutions and dense layers with what belongs to them folded in: z = x . w + b."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain.trace import jaxpr as jx
from jaxplain.trace.convolution import is_plain, transposed
from jaxplain.trace.jaxpr import Equation, Program
from jaxplain.trace.rules import At
from jaxplain.trace.sites import LAYOUT, Site


def site_values(
    program: Program, site: Site, env: Mapping[int, Any]
) -> tuple[At, Callable[[jax.Array], jax.Array]]:
    """Return a site with its values, and the map from its output's layout to the product's."""
    x, out = env[site.input], env[site.output]
    product = program.equations[site.equations[0]]
    if site.kind not in ("conv", "dense"):
        return At(site, x, out, params=product.params), lambda signal: signal
    position = next(i for i, a in enumerate(product.inputs) if a == site.input)
    weight = jx.read(env, product.inputs[1 - position])
    dtype = program.avals[product.outputs[0]].dtype
    scale, bias = fold(program, site, env)
    axis = weight_channel_axis(program, product, 1 - position)
    if scale.ndim:
        assert axis is not None
        scale = scale.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
    weight = (weight * scale).astype(weight.dtype)

    def linear(x: jax.Array, w: jax.Array) -> jax.Array:
        return product.run([x, w] if position == 0 else [w, x])[0]

    def restore(signal: jax.Array) -> jax.Array:
        return _restored(program, site, signal).astype(dtype)

    def back(signal: jax.Array, w: jax.Array) -> jax.Array:
        return transposed(signal, w, x.shape[1:3], product.params).astype(x.dtype)

    plain = product.name == "conv_general_dilated" and is_plain(product.params)
    at = At(
        site,
        x,
        restore(out),
        weight,
        bias.astype(dtype),
        linear,
        input_axis=_input_axis(product, position),
        back=back if plain else None,
        params=product.params,
    )
    return at, restore


def _restored(program: Program, site: Site, signal: jax.Array) -> jax.Array:
    """Undo the changes of layout of a site's tail."""
    for step in reversed(site.tail):
        equation = program.equations[step.equation]
        if equation.name == "transpose":
            order = equation.params["permutation"]
            signal = jnp.transpose(signal, [order.index(d) for d in range(len(order))])
        elif equation.name in LAYOUT or equation.name == "broadcast_in_dim":
            signal = signal.reshape(jx.shape(program, equation.inputs[0]))
    return signal


def fold(program: Program, site: Site, env: Mapping[int, Any]) -> tuple[jax.Array, jax.Array]:
    """Return (scale, bias): the site maps its product z to scale * z + bias.

    Args:
        program: the program.
        site: an affine site.
        env: the values of the variables.

    Returns:
        The scale, a number or one for each channel (K,); the bias, of the product's rank and
        broadcastable to it.
    """
    aval = program.avals[program.equations[site.equations[0]].outputs[0]]
    scale, bias = jnp.ones((), aval.dtype), jnp.zeros((), aval.dtype)
    variable = program.equations[site.equations[0]].outputs[0]
    uniform = all(step.per_channel for step in site.tail)
    # Run on nothing, the tail gives the bias, whatever its shape.
    shifted = jnp.zeros_like(env[variable])
    for step in site.tail:
        equation = program.equations[step.equation]
        if step.operand is None:
            if not uniform:
                (shifted,) = equation.bind([shifted])
        else:
            operand = jx.read(env, step.operand)
            value = jnp.asarray(operand)
            left = equation.inputs[0] == variable
            if not uniform:
                (shifted,) = equation.bind([shifted, operand] if left else [operand, shifted])
            if step.per_channel and value.ndim:
                place = [slice(None) if d == step.axis else 0 for d in range(value.ndim)]
                value = value[tuple(place)]
            match equation.name:
                case "mul":
                    scale, bias = scale * value, bias * value
                case "div":
                    scale, bias = scale / value, bias / value
                case "sub" if not left:
                    scale, bias = -scale, value - bias if uniform else bias
                case "sub" if uniform:
                    bias = bias - value
                case "add" if uniform:
                    bias = bias + value
        variable = equation.outputs[0]
    if not uniform:
        return scale, _restored(program, site, shifted)
    places = [-1 if d == site.axis and bias.ndim else 1 for d in range(len(aval.shape))]
    return scale, bias.reshape(places)


def weight_channel_axis(program: Program, product: Equation, weight: int) -> int | None:
    """Return the axis of the weights along which the output channels lie, if there is one."""
    if product.name == "conv_general_dilated":
        return product.params["dimension_numbers"].rhs_spec[0]
    contracting, batch = product.params["dimension_numbers"]
    taken = {*contracting[weight], *batch[weight]}
    free = [d for d in range(len(jx.shape(program, product.inputs[weight]))) if d not in taken]
    return free[0] if len(free) == 1 else None


def _input_axis(product: Equation, position: int) -> int | None:
    """Return the axis of the input's channels, if there is exactly one that is summed over."""
    if product.name == "conv_general_dilated":
        return product.params["dimension_numbers"].lhs_spec[1]
    contracting, _ = product.params["dimension_numbers"]
    axes = contracting[position]
    return axes[0] if len(axes) == 1 else None
