"""Where the gates enter a dense layer linearly, and that it changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from chip_networks import SIZE, images, small
from flax import linen as nn
from foreign import network

from jaxplain.methods.chip import gather, shortcut
from jaxplain.methods.chip.shortcut import ImageType, after_product, find, prepare, product_outputs
from jaxplain.model import Model
from jaxplain.models import outline
from jaxplain.models.layers import tap
from jaxplain.trace import split
from jaxplain.trace.layers import trace_model


def program(model):
    return trace_model(model, ImageType(model.input_shape).batch(1))


@pytest.mark.parametrize(
    ("name", "layers", "dense", "positions"),
    [
        ("vgg16_bn", ["conv5_3", "pool5"], "fc6", 49),
        ("alexnet", ["conv5", "pool5"], "fc6", 36),
        ("an8flower-single-6c", ["conv4"], "logits", 1),
        ("resnet18", ["layer4"], "fc", 1),
    ],
)
def test_the_ported_networks_have_one_behind_their_last_convolution(name, layers, dense, positions):
    traced = program(outline(name))
    for layer in layers:
        found = find(traced, layer)
        assert found.reason == f"linear in the gates up to {dense}"
        assert found.shortcut.positions == positions
        channels = traced.program.avals[traced.variable(layer)].shape[-1]
        assert found.order.shape == (channels, positions)
        assert len(np.unique(found.order)) == channels * positions


CASES = {
    "linen": (tiny.linen_model, "features.6"),  # flattened channels first, as torch does
    "small": (small, "conv2"),
    "haiku": (lambda: network("haiku")[0], "haiku_block_1.conv2_d"),  # batch norm before the ReLU
    "equinox": (lambda: network("equinox")[0], "blocks.1.conv"),  # channels first, weights first
}


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_the_network_that_is_run_again(case):
    make, layer = CASES[case]
    model = make()
    image, traced = ImageType(model.input_shape), program(model)
    found = find(traced, layer)
    prepared = prepare(model, traced, found)
    before, after = split(model, layer)

    @jax.jit
    def both(pictures, gates):
        activation = before(pictures)
        outputs = product_outputs(model, found.shortcut, prepared, activation, gates, image)
        rows = outputs.reshape(-1, outputs.shape[-1])
        gated = activation[:, None] * gates[:, :, None, None]
        return after_product(model, found.shortcut, rows, image), after(
            gated.reshape(-1, *activation.shape[1:])
        )

    pictures = jax.random.normal(jax.random.key(0), (2, *model.input_shape))
    channels = traced.program.avals[traced.variable(layer)].shape[-1]
    gates = jax.random.bernoulli(jax.random.key(1), 0.5, (2, 4, channels)).at[0, 0].set(False)
    short, long = both(pictures, gates)
    np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(long[1:] - long[:1]).max()) > 1e-3


class Mixing(nn.Module):
    """What may stand between a layer and a dense one, and ends the search."""

    way: str

    @nn.compact
    def __call__(self, x):
        x = tap(nn.relu(nn.Conv(4, (3, 3))(x)), "conv")
        dense = nn.Dense(3)
        match self.way:
            case "normalised over channels":
                x = x / (1 + x.sum(-1, keepdims=True))
            case "round the dense layer":
                return dense(x.mean((1, 2))) + x.max((1, 2))[:, :3]
            case "dense at every position":
                return dense(x).mean((1, 2))
            case "sorted":
                x = jnp.sort(x, axis=-1)
            case "unequal":
                flat = x.reshape(x.shape[0], -1)
                return dense(flat[:, :-1])
        return dense(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("normalised over channels", "reduce_sum mixes channels"),
        ("round the dense layer", "a path goes round the dense layer"),
        ("dense at every position", "reads more than a row of features an image"),
        ("sorted", "sort mixes channels"),
        ("unequal", "different numbers of elements"),
        ("plain", "linear in the gates up to"),
    ],
)
def test_what_mixes_channels_ends_the_search(way, reason):
    module = Mixing(way)
    variables = module.init(jax.random.key(0), jnp.zeros((1, *SIZE)))
    found = find(program(Model.from_linen(module, variables, input_shape=SIZE)), "conv")
    assert reason in found.reason
    assert (found.shortcut is None) == (way != "plain")


def test_a_shortcut_that_changes_the_predictions_is_given_up_and_told(monkeypatch):
    options = {"key": jax.random.key(0), "num_gates": 4}
    expected = gather(small(), [images(4)], "conv2", linear=False, **options)["conv2"]
    assert expected.path == "run again for every gate vector: not asked to use linearity"
    right = shortcut.prepare

    def wrong(*args):
        prepared = right(*args)
        return prepared._replace(weights=prepared.weights * 1.01)

    monkeypatch.setattr(shortcut, "prepare", wrong)
    found = gather(small(), [images(4)], "conv2", **options)["conv2"]
    assert found.path.startswith("run again for every gate vector: the shortcut differs by 0.0")
    np.testing.assert_array_equal(found.packed, expected.packed)


def test_a_network_that_depends_on_the_number_of_images_is_run_again():
    model = small()

    def apply(params, x):
        logits = model.apply(params, x)
        return logits if x.shape[0] == 1 else jnp.tanh(logits)

    odd = dataclasses.replace(model, apply=apply, capture=None)
    found = gather(odd, [images(3)], "conv2", key=jax.random.key(0), num_gates=2)["conv2"]
    assert "another program for other numbers of images" in found.path
