"""Networks of packages that know nothing of this one: two ResNets and a MobileNet."""

import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitted import fitted
from flax import nnx
from foreign import draw, run

from jaxplain.methods import METHODS, gradient
from jaxplain.model import Model
from jaxplain.trace import capture, edit, split
from jaxplain.trace.audit import UncoveredError

SIZE = (32, 32, 3)
IMAGES = jax.random.normal(jax.random.key(3), (2, *SIZE))
TARGETS = jnp.array([1, 4])


def trained(tree):
    """Numbers as a training may leave them: running statistics differ between channels."""

    def leaf(path, old):
        name = jax.tree_util.keystr(path)
        kind = next((kind for kind in ("var", "scale") if kind in name), "other")
        return draw(0, old.shape, kind)

    return jax.tree_util.tree_map_with_path(leaf, tree)


@pytest.fixture(scope="module")
def nnx_resnet():
    """jaxnn's ResNet of two basic blocks."""
    # Its preparation of images is torchvision's; its networks need nothing of it.
    absent = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    with pytest.MonkeyPatch.context() as patch:
        for name in absent:
            patch.setitem(sys.modules, name, mock.MagicMock())
        from jaxnn.models.resnet import BasicBlock, ResNet
    network = ResNet(
        BasicBlock, (1, 1), num_classes=5, channels=(8, 8), zero_init_last=False, rngs=nnx.Rngs(0)
    )
    graph, variables, rest = nnx.split(network, (nnx.Param, nnx.BatchStat), ...)
    network = nnx.merge(graph, trained(variables), rest)
    model = Model.from_nnx(network, input_shape=SIZE, default_layer="stage_modules.1")
    network.eval()
    return model, network


@pytest.fixture(scope="module")
def linen_resnet():
    """jax-resnet's ResNet of two basic blocks."""
    import jax_resnet

    network = jax_resnet.ResNet(
        block_cls=jax_resnet.ResNetBlock, stage_sizes=[1, 1], hidden_sizes=[4, 8], n_classes=5
    )
    shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    variables = trained(shapes)
    model = Model.from_linen(network, variables, input_shape=SIZE, default_layer="layers_3")
    return model, lambda images: network.apply(variables, images)


@pytest.fixture(scope="module")
def mobilenet_module():
    """equimo's MobileNetV3 of two blocks, with hard swish and group normalisation."""
    from equimo.models.mobilenet import MobileNetv3

    blocks = [(8, 8, 3, 2, True, "relu"), (8, 16, 3, 1, True, "hard_swish")]
    make: Any = MobileNetv3  # its decorator hides the signature
    return make(3, blocks, last_channels=12, num_classes=5, key=jax.random.key(0))


@pytest.fixture(scope="module")
def mobilenet(mobilenet_module):
    """The MobileNet, which asks for a random key even where it draws nothing."""
    key = jax.random.key(1)
    call = {"key": key, "inference": True}
    model = Model.from_equinox(
        mobilenet_module, call=call, input_shape=SIZE, default_layer="layers.1"
    )

    def by_hand(images):
        each = jax.vmap(lambda image: mobilenet_module(image, key, inference=True))
        return each(jnp.moveaxis(images, -1, 1))

    return model, by_hand


@pytest.fixture(params=["nnx_resnet", "linen_resnet", "mobilenet"])
def network(request):
    return request.getfixturevalue(request.param)


def close(found, expected):
    scale = float(jnp.abs(expected).max())
    assert scale > 0
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5, rtol=0)


def test_logits_and_gradients_are_the_packages_own(network):
    model, by_hand = network
    close(run(model, IMAGES), jax.jit(by_hand)(IMAGES))
    score = jax.jit(jax.grad(lambda x: by_hand(x)[jnp.arange(2), TARGETS].sum()))
    close(gradient(model, IMAGES, TARGETS), score(IMAGES))


def test_layers_are_found_split_and_edited(network):
    model, _ = network
    layer = model.default_layer

    @jax.jit
    def both(model):
        found = capture(model, IMAGES, [layer])[layer]
        _, behind = split(model, layer)
        gates = jnp.ones(found.shape[-1]).at[0].set(0)
        return behind(found.at[..., 0].set(0)), edit(model, gates={layer: gates})(IMAGES)

    by_hand, edited = both(model)
    close(edited, by_hand)
    assert float(jnp.abs(by_hand - run(model, IMAGES)).max()) > 1e-4


FAMILIES = ("guided_backprop", "lrp_epsilon_plus", "excitation_backprop", "grad_cam", "occlusion")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("package", ["nnx_resnet", "linen_resnet"])
def test_rules_explain_the_resnets(request, package, name):
    model, _ = request.getfixturevalue(package)
    method = fitted(METHODS[name], model)
    found = method.explain(model, IMAGES, TARGETS, key=jax.random.key(0)).heatmap
    assert found.shape == (2, *SIZE[:2])
    assert jnp.isfinite(found).all()
    assert float(jnp.abs(found).max()) > 0


def test_group_normalisation_and_hard_swish_are_named_where_no_rule_covers_them(mobilenet):
    model, _ = mobilenet
    with pytest.raises(UncoveredError, match=r"(?s)rsqrt .*GroupNorm.*hard_silu at"):
        METHODS["guided_backprop"].explain(model, IMAGES, TARGETS)
    for name in ("grad_cam", "occlusion"):
        found = METHODS[name].explain(model, IMAGES, TARGETS, key=jax.random.key(0)).heatmap
        assert float(jnp.abs(found).max()) > 0


def test_keys_among_the_arguments_are_compared_by_value(mobilenet_module):
    traced = []

    @jax.jit
    def counted(model):
        traced.append(model)
        return jnp.zeros(())

    for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1), jax.random.PRNGKey(1)):
        counted(Model.from_equinox(mobilenet_module, call={"key": key, "inference": True}))
    assert len(traced) == 3
    with pytest.raises(TypeError, match=r"call\['key'\] is a list; expected an array"):
        Model.from_equinox(mobilenet_module, call={"key": [0]})
