"""Batch norm folded into convolutions and dense layers: equal models, and what is refused."""

import dataclasses

import flax.linen as nn
import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign import NETWORKS, draw, images_of, network, run
from ports import cheap_variables

from jaxplain.adapters import LinenApply
from jaxplain.methods import METHODS
from jaxplain.model import Model
from jaxplain.models.resnet import ResNet
from jaxplain.models.weights.fill import variable_shapes
from jaxplain.trace import backpropagate, capture, edit, rules, split
from jaxplain.trace.folding import fold_batch_norm
from jaxplain.trace.layers import trace_model

TARGETS = jnp.array([1, 4])
KEPT = {
    "haiku": ["params/linear/b", "params/linear/w"],
    "haiku_resnet": ["params/res_net/~/logits/b", "params/res_net/~/logits/w"],
    "equinox": ["0/head/bias", "0/head/weight"],
    "nnx": ["head/bias/value", "head/kernel/value"],
}
FOLDED = {"haiku": 2, "haiku_resnet": 13, "equinox": 2, "nnx": 6}
each = pytest.mark.parametrize("name", NETWORKS)


def close(found, expected, tolerance=1e-5):
    scale = float(jnp.abs(expected).max())
    assert scale > 0
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance, rtol=0)


def operations(model):
    images = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
    return [e.name for e in trace_model(model, images).program.equations]


@each
def test_folded_model_is_equal_and_has_no_batch_norm(name):
    model, _ = network(name)
    folded = fold_batch_norm(model)
    images = images_of(model, 3)
    close(run(folded, images), run(model, images))
    assert {"rsqrt", "sqrt"} & set(operations(model))
    assert not {"rsqrt", "sqrt", "sub"} & set(operations(folded))
    assert len(folded.params["folded"]) == FOLDED[name]
    assert sorted(folded.params["kept"]) == KEPT[name]
    assert (folded.name, folded.preprocessing) == (model.name, model.preprocessing)


def linen(*, before=None, behind=None, dense=False, dtype=None):
    """Convolution, batch norm, ReLU and a head, with something put in on request."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            if dense:
                x = nn.Dense(6, name="first", dtype=dtype)(x)
            else:
                x = nn.Conv(6, (3, 3), name="first", dtype=dtype)(x)
            x = before(x) if before else x
            x = nn.BatchNorm(use_running_average=True, name="norm", dtype=dtype)(x)
            x = behind(x) if behind else x
            return nn.Dense(5, name="head")(nn.relu(x).mean((1, 2)))

    module = Network()
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 8, 6, 2)))

    def leaf(path, struct):
        name = jax.tree_util.keystr(path)
        kind = next((kind for kind in ("var", "scale") if kind in name), "other")
        return draw(2, struct.shape, kind)

    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    return Model.from_linen(
        module, variables, input_shape=(8, 6, 2), name="linen", default_layer="norm"
    )


@pytest.mark.parametrize("dense", [False, True])
def test_weights_are_those_of_the_closed_form(dense):
    model = linen(dense=dense)
    folded = fold_batch_norm(model)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    params, stats = exact["params"], exact["batch_stats"]["norm"]
    scale = params["norm"]["scale"] / np.sqrt(stats["var"] + 1e-5)
    kernel = params["first"]["kernel"] * scale
    bias = (params["first"]["bias"] - stats["mean"]) * scale + params["norm"]["bias"]
    (found,) = folded.params["folded"].values()
    np.testing.assert_allclose(found["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(found["bias"].reshape(-1), bias, rtol=1e-4, atol=1e-6)
    images = images_of(model)
    close(run(folded, images), run(model, images))


@pytest.mark.parametrize("method", ["gradient", "lrp_epsilon_plus", "grad_cam", "occlusion"])
def test_methods_give_the_same_maps(method):
    model = linen()
    images = images_of(model)
    maps = [METHODS[method].explain(m, images, TARGETS) for m in (model, fold_batch_norm(model))]
    close(maps[1].heatmap, maps[0].heatmap)


def test_relevance_of_a_residual_network_is_the_same():
    model, _ = network("nnx")
    folded = fold_batch_norm(model)
    images = images_of(model)
    found = [
        jax.jit(lambda m, x: backpropagate(m, x, TARGETS, rules.epsilon_plus()))(m, images)
        for m in (model, folded)
    ]
    close(found[1].attribution, found[0].attribution, 1e-4)
    kinds = [[(s.kind, s.rule) for s in f.audit.sites] for f in found]
    assert kinds[0] == kinds[1]


@each
def test_layers_behind_the_batch_norms_stay(name):
    model, _ = network(name)
    folded = fold_batch_norm(model)
    old = {layer.name: layer for layer in model.layers()}
    new = {layer.name: layer for layer in folded.layers()}
    assert all(old[layer] == new[layer] for layer in new)
    gone = set(old) - set(new)
    assert len(gone) == FOLDED[name]
    assert all("conv" in layer or layer.endswith("shortcut") for layer in gone)
    assert [layer for layer in old if layer in new] == list(new)


def test_capture_split_and_edit_work():
    model = network("equinox").model
    folded = fold_batch_norm(model)
    images = images_of(model)
    layer = "blocks.0.norm"

    @jax.jit
    def everything(model, images):
        before, behind = split(model, layer)
        gates = {layer: jnp.array([1.0, 0.0, 1.0, 0.5])}
        return (
            capture(model, images, [layer])[layer],
            behind(before(images)),
            edit(model, gates=gates)(images),
        )

    for found, expected in zip(everything(folded, images), everything(model, images), strict=True):
        close(found, expected)


@pytest.mark.parametrize(
    ("name", "layer", "moved"),
    [
        ("equinox", "blocks.1.conv", "blocks.1.norm"),
        ("haiku", "haiku_block_1.conv2_d", "haiku_block_1.batch_norm"),
        ("nnx", "blocks.0.conv1", "blocks.0.norm1"),
        ("equinox", "blocks.0", "blocks.0"),
    ],
)
def test_default_layer_moves_to_what_the_batch_norm_returned(name, layer, moved):
    model = dataclasses.replace(network(name).model, default_layer=layer, evidence_layer=layer)
    folded = fold_batch_norm(model)
    assert (folded.default_layer, folded.evidence_layer) == (moved, moved)


def test_it_works_at_other_image_shapes_and_under_transformations():
    model = linen()
    folded = fold_batch_norm(model)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 9, 2)), jnp.float32)
    close(run(folded, images), run(model, images))
    mapped = jax.jit(jax.vmap(folded))(jnp.stack([images, -images]))
    close(mapped[1], run(model, -images))
    by_weights = jax.jit(jax.grad(lambda m: (m(images) ** 2).sum()))(folded)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(by_weights))
    inside = jax.jit(lambda m, x: fold_batch_norm(m)(x))(model, images)
    close(inside, run(model, images))


def test_folding_equal_modules_shares_a_compilation():
    traced = []

    @jax.jit
    def counted(model, x):
        traced.append(model)
        return model(x)

    logits = [
        counted(fold_batch_norm(foreign.equinox(seed=seed).model), jnp.ones((1, *foreign.SIZE)))
        for seed in (0, 1)
    ]
    assert len(traced) == 1
    assert float(jnp.abs(logits[0] - logits[1]).max()) > 1e-3


def test_networks_of_this_package_fold():
    network = ResNet(depth=18)
    variables = cheap_variables(variable_shapes(network))
    model = Model.from_function(LinenApply(network), variables, input_shape=(33, 33, 3))
    folded = jax.eval_shape(fold_batch_norm, model)
    assert len(folded.params["folded"]) == 20
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    norms = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])) // 2
    assert sum(leaf.size for leaf in jax.tree.leaves(folded.params)) == size - norms


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"before": nn.relu}, "mul"),
        ({"before": lambda x: nn.max_pool(x, (2, 2), (2, 2))}, "mul"),
        ({"before": lambda x: x + 0.1 * x}, "mul"),
        (
            {"behind": lambda x: nn.BatchNorm(use_running_average=True)(nn.relu(x))},
            "BatchNorm_0",
        ),
    ],
    ids=["behind a ReLU", "behind a pooling", "read twice", "a second one"],
)
def test_batch_norm_elsewhere_is_refused(options, what):
    with pytest.raises(ValueError, match=f"model 'linen' has a batch norm that cannot.*{what}"):
        fold_batch_norm(linen(**options))


def test_batch_norm_inside_a_loop_is_refused():
    def apply(params, x):
        def step(x, p):
            y = jnp.einsum("bhwc,ck->bhwk", x, p["w"])
            return (y - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5), None

        return jax.lax.scan(step, x, params)[0].mean((1, 2))

    params = {
        "w": jnp.ones((2, 3, 3)),
        "mean": jnp.ones((2, 1, 1, 1, 3)),
        "var": jnp.ones((2, 1, 1, 1, 3)),
    }
    model = Model.from_function(apply, params, input_shape=(4, 4, 3), name="loop")
    with pytest.raises(ValueError, match=r"'loop' has a batch norm that cannot.*scan"):
        fold_batch_norm(model)


class Normalised(nn.Module):
    norm: str

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        match self.norm:
            case "layer":
                x = nn.LayerNorm()(x)
            case "group":
                x = nn.GroupNorm(2)(x)
            case "weight":
                x = x / jnp.sqrt(2.0)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize("norm", ["none", "layer", "group", "weight"])
def test_models_without_batch_norm_are_refused(norm):
    module = Normalised(norm)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 6, 6, 2)))
    params = jax.tree.map(lambda a: jnp.ones(a.shape), shapes)
    model = Model.from_linen(module, params, input_shape=(6, 6, 2), name="plain")
    with pytest.raises(ValueError, match="model 'plain' has no batch norm to fold"):
        fold_batch_norm(model)


def test_folding_twice_is_refused():
    folded = fold_batch_norm(linen())
    with pytest.raises(ValueError, match="no batch norm to fold"):
        fold_batch_norm(folded)


def test_image_shape_is_needed():
    model = dataclasses.replace(linen(), input_shape=None)
    with pytest.raises(ValueError, match="image_shape is needed"):
        fold_batch_norm(model)
    assert len(fold_batch_norm(model, image_shape=(8, 6, 2)).params["folded"]) == 1


def test_network_that_computes_otherwise_at_another_size_is_refused():
    def apply(params, x):
        x = jnp.einsum("bhwc,ck->bhwk", x, params["w"])
        if x.shape[1] > 4:
            x = (x - 1) * jax.lax.rsqrt(params["var"])[None, None, None]
        return x.mean((1, 2))

    params = {"w": jnp.ones((2, 3)), "var": jnp.ones(3)}
    folded = fold_batch_norm(Model.from_function(apply, params, input_shape=(8, 8, 2), name="net"))
    with pytest.raises(ValueError, match="'net' computes otherwise at images of shape"):
        folded(jnp.ones((1, 4, 4, 2)))
