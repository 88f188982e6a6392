"""LeNets against a slow NumPy forward pass, and their taps against edits by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.model import LinenApply, Model
from jaxplain.models import outline, parameter_count
from jaxplain.models.lenet import LeNet, digit_network, flower_network, fold_batch_norm
from jaxplain.trace import capture

SMALL = LeNet(num_classes=3, widths=(4, 6), kernels=(3, 3), padded=True)
IMAGES = jax.random.normal(jax.random.key(1), (2, 9, 8, 2))


@pytest.fixture(scope="module")
def variables():
    found = SMALL.init(jax.random.key(0), IMAGES)
    # Biases start at zero, and then a wrong one would not show.
    keys = iter(jax.random.split(jax.random.key(2), 9))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), found)


def convolved(x: np.ndarray, layer: dict, pad: int) -> np.ndarray:
    """A convolution and a ReLU, by the definition, in float64."""
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    size = len(kernel)
    out = np.zeros((len(x), x.shape[1] - size + 1, x.shape[2] - size + 1, kernel.shape[-1]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = np.einsum("bhwc,hwck->bk", x[:, i : i + size, j : j + size], kernel)
    return np.maximum(out + bias, 0)


def pooled(x: np.ndarray) -> np.ndarray:
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def slowly(params: dict, images: np.ndarray) -> np.ndarray:
    x = convolved(images, params["conv1"], 1)
    x = convolved(pooled(x), params["conv2"], 1)
    kernel, bias = (np.asarray(params["logits"][name], np.float64) for name in ("kernel", "bias"))
    return x.mean((1, 2)) @ kernel + bias


def test_equals_a_slow_forward_pass(variables):
    expected = slowly(variables["params"], np.asarray(IMAGES, np.float64))
    np.testing.assert_allclose(SMALL.apply(variables, IMAGES), expected, atol=1e-5)


def test_layers_of_the_digit_network():
    shapes = {layer.name: layer.shape for layer in outline("digits").layers()}
    assert shapes == {
        "conv1": (24, 24, 20),
        "pool1": (12, 12, 20),
        "conv2": (8, 8, 50),
        "pool2": (4, 4, 50),
        "conv3": (1, 1, 500),
        "avgpool": (500,),
        "logits": (10,),
    }


def test_layers_of_the_flower_network():
    layers = {layer.name: layer for layer in outline("an8flower-double-12c").layers()}
    assert [layers[f"conv{n}"].shape[:2] for n in (1, 2, 3, 4)] == [
        (112, 112),
        (56, 56),
        (28, 28),
        (14, 14),
    ]
    field = layers["conv4"].receptive_field
    assert field.stride == (8, 8)
    # Unit (i, j) looks at what lies there: its field's middle is that of its 8 x 8 pixels.
    assert field.offset[0] + (field.size[0] - 1) / 2 == pytest.approx(3.5)
    assert layers["logits"].shape == (12,)


def test_sizes_on_disk_stay_below_three_megabytes():
    for name in ("digits", "an8flower-single-6c", "an8flower-double-12c"):
        assert parameter_count(outline(name)) * 4 < 3e6


def test_logits_are_the_mean_of_a_class_activation_map(variables):
    model = Model(variables, LinenApply(SMALL), input_shape=(9, 8, 2))
    maps = capture(model, IMAGES, ["conv2"])["conv2"]
    head = variables["params"]["logits"]
    cam = jnp.einsum("bhwk,kc->bhwc", maps, head["kernel"])
    expected = cam.mean((1, 2)) + jnp.broadcast_to(head["bias"], (2, 3))
    np.testing.assert_allclose(model(IMAGES), expected, atol=1e-5)


def test_gates_and_masks_of_ones_change_nothing_bit_for_bit(variables):
    gates = {"conv1": jnp.ones(4), "pool1": jnp.ones((2, 4)), "conv2": jnp.ones(6)}
    masks = {"input": jnp.ones((9, 8)), "conv1": jnp.ones((2, 9, 8))}
    edited = SMALL.apply(variables, IMAGES, gates=gates, masks=masks)
    np.testing.assert_array_equal(edited, SMALL.apply(variables, IMAGES))


def test_a_zero_gate_is_a_channel_that_nothing_reads(variables):
    params = jax.tree.map(jnp.array, variables["params"])
    params["conv2"]["kernel"] = params["conv2"]["kernel"].at[:, :, 2].set(0)
    gated = SMALL.apply(variables, IMAGES, gates={"conv1": jnp.ones(4).at[2].set(0)})
    np.testing.assert_allclose(gated, SMALL.apply({"params": params}, IMAGES), atol=1e-6)


def test_a_mask_of_the_input_is_a_masked_image(variables):
    mask = (jnp.arange(72).reshape(9, 8) % 3 > 0).astype(jnp.float32)
    masked = SMALL.apply(variables, IMAGES, masks={"input": mask})
    np.testing.assert_array_equal(masked, SMALL.apply(variables, IMAGES * mask[None, ..., None]))


@pytest.mark.parametrize(
    "edits", [{"gates": {"conv9": jnp.ones(4)}}, {"masks": {"conv9": jnp.ones((9, 8))}}]
)
def test_an_unknown_layer_is_refused(variables, edits):
    with pytest.raises(ValueError, match="'conv9'; nearest: conv"):
        SMALL.apply(variables, IMAGES, **edits)


def test_a_batch_equals_its_single_images(variables):
    singles = jnp.concatenate([SMALL.apply(variables, IMAGES[i : i + 1]) for i in range(2)])
    np.testing.assert_allclose(SMALL.apply(variables, IMAGES), singles, atol=1e-6)


def test_images_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="too small"):
        jax.eval_shape(digit_network(10).init, jax.random.key(0), jnp.zeros((1, 15, 28, 1)))


def test_other_sizes_work():
    variables = flower_network(6).init(jax.random.key(0), jnp.zeros((1, 32, 48, 3)))
    assert flower_network(6).apply(variables, jnp.zeros((2, 40, 64, 3))).shape == (2, 6)


@pytest.mark.parametrize("padded", [False, True])
def test_folded_batch_norm_is_the_same_function(padded):
    network = SMALL.clone(batch_norm=True, padded=padded)
    variables = network.init(jax.random.key(3), IMAGES)
    keys = iter(jax.random.split(jax.random.key(4), 20))
    moved = jax.tree.map(
        lambda leaf: leaf + jax.random.uniform(next(keys), leaf.shape, minval=0.1), variables
    )
    folded = fold_batch_norm(moved)
    assert set(folded["params"]) == {"conv1", "conv2", "logits"}
    plain = network.clone(batch_norm=False)
    np.testing.assert_allclose(
        plain.apply(folded, IMAGES), network.apply(moved, IMAGES), rtol=1e-4, atol=1e-4
    )
