"""Guided backprop and deconvnet against hand-swapped ReLUs, for every way to write a ReLU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from jaxplain.model import Model
from jaxplain.trace import UncoveredError, backpropagate
from jaxplain.trace import rules as R

NUMBERS = ("NHWC", "HWIO", "NHWC")


def weights(seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    return {
        "w1": jax.random.normal(next(keys), (3, 3, 2, 4)),
        "b1": 0.3 * jax.random.normal(next(keys), (4,)),
        "w2": 0.3 * jax.random.normal(next(keys), (3, 3, 4, 5)),
        "b2": 0.3 * jax.random.normal(next(keys), (5,)),
        "w3": 0.2 * jax.random.normal(next(keys), (45, 6)),
        "b3": 0.3 * jax.random.normal(next(keys), (6,)),
        "w4": jax.random.normal(next(keys), (6, 3)),
    }


def network(relu):
    """A small network with three activations, a stride and a pooling."""

    def apply(p, x):
        def conv(x, w, step):
            return lax.conv_general_dilated(x, w, (step, step), "SAME", dimension_numbers=NUMBERS)

        x = relu(conv(x, p["w1"], 1) + p["b1"][None, None, None])
        x = relu(conv(x, p["w2"], 1) + p["b2"][None, None, None])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = relu(x.reshape(x.shape[0], -1) @ p["w3"] + p["b3"][None])
        return x @ p["w4"]

    return apply


def swapped(passes, cap=np.inf):
    """A clipped ReLU whose derivative is written by hand: passes(x, g)."""

    @jax.custom_vjp
    def relu(x):
        return jnp.minimum(jnp.maximum(x, 0), cap)

    relu.defvjp(lambda x: (relu(x), x), lambda x, g: (passes(x, g),))
    return relu


def guided(cap=np.inf):
    return swapped(lambda x, g: jnp.where((x > 0) & (x < cap) & (g > 0), g, 0.0), cap)


def deconv(cap=np.inf):
    return swapped(lambda x, g: jnp.where(g > 0, g, 0.0), cap)


def images(size=7):
    return jax.random.normal(jax.random.key(9), (2, size, size, 2))


TARGETS = jnp.array([2, 0])


def expected(relu):
    apply = network(relu)
    return jax.grad(lambda x: apply(weights(), x)[jnp.arange(2), TARGETS].sum())(images())


@jax.custom_jvp
def natural_jvp(x):
    return jnp.maximum(x, 0)


natural_jvp.defjvps(lambda t, _, x: t * (x > 0))


@jax.jit
def nested(x):
    return jax.jit(jax.jit(jax.nn.relu))(x)


def relu(x):
    """A user's own function of that name."""
    return jnp.maximum(x, 0)


RELUS = {
    "jax": jax.nn.relu,
    "linen": linen.relu,
    "nnx": nnx.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, mirrored": lambda x: jnp.maximum(0.0, x),
    "maximum of zeros": lambda x: jnp.maximum(x, jnp.zeros_like(x)),
    "lax.max": lambda x: lax.max(x, lax.full_like(x, 0)),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where >=": lambda x: jnp.where(x >= 0, x, 0.0),
    "where, turned": lambda x: jnp.where(x < 0, 0, x),
    "where, mirrored": lambda x: jnp.where(x > 0, x, jnp.zeros_like(x)),
    "mask": lambda x: x * (x > 0),
    "float mask": lambda x: (x > 0).astype(x.dtype) * x,
    "stopped mask": lambda x: lax.stop_gradient((x > 0).astype(x.dtype)) * x,
    "clip": lambda x: jnp.clip(x, 0),
    "nested jit": nested,
    "own jitted relu": jax.jit(relu),
    "own custom_jvp": natural_jvp,
    "remat": jax.checkpoint(jax.nn.relu),
    "vmap": jax.vmap(jax.nn.relu),
}
RELU6 = {
    "jax": jax.nn.relu6,
    "clip": lambda x: jnp.clip(x, 0, 6),
    "lax.clamp": lambda x: lax.clamp(0.0, x, 6.0),
    "min of max": lambda x: jnp.minimum(jnp.maximum(x, 0), 6),
    "max of min": lambda x: jnp.maximum(jnp.minimum(x, 6.0), 0.0),
}


def both(apply, params=None):
    @jax.jit
    def run(params, x):
        model = Model.from_function(apply, params)
        return [
            backpropagate(model, x, TARGETS, rules).attribution
            for rules in (R.GUIDED_BACKPROP, R.DECONVNET)
        ]

    return run(weights() if params is None else params, images())


@pytest.mark.parametrize("form", RELUS)
def test_every_relu_is_caught(form):
    found = both(network(RELUS[form]))
    for attribution, swap in zip(found, (guided(), deconv()), strict=True):
        np.testing.assert_allclose(attribution, expected(swap), rtol=0, atol=1e-6)
        assert abs(attribution).max() > 0.01


@pytest.mark.parametrize("form", RELU6)
def test_every_relu6_is_caught(form):
    scale = {"w1": 6 * weights()["w1"], "b1": weights()["b1"] + 5}
    params = weights() | scale  # so that the cap is reached
    found = both(network(RELU6[form]), params)
    for attribution, swap in zip(found, (guided(6), deconv(6)), strict=True):
        apply = network(swap)
        reference = jax.grad(lambda x: apply(params, x)[jnp.arange(2), TARGETS].sum())(images())  # noqa: B023
        np.testing.assert_allclose(attribution, reference, rtol=1e-5, atol=1e-5)
        assert abs(attribution).max() > 0.01


@jax.custom_vjp
def own_vjp(x):
    return jnp.maximum(x, 0)


own_vjp.defvjp(lambda x: (own_vjp(x), x), lambda x, g: (g,))


@jax.custom_jvp
def straight_through(x):
    return jnp.maximum(x, 0)


straight_through.defjvps(lambda t, _, x: t)


@jax.custom_jvp
def leaky_derivative(x):
    return jnp.maximum(x, 0)


leaky_derivative.defjvps(lambda t, _, x: jnp.where(x > 0, t, 0.1 * t))


@jax.jit
def gelu(x):
    """A function that only claims to be an activation: positions mix."""
    return jnp.maximum(x, 0) + x.mean()


def rounded(x):
    return x + lax.stop_gradient(jnp.round(x) - x)


UNCOVERED = {
    "abs": (lambda x: (x + abs(x)) / 2, "abs"),
    "square root": (lambda x: jnp.sqrt(jnp.square(x)), "sqrt"),
    "sigmoid": (jax.nn.sigmoid, "logistic"),
    "tanh": (jnp.tanh, "tanh"),
    "softplus": (jax.nn.softplus, "softplus"),
    "gelu": (jax.nn.gelu, r"gelu at .*relevance rules cover it"),
    "exact gelu": (lambda x: jax.nn.gelu(x, approximate=False), "gelu at"),
    "gelu by hand": (lambda x: 0.5 * x * (1 + lax.erf(x / np.sqrt(2))), "gelu at"),
    "silu": (jax.nn.silu, "silu at"),
    "silu by hand": (lambda x: x / (1 + jnp.exp(-x)), "silu at"),
    "mish by hand": (lambda x: x * jnp.tanh(jnp.log1p(jnp.exp(x))), "mish at"),
    "other swish": (lambda x: x * jax.nn.sigmoid(1.7 * x), "mul"),
    "stopped silu": (lambda x: x * lax.stop_gradient(jax.nn.sigmoid(x)), "mul"),
    "elu": (jax.nn.elu, "elu"),
    "leaky": (jax.nn.leaky_relu, "leaky_relu"),
    "leaky by hand": (lambda x: jnp.where(x > 0, x, 0.1 * x), "leaky_relu"),
    "leaky by max": (lambda x: jnp.maximum(x, 0.1 * x), "max"),
    "crelu": (lambda x: jnp.maximum(x, -x), "max"),
    "min": (lambda x: -jnp.minimum(-x, 0), "min"),
    "shifted": (lambda x: jnp.maximum(x, 0.5), "max"),
    "hard tanh": (lambda x: jnp.clip(x, -1, 1), "max"),
    "other's sign": (lambda x: jnp.where(x[..., ::-1] > 0, x, 0), "select_n"),
    "other's mask": (lambda x: x * (x[..., ::-1] > 0), "mul"),
    "square": (jnp.square, "square"),
    "product": (lambda x: x * x[..., ::-1], "mul"),
    "stopped product": (lambda x: x * lax.stop_gradient(x), "mul"),
    "straight through": (rounded, "derivative is stopped"),
    "sort": (lambda x: jnp.sort(x, -1), "sort"),
    "cumulative product": (lambda x: jnp.cumprod(x, -1), "cumprod"),
    "cumulative maximum": (lambda x: lax.cummax(x, x.ndim - 1), "cummax"),
    "softmax": (lambda x: jax.nn.softmax(x, -1), "exp"),
    "layer norm": (lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True), "square"),
    "custom_vjp": (own_vjp, "own_vjp"),
    "straight-through custom_jvp": (straight_through, "straight_through"),
    "other custom_jvp": (leaky_derivative, "leaky_derivative"),
    "false name": (gelu, "mean|max|relu matched nothing|does not cover"),
    "index": (lambda x: jnp.take_along_axis(x, jnp.argmax(x, -1)[..., None], -1) + 0 * x, "gather"),
    "branch": (lambda x: lax.cond(x.sum() > 0, lambda x: x, jnp.zeros_like, x), "cond"),
    "while": (
        lambda x: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, 2 * c[1]), (0, x))[1],
        "while",
    ),
    "callback": (
        lambda x: jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        "pure_callback",
    ),
}


# Relevance rules cover them, gradient rules do not.
HANDED_ON = {
    "leaky", "leaky by hand", "silu", "silu by hand", "elu", "gelu", "exact gelu", "gelu by hand",
    "mish by hand",
}  # fmt: skip


@pytest.mark.parametrize("form", UNCOVERED)
@pytest.mark.parametrize("rules", [R.GUIDED_BACKPROP, R.lrp_epsilon()], ids=["guided", "lrp"])
def test_what_is_no_relu_is_refused(form, rules):
    function, message = UNCOVERED[form]
    model = Model.from_function(network(lambda x: function(jax.nn.relu(x))), weights())

    def run(x):
        return backpropagate(model, x, TARGETS, rules).audit

    if form in HANDED_ON and rules.relevance:
        assert jax.eval_shape(run, images()).uncovered == ()
        return
    if form == "false name":
        # Not an activation, so it is read like any other function: a ReLU and a sum.
        assert "relu" in [s.kind for s in jax.eval_shape(run, images()).sites]
        return
    with pytest.raises(UncoveredError, match=message):
        jax.eval_shape(run, images())


def test_without_strictness_the_derivative_stands_and_the_audit_says_so():
    model = Model.from_function(network(lambda x: jnp.tanh(jax.nn.relu(x))), weights())
    found = jax.jit(lambda x: backpropagate(model, x, TARGETS, R.GUIDED_BACKPROP, strict=False))(
        images()
    )
    assert len(found.audit.uncovered) == 3
    assert "tanh" in str(found.audit)
    swap = guided()
    apply = network(lambda x: jnp.tanh(swap(x)))
    reference = jax.grad(lambda x: apply(weights(), x)[jnp.arange(2), TARGETS].sum())(images())
    np.testing.assert_allclose(found.attribution, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [own_vjp, straight_through], ids=["vjp", "jvp"])
def test_without_strictness_a_user_s_own_derivative_is_used(function):
    apply = network(lambda x: jax.nn.relu(function(x)))
    model = Model.from_function(apply, weights())
    no_rules = R.RuleSet("derivative", ())
    found = jax.jit(lambda x: backpropagate(model, x, TARGETS, no_rules, strict=False))(images())
    reference = jax.grad(lambda x: apply(weights(), x)[jnp.arange(2), TARGETS].sum())(images())
    np.testing.assert_allclose(found.attribution, reference, rtol=1e-5, atol=1e-6)


def test_a_rule_set_may_cover_a_primitive():
    covered = R.RuleSet(
        "with tanh",
        (*R.GUIDED_BACKPROP.rules, ("tanh", R.Guided())),
        require=("relu",),
    )
    model = Model.from_function(network(lambda x: jnp.tanh(jax.nn.relu(x))), weights())
    audit = jax.eval_shape(lambda x: backpropagate(model, x, TARGETS, covered).audit, images())
    assert audit.uncovered == ()


@pytest.mark.parametrize("rules", [R.GUIDED_BACKPROP, R.DECONVNET, R.epsilon_plus()])
def test_a_network_without_what_the_rules_are_made_for_is_refused(rules):
    model = Model.from_function(lambda p, x: x.mean((1, 2)), ())
    with pytest.raises(UncoveredError, match="matched nothing"):
        backpropagate(model, images(), jnp.array([0, 1]), rules)


def test_relus_off_the_path_do_not_count():
    def apply(p, x):
        jax.nn.relu(x)  # nothing reads this
        return x.mean((1, 2)) @ p

    model = Model.from_function(apply, jnp.ones((2, 3)))
    with pytest.raises(UncoveredError, match="matched nothing"):
        backpropagate(model, images(), TARGETS, R.GUIDED_BACKPROP)


def test_non_linearities_off_the_path_do_not_count():
    def apply(p, x):
        jnp.tanh(x)
        return jax.nn.relu(x.mean((1, 2))) @ p

    model = Model.from_function(apply, jnp.ones((2, 3)))
    assert backpropagate(model, images(), TARGETS, R.GUIDED_BACKPROP).audit.uncovered == ()


@pytest.mark.parametrize("apply", [
    lambda p, x: lax.stop_gradient(x).mean((1, 2)),
    lambda p, x: jnp.zeros((x.shape[0], 2)),
    lambda p, x: (x > 0).sum((1, 2)),
])  # fmt: skip
def test_logits_without_a_derivative_are_refused(apply):
    with pytest.raises(UncoveredError, match="no derivative"):
        backpropagate(Model.from_function(apply), images(), jnp.array([0, 1]), R.GUIDED_BACKPROP)
