"""The package's own way to read and change layers agrees with the networks' arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ports import cheap_variables

from jaxplain.model import LinenApply, Model
from jaxplain.models.alexnet import AlexNet
from jaxplain.models.inception import GoogLeNet
from jaxplain.models.resnet import ResNet
from jaxplain.trace.layers import edit, split

NETWORKS = {"alexnet": (AlexNet(), 63), "resnet18": (ResNet(depth=18), 33)}


@pytest.fixture(scope="module")
def models():
    return {
        name: Model.from_function(
            LinenApply(network), cheap_variables(network), input_shape=(size, size, 3), name=name
        )
        for name, (network, size) in NETWORKS.items()
    }


def images_of(model):
    return jax.random.normal(jax.random.key(0), (2, *model.input_shape))


def close(ours, theirs, tolerance):
    scale = float(jnp.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_edit_and_the_explicit_arguments_agree(models, name):
    model = models[name]
    images = images_of(model)
    draw = np.random.default_rng(0)
    shapes = {layer.name: layer.shape for layer in model.layers()}
    gates = {
        layer: jnp.asarray(draw.random(shape[-1]), jnp.float32) for layer, shape in shapes.items()
    }
    masks = {
        layer: jnp.asarray(draw.random(shape[:2]), jnp.float32)
        for layer, shape in shapes.items()
        if len(shape) == 3
    } | {"input": jnp.asarray(draw.random(model.input_shape[:2]), jnp.float32)}
    explicit = jax.jit(model.apply)(model.params, images, gates=gates, masks=masks)
    edited = edit(model, gates=gates, masks=masks)
    close(jax.jit(edited.apply)(edited.params, images), explicit, 1e-6)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("alexnet", ["conv1", "pool1", "conv5", "avgpool", "fc6", "logits"]),
        ("resnet18", ["bn1", "layer2", "avgpool"]),
    ],
)
def test_the_two_halves_of_a_network_make_the_whole(models, name, layers):
    model = models[name]
    images = images_of(model)
    whole = jax.jit(model.apply)(model.params, images)
    for layer in layers:
        prefix, suffix = split(model, layer)
        tensor = jax.jit(prefix.apply)(prefix.params, images)
        close(jax.jit(suffix.apply)(suffix.params, tensor), whole, 1e-6)


@pytest.mark.parametrize("layer", ["layer2.0.conv1", "layer2.0.relu#0", "layer2.0.downsample"])
def test_a_cut_beside_a_skip_path_is_refused(models, layer):
    with pytest.raises(ValueError, match=layer):
        split(models["resnet18"], layer)


def test_every_layer_of_googlenet_with_positions_has_a_receptive_field():
    network = GoogLeNet()
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    model = Model.from_function(LinenApply(network), shapes, input_shape=(64, 64, 3))
    fields = {layer.name: layer.receptive_field for layer in model.layers()}
    # conv1: 7 wide at stride 2; maxpool1: 7 + 2 * 2 = 11 at stride 4.
    assert (fields["conv1"].size, fields["conv1"].stride) == ((7, 7), (2, 2))
    assert (fields["maxpool1"].size, fields["maxpool1"].stride) == ((11, 11), (4, 4))
    assert fields["inception3a"] is not None
