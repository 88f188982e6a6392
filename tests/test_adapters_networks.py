"""Networks of Haiku, Equinox and NNX, whose code is untouched, as models."""

import sys

import equinox as eqx
import foreign
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import BRIEF, fitted
from foreign import NETWORKS, images_of, network, run

from jaxplain.methods import METHODS, gradient
from jaxplain.model import Layer, Model, ReceptiveField
from jaxplain.trace import backpropagate, capture, edit, rules, split

TARGETS = jnp.array([1, 4])
each = pytest.mark.parametrize("name", NETWORKS)


def close(found, expected, tolerance=1e-5):
    scale = float(jnp.abs(expected).max())
    assert scale > 0
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance, rtol=0)


@each
def test_logits_are_the_librarys_own(name):
    model, by_hand = network(name)
    images = images_of(model)
    close(run(model, images), jax.jit(by_hand)(images))


@each
def test_gradient_is_that_of_the_librarys_own_call(name):
    model, by_hand = network(name)
    images = images_of(model)
    expected = jax.jit(jax.grad(lambda x: by_hand(x)[jnp.arange(2), TARGETS].sum()))(images)
    close(gradient(model, images, TARGETS), expected)


@pytest.mark.parametrize("method", BRIEF.values(), ids=BRIEF)
def test_every_method_explains_equinox(method):
    explain("equinox", method)


FAMILIES = ("guided_backprop", "lrp_epsilon_plus", "grad_cam", "occlusion")


@pytest.mark.parametrize("method", FAMILIES)
@pytest.mark.parametrize("name", ["haiku", "nnx"])
def test_a_method_of_each_family_explains(name, method):
    explain(name, METHODS[method])


def explain(name, method):
    model, _ = network(name)
    method = fitted(method, model)
    found = method.explain(model, images_of(model), TARGETS, key=jax.random.key(0))
    assert found.heatmap.shape == (2, *model.input_shape[:2])
    assert jnp.isfinite(found.heatmap).all()
    assert float(jnp.abs(found.heatmap).max()) > 0


@pytest.mark.parametrize(
    ("name", "names"), [("haiku", FAMILIES), ("nnx", METHODS), ("haiku_resnet", FAMILIES)]
)
def test_methods_apply(name, names):
    model, _ = network(name)
    found = {n: fitted(BRIEF[n], model).inapplicable(model) for n in names}
    assert found == dict.fromkeys(names)


EXPECTED = {
    "haiku": {
        "haiku_block.conv2_d": ((12, 10, 4), (3, 3), (1, 1), (-1, -1)),
        "haiku_block_1.batch_norm": ((6, 5, 8), (5, 5), (2, 2), (-1, -1)),
        "haiku_block_1": ((6, 5, 8), (5, 5), (2, 2), (-1, -1)),
    },
    "haiku_resnet": {
        "res_net.initial_conv": ((16, 16, 4), (7, 7), (2, 2), (-2, -2)),
        "res_net.block_group_1.block_0": ((4, 4, 4), (51, 51), (8, 8), (-18, -18)),
    },
    "equinox": {
        "blocks.0.conv": ((12, 10, 4), (3, 3), (1, 1), (-1, -1)),
        "blocks.1.norm": ((6, 5, 8), (5, 5), (2, 2), (-2, -2)),
        "blocks.1": ((6, 5, 8), (5, 5), (2, 2), (-2, -2)),
    },
    "nnx": {
        "blocks.0.conv1": ((12, 10, 4), (3, 3), (1, 1), (-1, -1)),
        "blocks.1.norm2": ((6, 5, 8), (11, 11), (2, 2), (-5, -5)),
    },
}
HEADS = {
    "haiku": "linear",
    "haiku_resnet": "res_net.logits",
    "equinox": "head",
    "nnx": "head",
}


@each
def test_layers_are_channels_last_with_their_receptive_fields(name):
    model, _ = network(name)
    layers = {layer.name: layer for layer in model.layers()}
    for layer, (shape, *field) in EXPECTED[name].items():
        assert layers[layer] == Layer(layer, shape, ReceptiveField(*field))
    assert layers[HEADS[name]] == Layer(HEADS[name], (5,), None)


@each
def test_capture_split_and_edit_work_at_its_layers(name):
    model, _ = network(name)
    images, layer, head = images_of(model), model.default_layer, HEADS[name]

    @jax.jit
    def everything(model, images):
        found = capture(model, images, [layer, head])
        before, behind = split(model, layer)
        # Closing a channel is what writing zeros there by hand does.
        closed = jnp.ones(found[layer].shape[-1]).at[1].set(0)
        edited = edit(model, gates={layer: closed})(images)
        by_hand = behind(found[layer].at[..., 1].set(0))
        return found, before(images), behind(before(images)), edited, by_hand

    found, before, behind, edited, by_hand = everything(model, images)
    logits = run(model, images)
    close(found[head], logits)
    np.testing.assert_array_equal(before, found[layer])
    close(behind, logits)
    close(edited, by_hand)
    assert float(jnp.abs(by_hand - logits).max()) > 1e-3


def test_equinox_maps_are_those_of_the_module_with_channels_last():
    model, _ = network("equinox")
    images = images_of(model)

    @jax.jit
    def both(model, images):
        arrays, _ = model.params
        conv = arrays.blocks[0].conv.weight
        by_hand = jax.lax.conv_general_dilated(
            images, conv, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
        )
        return capture(model, images, ["blocks.0.conv"])["blocks.0.conv"], by_hand

    close(*both(model, images))


@each
def test_every_convolution_and_dense_layer_gets_a_relevance_rule(name):
    model, _ = network(name)
    images = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
    audit = jax.eval_shape(
        lambda m, x: backpropagate(m, x, TARGETS, rules.epsilon_plus()).audit, model, images
    )
    kinds = [(site.kind, site.rule) for site in audit.sites]
    ruled = [kind for kind, rule in kinds if rule != "own derivative"]
    assert sorted(ruled) == sorted(kind for kind, _ in kinds if kind in ("conv", "dense"))
    assert ruled.count("dense") == 1
    assert ruled.count("conv") == {"haiku": 2, "haiku_resnet": 13, "equinox": 2, "nnx": 6}[name]


@pytest.mark.parametrize(
    ("build", "shared"),
    [
        (lambda seed: foreign.of_haiku(foreign.haiku_network, foreign.SIZE, seed), 1),
        (lambda seed: foreign.equinox(seed=seed), 1),
        (foreign.nnx_resnet, 1),
        (lambda seed: foreign.equinox(mode=("ema", "batch")[seed]), 2),
    ],
    ids=["haiku", "equinox", "nnx", "different modules"],
)
def test_models_of_equal_modules_share_a_compilation(build, shared):
    traced = []

    @jax.jit
    def counted(model, x):
        traced.append(model)
        return model(x)

    models = [build(seed).model for seed in (0, 1)]
    logits = [counted(model, images_of(model)) for model in models]
    assert len(traced) == shared
    assert float(jnp.abs(logits[0] - logits[1]).max()) > 1e-3


@pytest.mark.parametrize("name", ["haiku", "equinox", "nnx"])
def test_gradients_by_the_parameters_reach_all_weights(name):
    model, _ = network(name)
    images = images_of(model)
    found = jax.jit(jax.grad(lambda m: (m(images) ** 2).sum(), allow_int=True))(model)
    assert isinstance(found, Model)
    sizes = {
        jax.tree_util.keystr(path): float(jnp.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(found.params)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    weights = {path: size for path, size in sizes.items() if "state" not in path}
    assert weights
    assert sum(size > 0 for size in weights.values()) >= 7  # 2 convolutions, 2 norms, 1 head


# -- Haiku -----------------------------------------------------------------------------------------


def plain(x):
    return hk.nets.MLP([4, 3])(hk.Flatten()(x))


@pytest.mark.parametrize(
    "network", [hk.transform(plain), hk.without_apply_rng(hk.transform(plain))]
)
def test_haiku_without_state_with_or_without_a_key(network):
    images = jnp.ones((2, 4, 4, 1))
    params = network.init(jax.random.key(0), images)
    model = Model.from_haiku(network, params, input_shape=(4, 4, 1))
    expected = hk.transform(plain).apply(params, None, images)
    np.testing.assert_allclose(run(model, images), expected, rtol=1e-6)
    assert model.params is params
    assert [layer.name for layer in model.layers()] == [
        "flatten", "mlp.linear_0", "mlp.linear_1", "mlp",
    ]  # fmt: skip


def test_haiku_layers_inside_remat_and_loops():
    def function(x):
        x = hk.remat(hk.Conv2D(2, 3, name="saved"))(x)
        stack = hk.experimental.layer_stack(2)(lambda y: hk.Conv2D(2, 3, name="inner")(y))
        return hk.Linear(3, name="head")(stack(x).mean((1, 2)))

    network = hk.transform(function)
    images = jnp.ones((1, 6, 6, 1))
    model = Model.from_haiku(
        network, network.init(jax.random.key(0), images), input_shape=(6, 6, 1)
    )
    names = [layer.name for layer in model.layers()]
    assert (names[0], names[-1]) == ("saved", "head")
    with pytest.raises(ValueError, match="'inner' lies inside a scan"):
        capture(model, images, ["inner"])


def test_haiku_refuses_what_it_cannot_run():
    params, state = {"linear": {"w": jnp.ones((8, 5))}}, {"ema": {"average": jnp.ones(3)}}
    with pytest.raises(ValueError, match="state is needed"):
        Model.from_haiku(foreign.haiku_network, params)
    with pytest.raises(ValueError, match="state is given"):
        Model.from_haiku(hk.transform(plain), params, state)
    with pytest.raises(TypeError, match="network is a function"):
        Model.from_haiku(plain, params)


# -- Equinox ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_equinox_batch_norm_uses_its_running_statistics(mode):
    model, by_hand = foreign.equinox(mode)
    images = images_of(model)
    close(run(model, images), jax.jit(by_hand)(images))
    close(run(model, images)[:1], run(model, images[:1]))


def test_equinox_module_is_left_as_it_was():
    make = eqx.nn.make_with_state(foreign.EquinoxNetwork)
    module, state = eqx.filter_eval_shape(make, jax.random.key(0), "ema")
    model = Model.from_equinox(module, state)
    assert not module.drop.inference
    assert type(module.head) is eqx.nn.Linear
    assert type(model.params[0].head) is eqx.nn.Linear


def test_equinox_layers_of_modules_that_are_mapped_shared_and_nested():

    class Mixer(eqx.Module):
        patch: eqx.nn.Conv2d
        token: eqx.nn.Linear
        tail: eqx.nn.Sequential

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.patch = eqx.nn.Conv2d(1, 4, 2, 2, key=keys[0])
            self.token = eqx.nn.Linear(4, 4, key=keys[1])
            self.tail = eqx.nn.Sequential(
                [eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(4, 3, key=keys[2])]
            )

        def __call__(self, x, *, scale):
            x = self.patch(x).reshape(4, -1).T
            x = jax.vmap(self.token)(eqx.filter_vmap(self.token)(x))
            assert self.token.out_features == 4
            assert isinstance(self.token, eqx.nn.Linear)
            return scale * self.tail(x.mean(0))

    model = Model.from_equinox(Mixer(jax.random.key(0)), call={"scale": 2.0}, input_shape=(6, 6, 1))
    assert [(layer.name, layer.shape) for layer in model.layers()] == [
        ("patch", (3, 3, 4)),
        ("token#0", (9, 4)),
        ("token#1", (9, 4)),
        ("tail.layers.0", (4,)),
        ("tail.layers.1", (3,)),
        ("tail", (3,)),
    ]
    halved = Model.from_equinox(Mixer(jax.random.key(0)), call={"scale": 1.0})
    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 1))
    close(run(model, images), 2 * run(halved, images))


def test_equinox_refuses_what_is_no_module():
    with pytest.raises(TypeError, match="module is a function"):
        Model.from_equinox(plain)


@pytest.mark.parametrize(("library", "package"), [("haiku", "dm-haiku"), ("equinox", "equinox")])
def test_missing_library_says_how_to_install_it(monkeypatch, library, package):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}"):
        getattr(Model, f"from_{library}")(plain, {})
