"""Control flow, branches, shared layers, batch norm and other forms of layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references as ref
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxplain.model import Model
from jaxplain.trace import UncoveredError, backpropagate
from jaxplain.trace import rules as R

TARGETS = jnp.array([1, 2])


def array(seed, *shape, scale=1.0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(scale * values, jnp.float32)


def conv(x, w, strides=(1, 1), padding="VALID", **more):
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **more
    )


@jax.custom_vjp
def guided(x):
    return jnp.maximum(x, 0)


guided.defvjp(lambda x: (guided(x), x), lambda x, g: (jnp.where((x > 0) & (g > 0), g, 0.0),))


@jax.custom_vjp
def deconv(x):
    return jnp.maximum(x, 0)


deconv.defvjp(lambda x: (guided(x), None), lambda _, g: (jnp.where(g > 0, g, 0.0),))

IMAGES = array(0, 2, 6, 6, 2)
W = {
    "stem": array(1, 3, 3, 2, 4, scale=0.5), "bias": array(2, 1, 1, 1, 4, scale=0.3),
    "blocks": array(3, 3, 3, 3, 4, 4, scale=0.3), "biases": array(4, 3, 1, 1, 1, 4, scale=0.3),
    "head": array(5, 4, 3), "shift": array(6, 1, 3, scale=0.1),
}  # fmt: skip


def finish(w, x):
    return x.mean((1, 2)) @ w["head"] + w["shift"]


def stem(w, x, relu):
    return relu(conv(x, w["stem"], padding="SAME") + w["bias"])


def block(x, kernel, bias, relu):
    return relu(conv(x, kernel, padding="SAME") + bias)


def chain(w, x, relu):
    x = stem(w, x, relu)
    for kernel, bias in zip(w["blocks"], w["biases"], strict=True):
        x = block(x, kernel, bias, relu)
    return finish(w, x)


def remat(w, x, relu):
    x = jax.checkpoint(functools.partial(stem, relu=relu))(w, x)
    for kernel, bias in zip(w["blocks"], w["biases"], strict=True):
        x = jax.checkpoint(functools.partial(block, relu=relu))(x, kernel, bias)
    return finish(w, x)


def scan(w, x, relu):
    def step(x, layer):
        return block(x, *layer, relu), None

    x, _ = lax.scan(step, stem(w, x, relu), (w["blocks"], w["biases"]))
    return finish(w, x)


def reverse_scan(w, x, relu):
    def step(x, layer):
        return block(x, *layer, relu), None

    blocks = (w["blocks"][::-1], w["biases"][::-1])
    x, _ = lax.scan(step, stem(w, x, relu), blocks, reverse=True)
    return finish(w, x)


def loop(w, x, relu):
    x = stem(w, x, relu)
    x = lax.fori_loop(0, 3, lambda i, x: block(x, w["blocks"][i], w["biases"][i], relu), x)
    return finish(w, x)


def switch(w, x, relu):
    def right(x):
        return block(x, w["blocks"][0], w["biases"][0], relu)

    def wrong(x):
        return jnp.tanh(0.0) + relu(x)

    x = stem(w, x, relu)
    x = lax.cond(w["head"][0, 0] > 1e9, wrong, right, x)  # known at run time only
    for kernel, bias in zip(w["blocks"][1:], w["biases"][1:], strict=True):
        x = block(x, kernel, bias, relu)
    return finish(w, x)


def nested_jit(w, x, relu):
    x = jax.jit(functools.partial(stem, relu=relu))(w, x)
    both = jax.jit(lambda x, a, b, c, d: one(one(x, a, b), c, d))
    one = jax.jit(functools.partial(block, relu=relu))
    k, b = w["blocks"], w["biases"]
    return jax.jit(finish)(w, one(both(x, k[0], b[0], k[1], b[1]), k[2], b[2]))


def remat_of_scan(w, x, relu):
    return jax.checkpoint(functools.partial(scan, relu=relu))(w, x)


def examples_apart(w, x, relu):
    return jax.vmap(lambda image: chain(w, image[None], relu)[0])(x)


def channels_first(w, x, relu):
    def conv_first(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel.transpose(3, 2, 0, 1),
            (1, 1),
            "SAME",
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )

    x = relu(conv_first(x.transpose(0, 3, 1, 2), w["stem"]) + w["bias"].transpose(0, 3, 1, 2))
    for kernel, bias in zip(w["blocks"], w["biases"], strict=True):
        x = relu(conv_first(x, kernel) + bias.transpose(0, 3, 1, 2))
    return x.mean((2, 3)) @ w["head"] + w["shift"]


def weight_first(w, x, relu):
    """`W @ x + b` for one image, vmapped, as Equinox writes it."""

    def one(image):
        maps = relu(lax.conv_general_dilated(
            image.transpose(2, 0, 1)[None], w["stem"].transpose(3, 2, 0, 1), (1, 1), "SAME"
        )[0] + w["bias"][0].transpose(2, 0, 1))  # fmt: skip
        for kernel, bias in zip(w["blocks"], w["biases"], strict=True):
            maps = relu(lax.conv_general_dilated(
                maps[None], kernel.transpose(3, 2, 0, 1), (1, 1), "SAME"
            )[0] + bias[0].transpose(2, 0, 1))  # fmt: skip
        return w["head"].T @ maps.mean((1, 2)) + w["shift"][0]

    return jax.vmap(one)(x)


FORMS = [
    chain, remat, scan, reverse_scan, loop, switch, nested_jit, remat_of_scan, examples_apart,
    channels_first, weight_first,
]  # fmt: skip


@functools.cache
def chain_references():
    """Guided backprop, deconvnet (by JAX), and three relevances (by NumPy) of the chain."""
    found = [
        jax.grad(lambda x: chain(W, x, relu)[jnp.arange(2), TARGETS].sum())(IMAGES)  # noqa: B023
        for relu in (guided, deconv)
    ]
    for conv_rule in (ref.epsilon_rule(0.1), ref.alpha_beta_rule(2, 1), ref.excitation_rule()):
        dense = ref.excitation_rule() if len(found) == 4 else ref.epsilon_rule(0.1)
        maps = [
            ref.sweep(chain_layers(conv_rule, dense), np.ravel(x), np.eye(3)[t])[0]
            for x, t in zip(IMAGES, TARGETS, strict=True)
        ]
        found.append(np.reshape(maps, IMAGES.shape))
    return found


def chain_layers(conv_rule, dense_rule):
    layers, shape = [], (6, 6, 2)
    pairs = [(W["stem"], W["bias"]), *zip(W["blocks"], W["biases"], strict=True)]
    for kernel, bias in pairs:
        matrix, shape = ref.convolution_matrix(
            np.asarray(kernel, np.float64), shape, padding=((1, 1), (1, 1))
        )
        layers += [ref.Affine(matrix, np.tile(np.ravel(bias), 36), conv_rule), ref.Relu()]
    layers.append(ref.Average(np.kron(np.full((36, 1), 1 / 36), np.eye(4))))
    return [*layers, ref.Affine(np.asarray(W["head"]), np.ravel(W["shift"]), dense_rule)]


ALPHA2 = R.relevance_rules("a2b1", R.AlphaBeta(), R.Epsilon(0.1))
SETS = [R.GUIDED_BACKPROP, R.DECONVNET, R.lrp_epsilon(0.1), ALPHA2, R.excitation_rules()]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_the_same_network_in_any_form(form):
    @jax.jit
    def run(w, x):
        model = Model.from_function(lambda w, x: form(w, x, jax.nn.relu), w)
        return [backpropagate(model, x, TARGETS, rules).attribution for rules in SETS[::2]]

    references = chain_references()[::2]
    for rules, found, expected in zip(SETS[::2], run(W, IMAGES), references, strict=True):
        tolerance = 1e-6 if not rules.relevance else 5e-4
        error = np.abs(np.asarray(found) - expected).max()
        assert error <= tolerance * np.abs(expected).max(), rules.name


def sweep_of(apply, w, rules, x=IMAGES, targets=TARGETS, **options):
    run = jax.jit(
        lambda w, x: backpropagate(Model.from_function(apply, w), x, targets, rules, **options)
    )
    return run(w, x)


def close(found, expected, tolerance=5e-4):
    expected = np.asarray(expected)
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * np.abs(expected).max()


# -- branches and shared layers --------------------------------------------------------------------


def affine(kernel, bias, shape, rule, **options):
    matrix, out = ref.convolution_matrix(np.asarray(kernel, np.float64), shape, **options)
    return ref.Affine(matrix, np.tile(np.ravel(bias), out[0] * out[1]), rule)


SAME = {"padding": ((1, 1), (1, 1))}
RULES = [
    (R.lrp_epsilon(0.1), ref.epsilon_rule(0.1)),
    (R.lrp_z_plus(), ref.alpha_beta_rule(1, 0)),
    (R.excitation_rules(), ref.excitation_rule()),
]
MEAN = ref.Average(np.kron(np.full((36, 1), 1 / 36), np.eye(4)))


def against_slow(apply, layers, rules, x=IMAGES):
    found = sweep_of(apply, W, rules, x)
    for n in range(len(x)):
        expected = ref.sweep(layers, np.asarray(x[n], np.float64).ravel(), np.eye(3)[TARGETS[n]])[0]
        close(np.ravel(found.attribution[n]), expected)


@pytest.mark.parametrize(("rules", "rule"), RULES, ids=lambda r: getattr(r, "name", ""))
def test_residual_branches(rules, rule):
    def apply(w, x):
        x = stem(w, x, jax.nn.relu)
        inner = block(x, w["blocks"][0], w["biases"][0], jax.nn.relu)
        x = jax.nn.relu(x + conv(inner, w["blocks"][1], padding="SAME") + w["biases"][1])
        return finish(w, x)

    inside = [
        affine(W["blocks"][0], W["biases"][0], (6, 6, 4), rule, **SAME),
        ref.Relu(),
        # Written x + conv + bias, the bias belongs to the sum and takes no part.
        affine(W["blocks"][1], 0 * W["biases"][1], (6, 6, 4), rule, **SAME),
    ]

    class Shift(ref.Relu):
        def forward(self, x):
            return x + np.tile(np.ravel(W["biases"][1]), 36)

    layers = [
        affine(W["stem"], W["bias"], (6, 6, 2), rule, **SAME),
        ref.Relu(),
        ref.Sum([[], inside]),
        Shift(),
        ref.Relu(),
        MEAN,
        ref.Affine(np.asarray(W["head"]), np.ravel(W["shift"]), rule),
    ]
    against_slow(apply, layers, rules)


@pytest.mark.parametrize(("rules", "rule"), RULES, ids=lambda r: getattr(r, "name", ""))
def test_concatenated_branches(rules, rule):
    def apply(w, x):
        x = stem(w, x, jax.nn.relu)
        one = block(x, w["blocks"][0][..., :1], w["biases"][0][..., :1], jax.nn.relu)
        three = block(x, w["blocks"][1][..., :3], w["biases"][1][..., :3], jax.nn.relu)
        return finish(w, jnp.concatenate([one, three], -1))

    k, b = W["blocks"], W["biases"]
    one = [affine(k[0][..., :1], b[0][..., :1], (6, 6, 4), rule, **SAME), ref.Relu()]
    three = [affine(k[1][..., :3], b[1][..., :3], (6, 6, 4), rule, **SAME), ref.Relu()]
    layers = [
        affine(W["stem"], W["bias"], (6, 6, 2), rule, **SAME),
        ref.Relu(),
        ref.Concatenate([one, three], [1, 3]),
        MEAN,
        ref.Affine(np.asarray(W["head"]), np.ravel(W["shift"]), rule),
    ]
    against_slow(apply, layers, rules)


@pytest.mark.parametrize(("rules", "rule"), RULES, ids=lambda r: getattr(r, "name", ""))
def test_a_layer_used_twice(rules, rule):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            shared = nn.Conv(2, (3, 3), name="shared")
            x = nn.relu(shared(nn.relu(shared(x))))
            return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))

    params = {
        "shared": {"kernel": W["stem"][..., :2], "bias": jnp.array([0.3, -0.2])},
        "head": {"kernel": array(7, 72, 3), "bias": jnp.zeros(3)},
    }
    found = jax.jit(lambda m: backpropagate(m, IMAGES, TARGETS, rules))(
        Model.from_linen(Net(), {"params": params})
    )
    one = affine(W["stem"][..., :2], jnp.array([0.3, -0.2]), (6, 6, 2), rule, **SAME)
    head = ref.Affine(np.asarray(params["head"]["kernel"]), np.zeros(3), rule)
    layers = [one, ref.Relu(), one, ref.Relu(), head]
    for n in range(2):
        expected = ref.sweep(layers, np.ravel(IMAGES[n]).astype(np.float64), np.eye(3)[TARGETS[n]])
        close(np.ravel(found.attribution[n]), expected[0])
    assert [s.layer for s in found.audit.sites if s.kind == "conv"] == ["shared#0", "shared#1"]


# -- batch norm ------------------------------------------------------------------------------------


class Normed(nn.Module):
    """Batch norms behind a convolution and a dense layer, one with a negative scale."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="bn")(x))
        x = nn.Dense(5, name="fc")(x.reshape(x.shape[0], -1))
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="bn2")(x))
        return nn.Dense(3, name="head")(x)


class NnxNormed(nnx.Module):
    def __init__(self, v):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 4, (3, 3), use_bias=False, rngs=rngs)
        self.bn, self.bn2 = nnx.BatchNorm(4, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
        self.fc, self.head = nnx.Linear(144, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)
        for name, arrays in v["params"].items():
            for key, value in arrays.items():
                setattr(getattr(self, name), key, nnx.Param(value))
        for name, arrays in v["batch_stats"].items():
            for key, value in arrays.items():
                setattr(getattr(self, name), key, nnx.BatchStat(value))

    def __call__(self, x):
        x = nnx.relu(self.bn(self.conv(x)))
        x = nnx.relu(self.bn2(self.fc(x.reshape(x.shape[0], -1))))
        return self.head(x)


def normed_variables():
    return {
        "params": {
            "conv": {"kernel": W["stem"]},
            "bn": {"scale": jnp.array([1.0, -0.5, 2.0, 0.3]), "bias": array(8, 4)},
            "fc": {"kernel": array(9, 144, 5, scale=0.1), "bias": array(10, 5)},
            "bn2": {"scale": jnp.array([-1.0, 0.5, 2.0, 0.3, 1.0]), "bias": array(11, 5) + 1},
            "head": {"kernel": array(12, 5, 3), "bias": array(13, 3)},
        },
        "batch_stats": {
            "bn": {"mean": array(14, 4), "var": jnp.array([0.5, 1.5, 1.0, 2.0])},
            "bn2": {"mean": array(15, 5), "var": jnp.array([0.5, 1.5, 1.0, 2.0, 0.7])},
        },
    }


@pytest.mark.parametrize(("rules", "rule"), RULES, ids=lambda r: getattr(r, "name", ""))
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_batch_norm_belongs_to_the_layer_before_it(library, rules, rule):
    v = normed_variables()
    make = {
        "linen": lambda: Model.from_linen(Normed(), v),
        "nnx": lambda: Model.from_nnx(NnxNormed(v)),
    }
    model = make[library]()
    found = jax.jit(lambda m, x: backpropagate(m, x, TARGETS, rules, layers=("conv", "bn")))(
        model, IMAGES
    )
    p, s = v["params"], v["batch_stats"]
    matrix, _ = ref.convolution_matrix(
        np.asarray(p["conv"]["kernel"], np.float64), (6, 6, 2), **SAME
    )

    def normed(matrix, bias, name, times):
        values = [p[name]["scale"], p[name]["bias"], s[name]["mean"], s[name]["var"]]
        return ref.Affine(
            *ref.batch_norm(
                matrix, bias, *(np.tile(np.asarray(a, np.float64), times) for a in values), 1e-5
            ),
            rule,
        )

    layers = [
        normed(matrix, np.zeros(144), "bn", 36),
        ref.Relu(),
        normed(np.asarray(p["fc"]["kernel"]), np.asarray(p["fc"]["bias"]), "bn2", 1),
        ref.Relu(),
        ref.Affine(np.asarray(p["head"]["kernel"]), np.asarray(p["head"]["bias"]), rule),
    ]
    for n in range(2):
        expected = ref.sweep(layers, np.ravel(IMAGES[n]).astype(np.float64), np.eye(3)[TARGETS[n]])
        close(np.ravel(found.attribution[n]), expected[0])
        # Both tensors of the fused layer have the relevance of the whole.
        close(np.ravel(found.layers["bn"][n]), expected[1])
        close(np.ravel(found.layers["conv"][n]), expected[1])


def test_a_cotangent_inside_a_fused_layer_is_the_derivative():
    v = normed_variables()
    model = Model.from_linen(Normed(), v)
    found = jax.jit(backpropagate, static_argnames=("rules", "layers"))(
        model, IMAGES, TARGETS, rules=R.GUIDED_BACKPROP, layers=("conv", "bn")
    )
    factor = v["params"]["bn"]["scale"] / jnp.sqrt(v["batch_stats"]["bn"]["var"] + 1e-5)
    close(found.layers["conv"], found.layers["bn"] * factor[None, None, None], 1e-5)


def test_a_signal_may_start_inside_a_fused_layer():
    """From the bare convolution's output, only the bare convolution is swept."""
    from jaxplain.trace.backward import Seed, Sweep

    v = normed_variables()
    sweep = Sweep(Model.from_linen(Normed(), v), IMAGES)
    relevance = jnp.ones(sweep.activation("conv").shape)
    found = sweep.pull(R.excitation_rules(), {"conv": Seed(relevance=relevance)}, ["input"])[
        "input"
    ]
    matrix, _ = ref.convolution_matrix(np.asarray(W["stem"], np.float64), (6, 6, 2), **SAME)
    for n in range(2):
        x = np.ravel(IMAGES[n]).astype(np.float64)
        close(
            np.ravel(found.value[n]),
            ref.excitation_rule()(x, matrix, np.zeros(144), np.ones(144)),
        )


def test_batch_norm_in_training_is_refused():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x)))
            return nn.Dense(3)(x.mean((1, 2)))

    variables = Net().init(jax.random.key(0), IMAGES)

    def apply(v, x):
        return Net().apply(v, x, mutable=["batch_stats"])[0]

    with pytest.raises(UncoveredError, match="depend"):
        backpropagate(Model.from_function(apply, variables), IMAGES, TARGETS, R.GUIDED_BACKPROP)


def test_a_batch_norm_before_its_convolution_hands_excitation_on():
    """As in DenseNet: what shifts a tensor takes no part, so the sum stays one."""
    scale, shift = jnp.array([0.5, 1.5, 2.0, 1.0]), array(16, 4)

    def apply(w, x):
        x = checkpoint_name(stem(w, x, jax.nn.relu), "stem")
        x = jax.nn.relu(x * scale[None, None, None] + shift[None, None, None])
        return finish(w, block(x, w["blocks"][0], w["biases"][0], jax.nn.relu))

    found = sweep_of(apply, W, R.excitation_rules(), layers=("stem",))
    np.testing.assert_allclose(found.layers["stem"].sum((1, 2, 3)), 1, rtol=1e-4)


def test_normalising_inside_the_model_does_not_move_relevance():
    raw = jnp.abs(IMAGES) * 255

    def inside(w, x):
        return chain(w, (x / 255 - 0.4) / 0.2, jax.nn.relu)

    for rules in (R.lrp_epsilon(0.1), R.epsilon_gamma_box(-2.0, 3.0)):
        found = sweep_of(inside, W, rules, raw)
        outside = sweep_of(lambda w, x: chain(w, x, jax.nn.relu), W, rules, (raw / 255 - 0.4) / 0.2)
        close(found.attribution, outside.attribution, 1e-4)


# -- other layers ----------------------------------------------------------------------------------

CONVOLUTIONS = {
    "strided": ({"stride": (2, 1)}, {"strides": (2, 1)}),
    "asymmetric": ({"padding": ((2, 0), (0, 1))}, {"padding": ((2, 0), (0, 1))}),
    "dilated": ({"dilation": (2, 1)}, {"rhs_dilation": (2, 1)}),
    "grouped": ({"groups": 2}, {"feature_group_count": 2}),
    "depthwise": ({"groups": 4}, {"feature_group_count": 4}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("rules", "rule"), RULES, ids=lambda r: getattr(r, "name", ""))
def test_convolutions(name, rules, rule):
    slow, fast = CONVOLUTIONS[name]
    x = array(17, 2, 5, 6, 4)
    kernel = array(18, 3, 2, 4 // slow.get("groups", 1), 4)
    matrix, shape = ref.convolution_matrix(np.asarray(kernel, np.float64), (5, 6, 4), **slow)
    head = array(19, shape[0] * shape[1] * 4, 3, scale=0.3)

    def apply(w, x):
        x = jax.nn.relu(conv(x, w[0], **fast) + w[1][None, None, None])
        return x.reshape(x.shape[0], -1) @ w[2]

    bias = array(20, 4)
    found = sweep_of(apply, [kernel, bias, head], rules, x)
    layers = [
        ref.Affine(matrix, np.tile(bias, shape[0] * shape[1]), rule),
        ref.Relu(),
        ref.Affine(np.asarray(head), np.zeros(3), rule),
    ]
    for n in range(2):
        expected = ref.sweep(layers, np.ravel(x[n]).astype(np.float64), np.eye(3)[TARGETS[n]])[0]
        close(np.ravel(found.attribution[n]), expected)


@pytest.mark.parametrize(("rules", "rule"), RULES, ids=lambda r: getattr(r, "name", ""))
def test_transposed_convolution(rules, rule):
    layer = nn.ConvTranspose(3, (3, 3), strides=(2, 2))
    x = array(21, 2, 3, 3, 2)
    variables = layer.init(jax.random.key(0), x)
    variables["params"]["bias"] = jnp.array([0.5, -0.5, 0.1])
    identity = jnp.eye(18).reshape(18, 3, 3, 2)
    bare = {"params": variables["params"] | {"bias": jnp.zeros(3)}}
    matrix = np.asarray(layer.apply(bare, identity), np.float64).reshape(18, -1)
    head = array(22, matrix.shape[1], 3)

    def apply(v, x):
        return jax.nn.relu(layer.apply(v, x)).reshape(x.shape[0], -1) @ head

    found = sweep_of(apply, variables, rules, x)
    layers = [
        ref.Affine(matrix, np.tile([0.5, -0.5, 0.1], matrix.shape[1] // 3), rule),
        ref.Relu(),
        ref.Affine(np.asarray(head), np.zeros(3), rule),
    ]
    for n in range(2):
        expected = ref.sweep(layers, np.ravel(x[n]).astype(np.float64), np.eye(3)[TARGETS[n]])[0]
        close(np.ravel(found.attribution[n]), expected)


BIASES = {
    "of positions": (6, 6, 4),
    "of positions and channels, with a batch axis": (1, 6, 6, 4),
    "of each image": (2, 1, 1, 4),
    "one number": (),
}


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("late", [False, True], ids=["", "after a reshape"])
def test_biases_of_any_shape_belong_to_the_layer(name, late):
    """Excitation and z+ would leak into a bias that is not seen as one."""
    shape = BIASES[name]
    bias = array(23, *shape)
    full = jnp.broadcast_to(bias, (2, 6, 6, 4))

    def apply(w, x):
        x = conv(x, w["stem"], padding="SAME")
        if late:
            x = jax.nn.relu(x.reshape(2, 36, 4) + full.reshape(2, 36, 4)).reshape(2, 6, 6, 4)
        else:
            x = jax.nn.relu(x + jnp.broadcast_to(bias, (*(1,) * (4 - bias.ndim), *shape)))
        return finish(w, x)

    for rules, rule in RULES[1:]:
        found = sweep_of(apply, W, rules)
        for n in range(2):
            first = affine(W["stem"], jnp.zeros(4), (6, 6, 2), rule, **SAME)
            first.bias = np.ravel(full[n])
            layers = [
                first,
                ref.Relu(),
                MEAN,
                ref.Affine(np.asarray(W["head"]), np.ravel(W["shift"]), rule),
            ]
            x = np.ravel(IMAGES[n]).astype(np.float64)
            expected = ref.sweep(layers, x, np.eye(3)[TARGETS[n]])[0]
            close(np.ravel(found.attribution[n]), expected)


def test_what_nobody_reads_does_not_part_a_layer_from_its_bias():
    """Excitation would leak if the dead reader hid that bias and convolution belong together."""

    def apply(w, x):
        def step(x, layer):
            y = conv(x, layer[0], padding="SAME")
            y[0].sum()  # nothing reads this
            return jax.nn.relu(y + layer[1]), None

        x = checkpoint_name(stem(w, x, jax.nn.relu), "stem")
        return finish(w, lax.scan(step, x, (w["blocks"], w["biases"]))[0])

    found = sweep_of(apply, W, R.excitation_rules(), layers=("stem",))
    np.testing.assert_allclose(found.layers["stem"].sum((1, 2, 3)), 1, rtol=1e-4)


def test_a_dense_layer_with_several_output_axes():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.DenseGeneral((4, 3), axis=(1, 2, 3), name="wide")(x))
            return nn.DenseGeneral(3, axis=(1, 2), name="head")(x)

    variables = Net().init(jax.random.key(0), IMAGES)
    variables["params"]["wide"]["bias"] = array(24, 4, 3)
    found = sweep_of(Net().apply, variables, R.excitation_rules())
    kernels = [variables["params"][n]["kernel"] for n in ("wide", "head")]
    layers = [
        ref.Affine(
            np.reshape(kernels[0], (72, 12)), np.ravel(array(24, 4, 3)), ref.excitation_rule()
        ),
        ref.Relu(),
        ref.Affine(np.reshape(kernels[1], (12, 3)), np.zeros(3), ref.excitation_rule()),
    ]
    for n in range(2):
        expected = ref.sweep(layers, np.ravel(IMAGES[n]).astype(np.float64), np.eye(3)[TARGETS[n]])
        close(np.ravel(found.attribution[n]), expected[0])


def test_pooling_by_a_fixed_matrix_is_pooling():
    matrix = np.kron(np.eye(3), np.full((2, 1), 0.5)).astype(np.float32)

    def by_matrix(w, x):
        x = stem(w, x, jax.nn.relu)
        return finish(w, jnp.einsum("bhwc,hi,wj->bijc", x, matrix, matrix))

    def by_window(w, x):
        x = stem(w, x, jax.nn.relu)
        return finish(w, nn.avg_pool(x, (2, 2), (2, 2)))

    rules = R.lrp_alpha_beta()
    found, expected = (sweep_of(f, W, rules) for f in (by_matrix, by_window))
    close(found.attribution, expected.attribution)
    assert [s.kind for s in found.audit.sites] == ["conv", "relu", "average", "average", "dense"]


def test_resizing_first_does_not_count_as_the_first_layer():
    def apply(w, x):
        return chain(w, jax.image.resize(x, (x.shape[0], 6, 6, 2), "bilinear"), jax.nn.relu)

    audit = sweep_of(apply, W, R.epsilon_plus(flat=True), array(25, 2, 9, 9, 2)).audit
    assert [s.rule for s in audit.sites if "Flat" in s.rule] == ["Flat(epsilon=1e-06)"]
    assert next(s.kind for s in audit.sites if "Flat" in s.rule) == "conv"


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(dtype):
    low = jax.tree.map(lambda a: a.astype(dtype), W)
    rules, expected = SETS[-1], chain_references()[-1]
    found = sweep_of(lambda w, x: chain(w, x, jax.nn.relu), low, rules, IMAGES.astype(dtype))
    assert found.attribution.dtype == dtype
    error = np.abs(np.asarray(found.attribution, np.float32) - expected).max()
    assert error < 0.15 * np.abs(expected).max()


def test_mixed_precision():
    """Layers in bfloat16, batch norm and images in float32: still one fused layer each."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), dtype=jnp.bfloat16, name="conv")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, dtype=jnp.float32, name="bn")(x))
            return nn.Dense(3, name="head")(x.mean((1, 2)))

    variables = Net().init(jax.random.key(0), IMAGES)
    variables["batch_stats"]["bn"]["mean"] = jnp.array([0.2, -0.4, 0.1, 0.5])
    model = Model.from_linen(Net(), variables)
    found = jax.jit(
        lambda m: backpropagate(m, IMAGES, TARGETS, R.excitation_rules(), layers=("bn",))
    )(model)
    assert found.attribution.dtype == jnp.float32
    np.testing.assert_allclose(found.layers["bn"].sum((1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(found.attribution.sum((1, 2, 3)), 1, rtol=0.02)


# -- first and last layers -------------------------------------------------------------------------


def ends(apply):
    rules = R.relevance_rules(
        "ends", R.AlphaBeta(), R.Epsilon(), first=R.Flat(), last=R.Excitation(-1.0)
    )
    audit = jax.eval_shape(
        lambda x: backpropagate(Model.from_function(apply, W), x, TARGETS, rules), IMAGES
    ).audit
    return [s.rule.partition("(")[0] for s in audit.sites if s.kind in ("conv", "dense")]


def test_ends_of_a_chain_with_a_scan():
    assert ends(lambda w, x: scan(w, x, jax.nn.relu)) == ["Flat", "AlphaBeta", "Excitation"]
    assert ends(lambda w, x: switch(w, x, jax.nn.relu)) == [
        "Flat", "AlphaBeta", "AlphaBeta", "AlphaBeta", "Excitation",
    ]  # fmt: skip


def test_ends_of_branches():
    def apply(w, x):
        left, right = (stem(w, v, jax.nn.relu) for v in (x, x[:, ::-1]))
        return finish(w, left) + finish(w, right)

    assert sorted(ends(apply)) == ["Excitation", "Excitation", "Flat", "Flat"]


def test_a_first_layer_that_is_a_step_of_a_loop_is_refused():
    def apply(w, x):
        x, _ = lax.scan(lambda x, k: (jax.nn.relu(conv(x, k, padding="SAME")), None), x, w)
        return x.sum((1, 2)) @ jnp.ones((2, 3))

    kernels = array(26, 3, 3, 3, 2, 2)
    model = Model.from_function(apply, kernels)
    with pytest.raises(UncoveredError, match="first layer is one step of a loop"):
        backpropagate(model, IMAGES, TARGETS, R.epsilon_plus(flat=True))
    backpropagate(model, IMAGES, TARGETS, R.epsilon_plus())


def test_a_stopped_part_passed_into_a_loop_is_noticed():
    def apply(w, x):
        x = stem(w, x, jax.nn.relu)
        gate = lax.stop_gradient(x)
        x, _ = lax.scan(lambda x, _: (x * gate, None), x, None, length=2)
        return finish(w, x)

    with pytest.raises(UncoveredError, match="multiplies two things"):
        backpropagate(Model.from_function(apply, W), IMAGES, TARGETS, R.GUIDED_BACKPROP)


def test_products_that_are_no_layers_are_refused_by_relevance_rules_only():
    def apply(w, x):
        x = stem(w, x, jax.nn.relu)
        kernel = x[0].transpose(0, 1, 2)[..., None]  # the image as a kernel
        return conv(w["probe"], kernel).reshape(1, -1)[:, :3]

    model = Model.from_function(apply, W | {"probe": array(27, 1, 8, 8, 4)})
    backpropagate(model, IMAGES[:1], TARGETS[:1], R.GUIDED_BACKPROP)
    with pytest.raises(UncoveredError, match="images on its left"):
        backpropagate(model, IMAGES[:1], TARGETS[:1], R.lrp_epsilon())


def test_a_batch_that_mixes_is_refused():
    with pytest.raises(ValueError, match="expected logits"):
        backpropagate(
            Model.from_function(lambda w, x: chain(w, x, jax.nn.relu).mean(0, keepdims=True), W),
            IMAGES, TARGETS, R.GUIDED_BACKPROP,
        )  # fmt: skip


@pytest.mark.parametrize("output", [lambda y: {"logits": y}, lambda y: (y, y), lambda y: None])
def test_a_model_must_return_one_array(output):
    model = Model.from_function(lambda w, x: output(chain(w, x, jax.nn.relu)), W)
    with pytest.raises(TypeError, match="expected one array of logits"):
        backpropagate(model, IMAGES, TARGETS, R.GUIDED_BACKPROP)


def test_parameters_may_be_closed_over_even_as_tracers():
    some = slice(0, None, 4)

    def run(w, x):
        model = Model.from_function(lambda _, x: chain(w, x, jax.nn.relu))
        return [backpropagate(model, x, TARGETS, rules).attribution for rules in SETS[some]]

    for found in (jax.jit(run)(W, IMAGES), jax.jit(lambda x: run(W, x))(IMAGES)):
        for attribution, expected in zip(found, chain_references()[some], strict=True):
            close(attribution, expected)
