"""What ports share: gates, masks, training, errors. Their taps: test_structure.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ports import cheap_variables, tapped

from jaxplain.models import alexnet, resnet
from jaxplain.models.network import Network, resized
from jaxplain.models.weights.fill import variable_shapes

# Without and with batch norm, and the smallest images that leave each layer some positions.
KINDS: dict[str, tuple[Network, int]] = {
    "alexnet": (alexnet.AlexNet(), 63),
    "resnet18": (resnet.ResNet(depth=18), 33),
}


@functools.cache
def prepared(name):
    network, size = KINDS[name]
    images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    return network, cheap_variables(variable_shapes(network)), images


@functools.cache
def compiled(name):
    """One jitted function a network, so that its programs are shared by the tests."""
    return jax.jit(KINDS[name][0].apply)


@functools.cache
def unedited(name):
    _, variables, images = prepared(name)
    return compiled(name)(variables, images)


@functools.cache
def layer_shapes(name):
    network, variables, images = prepared(name)
    return jax.eval_shape(functools.partial(tapped, network), variables, images)[1]


def without_inputs(kernel, channels, of):
    """Return a kernel that does not read some channels; dense ones read `of` channels flattened."""
    split = kernel if kernel.ndim == 4 else kernel.reshape(-1, of, kernel.shape[-1])
    return split.at[..., channels, :].set(0).reshape(kernel.shape)


@pytest.mark.parametrize(
    ("name", "layer", "reader"),
    [
        ("alexnet", "pool1", "conv2"),
        ("alexnet", "pool5", "fc6"),
        ("alexnet", "fc6", "fc7"),
        ("resnet18", "layer2.0.relu#0", "layer2.0.conv2"),
    ],
)
def test_a_zero_gate_is_a_channel_that_nothing_reads(name, layer, reader):
    _, variables, images = prepared(name)
    shapes = layer_shapes(name)
    width = shapes[layer].shape[-1]
    channels = np.arange(0, width, 2)
    kernel = variables["params"][reader]["kernel"]
    cut = without_inputs(kernel, channels, width)
    params = variables["params"] | {reader: variables["params"][reader] | {"kernel": cut}}
    by_hand = compiled(name)(variables | {"params": params}, images)
    gates = {layer: jnp.ones(width).at[channels].set(0)}
    gated = compiled(name)(variables, images, gates=gates)
    scale = float(jnp.abs(by_hand).max())
    np.testing.assert_allclose(gated, by_hand, rtol=1e-5, atol=1e-5 * scale)
    assert float(jnp.abs(gated - unedited(name)).max()) > 1e-3 * scale


def test_edits_of_each_image_are_those_of_the_batch():
    _, variables, images = prepared("alexnet")
    gates = {"conv3": jax.random.uniform(jax.random.key(2), (2, 384))}
    masks = {"input": jax.random.uniform(jax.random.key(3), (2, 63, 63))}
    run = compiled("alexnet")
    together = run(variables, images, gates=gates, masks=masks)
    for index in range(2):
        alone = run(
            variables,
            images[index : index + 1],
            gates={"conv3": gates["conv3"][index]},
            masks={"input": masks["input"][index]},
        )
        np.testing.assert_allclose(alone[0], together[index], rtol=1e-4, atol=1e-4)


def test_a_mask_of_the_input_masks_the_images():
    _, variables, images = prepared("alexnet")
    mask = jnp.zeros((63, 63)).at[10:40, 20:50].set(1)
    run = compiled("alexnet")
    masked = run(variables, images, masks={"input": mask})
    np.testing.assert_array_equal(masked, run(variables, images * mask[None, ..., None]))


def test_masks_are_resized_when_asked():
    network, variables, images = prepared("alexnet")
    mask = jnp.zeros((26, 26)).at[:12].set(1)
    with pytest.raises(ValueError, match=r"masks\['conv1'\] has shape \(26, 26\)"):
        network.apply(variables, images, masks={"conv1": mask})
    small = resized(mask, (15, 15))
    np.testing.assert_array_equal(
        network.apply(variables, images, masks={"conv1": mask}, resize_masks=True),
        network.apply(variables, images, masks={"conv1": small}),
    )


def test_resized_keeps_the_range_and_takes_booleans():
    mask = resized(jnp.arange(35).reshape(5, 7) % 2 == 0, (11, 4))
    assert mask.shape == (11, 4)
    assert float(mask.min()) >= 0
    assert float(mask.max()) <= 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"gates": {"conv9": jnp.ones(3)}}, "unknown gates 'conv9'; nearest: conv"),
        ({"masks": {"pool3": jnp.ones((3, 3))}}, "unknown masks 'pool3'; nearest: pool"),
        ({"gates": {"input": jnp.ones(3)}}, "unknown gates 'input'"),
        (
            {"gates": {"conv1": jnp.ones(63)}},
            r"gates\['conv1'\] has shape \(63,\); expected \(64,\)",
        ),
        ({"masks": {"fc6": jnp.ones((1, 1))}}, r"masks\['fc6'\].*no positions"),
    ],
)
def test_wrong_edits_are_refused_by_name(edit, message):
    network, variables, images = prepared("alexnet")
    with pytest.raises(ValueError, match=message):
        network.apply(variables, images, **edit)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (jnp.ones((2, 63, 63, 3), jnp.uint8), TypeError, "uint8; expected floats"),
        (jnp.ones((63, 63, 3)), ValueError, r"shape \(63, 63, 3\)"),
        (jnp.ones((1, 30, 30, 3)), ValueError, "too small: layer 'pool2' gets 2x2 positions"),
        (jnp.ones((1, 5, 63, 3)), ValueError, "too small: layer 'conv1' gets 5x63 positions"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, error, message):
    network, variables, _ = prepared("alexnet")
    with pytest.raises(error, match=message):
        network.apply(variables, images)


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_the_plain_function_is_the_module(name):
    _, variables, images = prepared(name)
    function = {"alexnet": alexnet.alexnet, "resnet18": resnet.resnet18}[name]
    np.testing.assert_array_equal(jax.jit(function)(variables, images), unedited(name))
    assert function.__name__ == name


def test_the_plain_function_reads_the_number_of_classes_off_the_parameters():
    _, variables, images = prepared("resnet18")
    head = {"kernel": jnp.ones((512, 3)), "bias": jnp.zeros(3)}
    few = variables | {"params": variables["params"] | {"fc": head}}
    assert jax.eval_shape(resnet.resnet18, few, images).shape == (2, 3)
    with pytest.raises(ValueError, match=r"params of resnet18 have no \['params'\]\['fc'\]"):
        resnet.resnet18({"params": {}}, images)


def test_training_normalises_by_the_batch_and_remembers_a_tenth_of_it():
    network, variables, images = prepared("resnet18")
    train = jax.jit(functools.partial(network.apply, train=True, mutable=["batch_stats"]))
    _, updated = train(variables, images)
    before, after = variables["batch_stats"]["bn1"], updated["batch_stats"]["bn1"]
    stem = jax.lax.conv_general_dilated(
        images,
        variables["params"]["conv1"]["kernel"],
        (2, 2),
        [(3, 3), (3, 3)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(
        after["mean"], 0.9 * before["mean"] + 0.1 * stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        after["var"], 0.9 * before["var"] + 0.1 * stem.var((0, 1, 2)), rtol=1e-4, atol=1e-5
    )


def test_dropout_takes_part_in_training_only():
    network, variables, images = prepared("alexnet")
    train = jax.jit(functools.partial(network.apply, train=True))
    first = train(variables, images, rngs={"dropout": jax.random.key(0)})
    again = train(variables, images, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, train(variables, images, rngs={"dropout": jax.random.key(1)}))
    assert not np.allclose(first, unedited("alexnet"))
