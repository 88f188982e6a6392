"""What holds for any small network: random shapes, strides, paddings, depths and ReLUs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxplain.model import Model
from jaxplain.trace import backpropagate
from jaxplain.trace import jaxpr as jx
from jaxplain.trace import rules as R
from jaxplain.trace.affine import fold
from jaxplain.trace.reverse import forward
from jaxplain.trace.signs import nonnegative
from jaxplain.trace.sites import survey

RELUS = (
    jax.nn.relu,
    lambda x: jnp.maximum(x, 0),
    lambda x: jnp.where(x > 0, x, 0),
    lambda x: x * (x > 0),
)


@jax.custom_vjp
def guided(x):
    return jnp.maximum(x, 0)


guided.defvjp(lambda x: (guided(x), x), lambda x, g: (jnp.where((x > 0) & (g > 0), g, 0.0),))


@st.composite
def networks(draw):
    """Return (apply(relu), parameters, images, targets) of a random convolutional network."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    size = draw(st.integers(5, 7)), draw(st.integers(5, 7))
    layers = []
    channels = draw(st.integers(1, 3))
    first = channels
    for _ in range(draw(st.integers(1, 2))):
        kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        strides = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(2))
        filters = draw(st.integers(1, 4))
        layers.append((kernel, strides, padding, channels, filters, draw(st.booleans())))
        channels = filters
    params = [
        jnp.asarray(rng.standard_normal((*k, c, f)), jnp.float32) for k, *_, c, f, _ in layers
    ]
    head = jnp.asarray(rng.standard_normal((channels, 3)), jnp.float32)

    def apply(relu):
        def run(p, x):
            for kernel, (_, strides, padding, c, f, residual) in zip(p[0], layers, strict=True):
                y = relu(
                    lax.conv_general_dilated(
                        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
                    )
                )
                x = y + 0.5 * x if residual and c == f and x.shape == y.shape else y
            return x.mean((1, 2)) @ p[1]

        return run

    images = jnp.asarray(rng.standard_normal((2, *size, first)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 3, 2))
    return apply, (params, head), images, targets


@given(networks(), st.sampled_from(RELUS))
@settings(max_examples=8)
def test_guided_backprop_is_the_hand_swapped_derivative(network, relu):
    apply, params, images, targets = network

    @jax.jit
    def both(params, x):
        found = backpropagate(
            Model.from_function(apply(relu), params), x, targets, R.GUIDED_BACKPROP
        )
        swap = apply(guided)
        expected = jax.grad(lambda x: swap(params, x)[jnp.arange(2), targets].sum())(x)
        return found.attribution, expected

    found, expected = both(params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@given(networks(), st.sampled_from(RELUS))
@settings(max_examples=8)
def test_lrp_without_stabiliser_is_the_share_of_the_logit(network, relu):
    apply, params, images, targets = network
    model = Model.from_function(apply(relu), params)

    @jax.jit
    def both(x):
        found = backpropagate(model, x, targets, R.lrp_epsilon(1e-12))
        gradient = jax.grad(lambda x: model(x)[jnp.arange(2), targets].sum())(x)
        return found.logits[jnp.arange(2), targets], found.attribution, gradient * x

    logits, relevance, product = both(images)
    for n in range(2):
        if abs(logits[n]) > 1e-2 and abs(product[n]).max() < 1e2:
            close = {"rtol": 1e-3, "atol": 1e-3 * float(abs(product[n] / logits[n]).max())}
            np.testing.assert_allclose(relevance[n], product[n] / logits[n], **close)
            np.testing.assert_allclose(relevance[n].sum(), 1, rtol=2e-2)


@given(networks())
@settings(max_examples=8)
def test_excitation_is_a_probability_on_positive_images(network):
    """Between zero and one everywhere; its sum is one unless nothing excites what won."""
    apply, params, images, targets = network
    model = Model.from_function(apply(jax.nn.relu), params)
    found = jax.jit(lambda x: backpropagate(model, x, targets, R.excitation_rules()).attribution)(
        jnp.abs(images)
    )
    assert float(found.min()) >= -1e-6
    assert all(total < 1 + 1e-4 for total in found.sum((1, 2, 3)))


# -- folding ---------------------------------------------------------------------------------------


def ramp(z):
    return jnp.arange(math.prod(z.shape[1:]), dtype=z.dtype)


TAILS = {
    "bias": lambda z: z + jnp.arange(3.0)[None, None, None],
    "scale": lambda z: z * jnp.array([1.0, -2.0, 0.5])[None, None, None],
    "batch norm": lambda z: (z - 0.3) / jnp.array([[[[1.0, 2.0, 4.0]]]]) * -1.5 + 0.1,
    "minus": lambda z: jnp.arange(3.0)[None, None, None] - z,
    "positions": lambda z: 2 * (z + ramp(z).reshape(1, *z.shape[1:])),
    "minus positions": lambda z: 3 - 2 * (ramp(z).reshape(1, *z.shape[1:]) - z),
    "turned": lambda z: z.transpose(0, 3, 1, 2) * jnp.array([1.0, 2.0, 3.0])[None, :, None, None],
    "flattened": lambda z: z.reshape(z.shape[0], -1) + ramp(z)[None],
    "unit axes": lambda z: z[:, :, None] + jnp.arange(3.0)[None, None, None, None],
}


@pytest.mark.parametrize("name", TAILS)
def test_folding_is_the_affine_map_of_the_tail(name):
    tail = TAILS[name]
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.standard_normal((2, 2, 2, 3)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 2)), jnp.float32)

    def network(w, x):
        z = lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return tail(z)

    program, _ = jx.trace(network, kernel, x)
    found = survey(program, [program.inputs[1]])
    (site,) = found.sites.values()
    assert site.output == program.outputs[0]
    tape = forward(program, dict(zip(program.inputs, (kernel, x), strict=True)), found)
    scale, bias = fold(program, site, tape.env)
    z = tape.env[program.equations[site.equations[0]].outputs[0]]
    scale = scale if scale.ndim == 0 else scale[None, None, None]
    whole = scale * z + bias
    if name == "turned":
        whole = whole.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(whole.reshape(tail(z).shape), tail(z), rtol=1e-5, atol=1e-5)


# -- signs -----------------------------------------------------------------------------------------


def pool(x, padding):
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1),
        ((0, 0), (padding, padding), (padding, padding), (0, 0)),
    )  # fmt: skip


NONNEGATIVE = {
    "absolute": (jnp.abs, True),
    "square": (lambda x: x * x, True),
    "even power": (lambda x: x**2, True),
    "odd power": (lambda x: x**3, False),
    "exponential": (lambda x: jnp.exp(x).mean((1, 2)), True),
    "maximum": (lambda x: jnp.maximum(x, 0.5), True),
    "maximum of others": (lambda x: jnp.maximum(x, -0.5), False),
    "clipped": (lambda x: jnp.clip(x, 0, 2), True),
    "clipped below zero": (lambda x: jnp.clip(x, -1, 2), False),
    "sum": (lambda x: abs(x) + x**2, True),
    "sum with a signed one": (lambda x: abs(x) + x, False),
    "difference": (lambda x: abs(x) - x**2, False),
    "pooled": (lambda x: pool(abs(x), 1), True),
    "pooled padding": (lambda x: pool(abs(x), 2), False),
    "average": (lambda x: lax.reduce_window(
        abs(x), 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4, True),
    "scaled": (lambda x: abs(x) * 3, True),
    "scaled down": (lambda x: abs(x) * -3, False),
    "padded": (lambda x: jnp.pad(abs(x), 1), True),
    "padded below zero": (lambda x: jnp.pad(abs(x), 1, constant_values=-1.0), False),
    "concatenated": (lambda x: jnp.concatenate([abs(x), x**2], -1), True),
    "partly": (lambda x: jnp.concatenate([abs(x), x], -1), False),
    "moved": (lambda x: abs(x).transpose(0, 3, 1, 2).reshape(x.shape[0], -1)[:, ::2], True),
    "chosen": (lambda x: jnp.where(x > 1, abs(x), 2.0), True),
    "sorted": (lambda x: lax.sort(abs(x)), True),
    "sorted along": (lambda x: lax.sort((abs(x), x))[1], False),
    "itself": (lambda x: x, False),
}  # fmt: skip


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_signs_are_proved_or_left_open(name):
    function, provable = NONNEGATIVE[name]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 2)), jnp.float32)
    program, _ = jx.trace(function, x)
    assert (program.outputs[0] in nonnegative(program, ())) == provable
    if provable:
        assert float(function(x).min()) >= 0


def test_the_rules_know_which_inputs_cannot_be_negative():
    def network(p, x):
        x = jax.nn.relu(x @ p)
        return jax.nn.leaky_relu(pool(x, 0) @ p) @ p

    x, p = jnp.ones((2, 4, 4, 2)), jnp.ones((2, 2))
    program, _ = jx.trace(network, p, x)
    found = survey(program, [program.inputs[1]])
    products = [s for s in found.sites.values() if s.kind == "dense"]
    assert [s.nonnegative for s in products] == [False, True, False]
