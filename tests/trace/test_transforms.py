"""Everything under jit, vmap, grad, jvp and shard_map, with one compilation for equal models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxplain.model import Model
from jaxplain.trace import backpropagate, capture, edit, split
from jaxplain.trace import rules as R


def array(seed, *shape, scale=1.0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(scale * values, jnp.float32)


PARAMS = {
    "w": array(1, 3, 3, 2, 3), "b": array(2, 3, scale=0.3), "v": array(3, 2, 1, 1, 3, 3, scale=0.5),
    "head": array(4, 3, 3),
}  # fmt: skip
IMAGES, TARGETS = array(0, 8, 4, 4, 2), jnp.arange(8) % 3


def apply(p, x):
    """A convolution, a scan of two more, and a branch known at run time only."""

    def conv(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = checkpoint_name(jax.nn.relu(conv(x, p["w"]) + p["b"][None, None, None]), "stem")
    x, _ = lax.scan(lambda x, w: (jax.nn.relu(conv(x, w)), None), x, p["v"])
    x = lax.cond(p["b"][0] > 99, lambda x: x * 3, lambda x: x * 2, x)
    x = checkpoint_name(x, "deep")
    return x.mean((1, 2)) @ p["head"]


MODEL = Model.from_function(apply, PARAMS, input_shape=(4, 4, 2))
SETS = {
    "guided": R.GUIDED_BACKPROP,
    "epsilon": R.lrp_epsilon(0.1),
    "alpha-beta": R.lrp_alpha_beta(epsilon=0.01),
    "excitation": R.excitation_rules(),
}

# One set that scales cotangents, one that shares relevance out: what else differs is arithmetic.
BOTH_KINDS = pytest.mark.parametrize("name", ["guided", "excitation"])


def explain(rules, params, x, targets):
    model = Model.from_function(apply, params)
    found = backpropagate(model, x, targets, rules, layers=("stem",))
    return found.logits, found.attribution, found.layers["stem"]


@functools.cache
def expected(name):
    return jax.jit(functools.partial(explain, SETS[name]))(PARAMS, IMAGES, TARGETS)


def assert_same(found, name, tolerance=1e-5):
    for mine, theirs in zip(found, expected(name), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


@BOTH_KINDS
def test_eager_equals_jit(name):
    assert_same(explain(SETS[name], PARAMS, IMAGES, TARGETS), name)


@BOTH_KINDS
def test_vmap_equals_the_batch(name):
    run = jax.jit(jax.vmap(functools.partial(explain, SETS[name]), in_axes=(None, 0, 0)))
    found = run(PARAMS, IMAGES[:, None], TARGETS[:, None])
    assert_same([f[:, 0] for f in found], name)


def test_vmap_over_parameters():
    two = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), PARAMS)
    run = jax.jit(jax.vmap(functools.partial(explain, SETS["guided"]), in_axes=(0, None, None)))
    found = run(two, IMAGES, TARGETS)
    assert_same([f[0] for f in found], "guided")
    half = explain(SETS["guided"], jax.tree.map(lambda a: 0.5 * a, PARAMS), IMAGES, TARGETS)
    np.testing.assert_allclose(found[1][1], half[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["guided", "alpha-beta", "excitation"])
def test_derivatives_by_the_parameters_equal_finite_differences(name):
    weights = array(9, *IMAGES[:2].shape)

    def total(params):
        return (explain(SETS[name], params, IMAGES[:2], TARGETS[:2])[1] * weights).sum()

    direction = jax.tree.map(lambda a: array(7, *a.shape), PARAMS)

    @jax.jit
    def run(params):
        return *jax.jvp(total, (params,), (direction,)), jax.grad(total)(params)

    _, forward, gradient = run(PARAMS)
    backward = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), gradient, direction)))
    np.testing.assert_allclose(forward, backward, rtol=1e-3, atol=1e-3 * abs(float(forward)))
    step = 1e-3
    ends = [
        run(jax.tree.map(lambda a, d: a + s * step * d, PARAMS, direction))[0]  # noqa: B023
        for s in (1, -1)
    ]
    numeric = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(forward, numeric, rtol=0.05, atol=0.01)


def test_derivatives_by_the_images():
    @jax.jit
    def total(x):
        return (explain(SETS["epsilon"], PARAMS, x, TARGETS[:2])[1] ** 2).sum()

    x, direction = IMAGES[:2], array(8, *IMAGES[:2].shape)
    found = (jax.grad(total)(x) * direction).sum()
    numeric = (total(x + 1e-3 * direction) - total(x - 1e-3 * direction)) / 2e-3
    np.testing.assert_allclose(found, numeric, rtol=0.05)
    np.testing.assert_allclose(jax.jvp(total, (x,), (direction,))[1], found, rtol=1e-3)


def mesh(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)


def sharded(kind):
    place = NamedSharding(mesh(kind), P("data"))
    return jax.device_put(IMAGES, place), jax.device_put(TARGETS, place)


@KINDS
@BOTH_KINDS
def test_shard_map(kind, name):
    images, targets = sharded(kind)
    run = jax.shard_map(
        functools.partial(explain, SETS[name]),
        mesh=mesh(kind),
        in_specs=(P(), P("data"), P("data")),
        out_specs=P("data"),
        check_vma=True,
    )
    with jax.set_mesh(mesh(kind)):
        assert_same(jax.jit(run)(PARAMS, images, targets), name)


@BOTH_KINDS
def test_jit_over_an_automatic_mesh(name):
    images, targets = sharded(AxisType.Auto)
    found = jax.jit(functools.partial(explain, SETS[name]))(PARAMS, images, targets)
    assert found[1].sharding.spec[0] == "data"
    assert_same(found, name)


def dense_apply(p, x):
    x = checkpoint_name(jax.nn.relu(x.mean(1) @ p["a"] + p["c"][None, None]), "hidden")
    return x.mean(1) @ p["head"]


def test_jit_over_an_explicit_mesh():
    """Arrays carry their sharding in their type; a network that runs so is explained so."""
    params = {"a": array(1, 2, 3), "c": array(2, 3), "head": array(4, 3, 3)}

    def run(x, targets):
        model = Model.from_function(dense_apply, params)
        return [
            backpropagate(model, x, targets, SETS[n], layers=("hidden",)).attribution for n in SETS
        ]

    images, targets = sharded(AxisType.Explicit)
    reference = jax.jit(run)(IMAGES, TARGETS)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        found = jax.jit(run)(images, targets)
    for mine, theirs in zip(found, reference, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


# -- layers ----------------------------------------------------------------------------------------


def through_layers(params, x):
    """Capture, cut and edit in one function, so that each transformation sees all three."""
    model = Model.from_function(apply, params, input_shape=(4, 4, 2))
    found = capture(model, x, ["stem", "deep", "logits"])
    prefix, suffix = split(model, "stem")
    mask = jnp.linspace(0, 1, 16).reshape(4, 4)
    closed = edit(model, gates={"stem": jnp.array([1.0, 0.0, 0.5])}, masks={"stem": mask})
    return found["stem"], found["deep"], found["logits"], suffix(prefix(x)), closed(x)


@functools.cache
def expected_layers():
    return jax.jit(through_layers)(PARAMS, IMAGES)


def assert_same_layers(found):
    for mine, theirs in zip(found, expected_layers(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_layers_are_what_the_network_computes():
    stem, deep, logits, whole, closed = expected_layers()
    np.testing.assert_allclose(logits, apply(PARAMS, IMAGES), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(deep.mean((1, 2)) @ PARAMS["head"], logits, rtol=1e-4, atol=1e-5)
    mask = jnp.linspace(0, 1, 16).reshape(1, 4, 4, 1)
    changed = stem * jnp.array([[[[1.0, 0.0, 0.5]]]]) * mask
    behind = split(MODEL, "stem")[1]
    np.testing.assert_allclose(behind(changed), closed, rtol=1e-4, atol=1e-5)


def test_layers_eagerly():
    assert_same_layers(through_layers(PARAMS, IMAGES))


def test_layers_under_vmap():
    run = jax.jit(jax.vmap(through_layers, in_axes=(None, 0)))
    assert_same_layers([f[:, 0] for f in run(PARAMS, IMAGES[:, None])])


def test_layers_under_grad_and_jvp():
    def total(params, x):
        return sum((f**2).sum() for f in through_layers(params, x))

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(PARAMS, IMAGES[:2])
    directions = jax.tree.map(lambda a: array(5, *a.shape), (PARAMS, IMAGES[:2]))
    forward = jax.jit(lambda p, d: jax.jvp(total, p, d)[1])((PARAMS, IMAGES[:2]), directions)
    backward = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), gradients, directions)))
    np.testing.assert_allclose(forward, backward, rtol=1e-4)


@KINDS
def test_layers_under_shard_map(kind):
    images, _ = sharded(kind)
    run = jax.shard_map(
        through_layers,
        mesh=mesh(kind),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        check_vma=True,
    )
    with jax.set_mesh(mesh(kind)):
        assert_same_layers(jax.jit(run)(PARAMS, images))


# -- compilations ----------------------------------------------------------------------------------


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.conv, self.head = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.conv(x)).mean((1, 2))))


BUILDERS = {
    "function": lambda seed: Model.from_function(apply, jax.tree.map(lambda a: a + seed, PARAMS)),
    "linen": lambda seed: Model.from_linen(Linen(), Linen().init(jax.random.key(seed), IMAGES)),
    "nnx": lambda seed: Model.from_nnx(Nnx(seed)),
}


@pytest.mark.parametrize("library", BUILDERS)
def test_equal_models_share_one_compilation(library):
    traced = []

    @jax.jit
    def run(model, x):
        traced.append(model)
        found = backpropagate(model, x, TARGETS, R.GUIDED_BACKPROP)
        return found.attribution, found.audit

    first, audit = run(BUILDERS[library](0), IMAGES)
    again, same = run(BUILDERS[library](0), IMAGES)
    other, _ = run(BUILDERS[library](1), IMAGES)
    assert len(traced) == 1
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert audit == same
    assert "Guided()" in str(audit)


@pytest.mark.parametrize("library", BUILDERS)
def test_parts_and_edits_of_equal_models_share_one_compilation(library):
    traced = []

    @jax.jit
    def run(model, x):
        traced.append(model)
        return model(x)

    name = BUILDERS[library](0).layers((4, 4, 2))[0].name
    for seed in (0, 1):
        model = BUILDERS[library](seed)
        prefix, suffix = split(model, name, image_shape=(4, 4, 2))
        closed = edit(model, gates={name: jnp.ones(model.layers((4, 4, 2))[0].shape[-1])})
        whole = run(model, IMAGES)
        np.testing.assert_allclose(run(suffix, run(prefix, IMAGES)), whole, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(run(closed, IMAGES), whole, rtol=1e-5, atol=1e-5)
    assert len(traced) == 4


def test_rule_sets_are_equal_by_value():
    assert R.epsilon_plus() == R.epsilon_plus()
    assert hash(R.epsilon_gamma_box((0.0, 1.0), 2.0)) == hash(R.epsilon_gamma_box((0.0, 1.0), 2.0))
    assert R.epsilon_plus() != R.epsilon_plus(1e-3)
