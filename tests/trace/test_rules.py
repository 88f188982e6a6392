"""Relevance rules against dense-matrix NumPy versions, and the conservation of relevance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references as ref
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxplain.model import Model
from jaxplain.trace import backpropagate
from jaxplain.trace import rules as R
from jaxplain.trace.backward import Seed, Sweep, one_hot

SHAPE = (5, 6, 2)
LOW, HIGH = (-2.5, -2.0), (2.0, 2.5)
PAIRS = {  # name: (rule set, slow rule of convolutions, of dense layers)
    "epsilon": (R.lrp_epsilon(0.01), ref.epsilon_rule(0.01), ref.epsilon_rule(0.01)),
    "gamma": (R.lrp_gamma(0.3), ref.gamma_rule(0.3), ref.gamma_rule(0.3)),
    "z+": (R.lrp_z_plus(), ref.alpha_beta_rule(1, 0), ref.alpha_beta_rule(1, 0)),
    "alpha-beta": (
        R.lrp_alpha_beta(3.0, 2.0), ref.alpha_beta_rule(3, 2), ref.alpha_beta_rule(3, 2),
    ),
    "composite": (
        R.epsilon_alpha2_beta1(0.1), ref.alpha_beta_rule(2, 1), ref.epsilon_rule(0.1),
    ),
    "excitation": (R.excitation_rules(), ref.excitation_rule(), ref.excitation_rule()),
}  # fmt: skip


def array(seed, *shape, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def parameters(bias=0.5):
    return {
        "w1": array(1, 3, 3, 2, 3), "b1": array(2, 3, scale=bias),
        "w2": array(3, 2, 2, 3, 4, scale=0.5), "b2": array(4, 4, scale=bias),
        "w3": array(5, 4, 5, scale=0.7), "b3": array(6, 5, scale=bias),
        "w4": array(7, 5, 3), "b4": array(8, 3, scale=bias),
    }  # fmt: skip


def conv(x, w, strides=(1, 1), padding="VALID", **more):
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **more
    )


def apply(p, x, activation=jax.nn.relu):
    """Convolution, pooling, strided convolution, average, two dense layers; signed images."""
    b1, b2 = p["b1"][None, None, None], p["b2"][None, None, None]
    x = activation(conv(x, p["w1"], padding=((1, 1), (1, 1))) + b1)
    x = checkpoint_name(x, "conv1")
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = checkpoint_name(x, "pool1")
    x = activation(conv(x, p["w2"], (1, 2), ((1, 0), (0, 1))) + b2)
    x = checkpoint_name(x, "conv2").mean((1, 2))
    x = activation(x @ p["w3"] + p["b3"][None])
    return checkpoint_name(x, "fc1") @ p["w4"] + p["b4"][None]


def slow(p, conv_rule, dense_rule, activation=ref.Relu, first=None, last=None):
    p = {k: v.astype(np.float64) for k, v in p.items()}
    m1, s1 = ref.convolution_matrix(p["w1"], SHAPE, padding=((1, 1), (1, 1)))
    pool = ref.MaxPool(s1)
    m2, s2 = ref.convolution_matrix(p["w2"], (2, 3, 3), stride=(1, 2), padding=((1, 0), (0, 1)))
    average = np.kron(np.full((s2[0] * s2[1], 1), 1 / (s2[0] * s2[1])), np.eye(4))
    return [
        ref.Affine(m1, np.tile(p["b1"], s1[0] * s1[1]), first or conv_rule),
        activation(),
        pool,
        ref.Affine(m2, np.tile(p["b2"], s2[0] * s2[1]), conv_rule),
        activation(),
        ref.Average(average),
        ref.Affine(p["w3"], p["b3"], dense_rule),
        activation(),
        ref.Affine(p["w4"], p["b4"], last or dense_rule),
    ]


IMAGES = jnp.asarray(array(20, 3, *SHAPE))
TARGETS = jnp.array([1, 0, 2])


swept = jax.jit(backpropagate, static_argnames=("rules", "layers"))


def compare(rules, layers, *, function=apply, p=None, rtol=2e-4):
    p = parameters() if p is None else p
    found = jax.jit(
        lambda p, x: backpropagate(
            Model.from_function(function, p), x, TARGETS, rules,
            layers=("conv1", "pool1", "conv2", "fc1"),
        )
    )(p, IMAGES)  # fmt: skip
    for n in range(len(IMAGES)):
        x = np.asarray(IMAGES[n], np.float64).ravel()
        reference = ref.sweep(layers, x, np.eye(3)[TARGETS[n]])
        np.testing.assert_allclose(found.logits[n], ref.run(layers, x)[-1], rtol=1e-4, atol=1e-5)
        places = {"conv1": 2, "pool1": 3, "conv2": 5, "fc1": 8}
        pairs = [(found.attribution[n], reference[0])]
        pairs += [(found.layers[name][n], reference[i]) for name, i in places.items()]
        for mine, theirs in pairs:
            error = np.abs(np.ravel(mine) - theirs).max()
            assert error <= rtol * np.abs(theirs).max()
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_rules_equal_their_slow_versions(name):
    rules, conv_rule, dense_rule = PAIRS[name]
    compare(rules, slow(parameters(), conv_rule, dense_rule))


@pytest.mark.parametrize("name", ["epsilon", "gamma", "alpha-beta", "excitation"])
def test_signed_activations(name):
    """Behind a leaky ReLU inputs of later layers are negative, too."""
    rules, conv_rule, dense_rule = PAIRS[name]
    compare(
        rules,
        slow(parameters(), conv_rule, dense_rule, lambda: ref.Leaky(0.2)),
        function=lambda p, x: apply(p, x, lambda v: jax.nn.leaky_relu(v, 0.2)),
        rtol=1e-3,
    )


def test_box_and_flat_on_the_first_layer():
    low, high = (np.tile(b, SHAPE[0] * SHAPE[1]) for b in (LOW, HIGH))
    gamma, epsilon = ref.gamma_rule(0.25), ref.epsilon_rule(1e-6)
    box = ref.box_rule(low.astype(np.float64), high.astype(np.float64))
    compare(R.epsilon_gamma_box(LOW, HIGH), slow(parameters(), gamma, epsilon, first=box))
    z_plus = ref.alpha_beta_rule(1, 0)
    compare(R.epsilon_plus(flat=True), slow(parameters(), z_plus, epsilon, first=ref.flat_rule()))


def test_the_inhibitory_last_layer():
    excitation = ref.excitation_rule()
    compare(
        R.excitation_rules(negative_last=True),
        slow(parameters(), excitation, excitation, last=ref.excitation_rule(-1.0)),
    )


def test_a_box_for_other_channels_is_refused():
    model = Model.from_function(apply, parameters())
    with pytest.raises(ValueError, match=r"3 values.*2 input channels"):
        swept(model, IMAGES, TARGETS, R.epsilon_gamma_box((0.0, 0.0, 0.0), 1.0))


def test_the_box_follows_the_channels_wherever_they_lie():
    """Channels first, square, as many channels as columns: a box on the wrong axis would fit."""
    weight, images = jnp.asarray(array(0, 4, 3, 3, 3)), jnp.asarray(array(1, 2, 3, 3, 3))
    rules = R.relevance_rules("box", R.ZBox((-3.0, -4.0, -5.0), 3.0), R.Epsilon())

    def channels_first(w, x):
        return lax.conv_general_dilated(x.transpose(0, 3, 1, 2), w, (1, 1), "VALID").reshape(2, 4)

    def channels_last(w, x):
        return conv(x, w.transpose(2, 3, 1, 0)).reshape(2, 4)

    targets = jnp.array([0, 1])
    first, last = (
        swept(Model.from_function(f, weight), images, targets, rules).attribution
        for f in (channels_first, channels_last)
    )
    np.testing.assert_allclose(first, last, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["z+", "excitation"])
def test_relevance_is_conserved_layer_by_layer(name):
    # Positive images and a clear margin keep every denominator away from zero.
    p = parameters(bias=0.0)
    if name == "excitation":
        p = parameters(bias=0.3)
    names = ("conv1", "pool1", "conv2", "fc1")
    model = Model.from_function(apply, p)
    found = swept(model, jnp.abs(IMAGES), TARGETS, PAIRS[name][0], layers=names)
    for n in range(3):
        if found.layers["fc1"][n].sum() == 0:  # no unit excites the target: nothing to conserve
            continue
        for layer in names:
            np.testing.assert_allclose(found.layers[layer][n].sum(), 1, rtol=1e-4)
        np.testing.assert_allclose(found.attribution[n].sum(), 1, rtol=1e-4)
    assert max(float(found.layers["fc1"][n].sum()) for n in range(3)) > 0.99


@pytest.mark.parametrize("shift", ["zero", "negative", "tiny", "positive"])
def test_excitation_starts_with_one_whatever_the_logit(shift):
    p, rules = parameters(), R.excitation_rules()
    logits = np.asarray(apply({k: jnp.asarray(v) for k, v in p.items()}, IMAGES))
    wanted = {"zero": 0.0, "negative": -3.0, "tiny": 1e-12, "positive": 2.0}[shift]
    p["b4"] = p["b4"] + np.float32(wanted) - logits[0, TARGETS[0]]
    model = Model.from_function(apply, p)
    names = ("logits", "fc1", "conv2")

    @jax.jit
    def run(model):
        sweep = Sweep(model, IMAGES[:1])
        seed = {"logits": Seed(relevance=one_hot(TARGETS[:1], sweep.logits))}
        found = sweep.pull(rules, seed, names)
        return sweep.logits, {name: found[name].value.sum() for name in names}

    found, sums = run(model)
    if shift == "zero":  # exactly, in the arithmetic that the sweep sees
        p["b4"] = p["b4"] - np.asarray(found[0, TARGETS[0]])
        found, sums = run(Model.from_function(apply, p))
        assert float(found[0, TARGETS[0]]) == 0
    for name in names:
        np.testing.assert_allclose(sums[name], 1, rtol=1e-4)


def test_excitation_passes_a_rectified_logit_of_zero():
    p = parameters()
    p["b4"] = p["b4"] - 50
    model = Model.from_function(lambda p, x: jax.nn.relu(apply(p, x)), p)
    found = swept(model, IMAGES, TARGETS, R.excitation_rules(), layers=("fc1",))
    assert float(abs(found.logits).max()) == 0
    np.testing.assert_allclose(found.layers["fc1"].sum(1)[0], 1, rtol=1e-4)


def test_epsilon_to_zero_is_the_share_of_the_logit():
    """In a ReLU network without biases, LRP-0 is gradient x input over the logit."""
    p = {k: v * (k[0] == "w") for k, v in parameters().items()}
    model = Model.from_function(apply, p)
    found = swept(model, IMAGES, TARGETS, R.lrp_epsilon(1e-9))
    gradient = jax.grad(lambda x: model(x)[jnp.arange(3), TARGETS].sum())(IMAGES)
    logits = found.logits[jnp.arange(3), TARGETS]
    expected = gradient * IMAGES / logits[:, None, None, None]
    np.testing.assert_allclose(found.attribution, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.attribution.sum((1, 2, 3)), 1, rtol=1e-3)


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 2.0), (0.5, -0.5)])
def test_alpha_and_beta_must_conserve(alpha, beta):
    with pytest.raises(ValueError, match="alpha - beta must be 1"):
        R.lrp_alpha_beta(alpha, beta)


def test_a_score_is_refused_where_relevance_starts():
    with pytest.raises(ValueError, match="starts with relevance 1"):
        backpropagate(
            Model.from_function(apply, parameters()), IMAGES, TARGETS, R.lrp_epsilon(),
            score="probability",
        )  # fmt: skip
