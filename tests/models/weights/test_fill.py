"""A network is filled completely, in the right layout, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_network import Tiny, state_dict

from jaxplain.models.weights.fill import fill, own_plan, torch_plan, variable_shapes
from jaxplain.models.weights.tensors import MemoryTensor, aligned_empty


def filled(tensors, network=None):
    network = network or Tiny()
    shapes = variable_shapes(network)
    tensors = {name: MemoryTensor(values) for name, values in tensors.items()}
    plan = torch_plan(network, shapes, tensors)
    return fill(plan, shapes, tensors, source="the file")


def own(tensors):
    return {n: v for n, v in tensors.items() if not n.startswith("aux") and "tracked" not in n}


def test_a_torch_state_dict_computes_what_torch_computes():
    tensors = own(state_dict())
    images = np.random.default_rng(0).standard_normal((2, 4, 5, 3)).astype(np.float32)
    # The same network, channel first and position by position.
    x, kernel = images.transpose(0, 3, 1, 2), tensors["features.0.weight"]
    maps = np.empty((2, 5, 2, 3))
    for i in range(2):
        for j in range(3):
            maps[:, :, i, j] = np.einsum("bchw,ochw->bo", x[:, :, i : i + 3, j : j + 3], kernel)
    maps += tensors["features.0.bias"][:, None, None]
    mean, var, scale, bias = (
        tensors[f"features.1.{leaf}"][:, None, None]
        for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    maps = np.maximum((maps - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)
    hidden = maps.reshape(2, -1) @ tensors["fc6.weight"].T + tensors["fc6.bias"]
    logits = np.maximum(hidden, 0) @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    ours = Tiny().apply(filled(tensors), images)
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5)


def test_dense_layers_that_are_convolutions_there_are_the_same():
    tensors = own(state_dict())
    wide = tensors | {
        "fc6.weight": tensors["fc6.weight"].reshape(6, 5, 2, 3),
        "classifier.weight": tensors["classifier.weight"][..., None, None],
    }
    assert jax.tree.all(jax.tree.map(jnp.array_equal, filled(wide), filled(tensors)))


def test_everything_that_does_not_fit_is_listed_at_once():
    tensors = own(state_dict())
    del tensors["fc6.bias"], tensors["features.1.running_mean"]
    tensors["features.7.weight"] = np.zeros(3, np.float32)
    tensors["classifier.weight"] = np.zeros((4, 7), np.float32)
    tensors["fc6.weight"] = np.zeros((6, 30), np.int32)
    with pytest.raises(ValueError, match="the file does not fit the network") as raised:
        filled(tensors)
    message = str(raised.value)
    for part in (
        "2 missing: ",
        "fc6.bias",
        "features.1.running_mean",
        "1 not of this network: features.7.weight",
        "1 of another shape: classifier.weight (4, 7), expected (4, 6)",
        "1 not floating point: fc6.weight int32",
    ):
        assert part in message


def test_all_tensors_with_nan_are_listed():
    tensors = own(state_dict())
    tensors["fc6.bias"][2] = np.nan
    tensors["classifier.weight"][0, 0] = np.inf
    with pytest.raises(ValueError, match=r"holds NaN or infinity in: (.*)") as raised:
        filled(tensors)
    assert "fc6.bias" in str(raised.value)
    assert "classifier.weight" in str(raised.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_precisions_become_float32(dtype):
    tensors = {name: values.astype(dtype) for name, values in own(state_dict()).items()}
    variables = filled(tensors)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    expected = tensors["fc6.bias"].astype(np.float32)
    np.testing.assert_array_equal(variables["params"]["fc6"]["bias"], expected)


def test_our_own_names_are_the_places_of_the_variables():
    network = Tiny()
    shapes = variable_shapes(network)
    tensors = {
        "/".join(path): MemoryTensor(np.full(shape, i, np.float32))
        for i, (path, shape) in enumerate(shapes.items())
    }
    variables = fill(own_plan(shapes), shapes, tensors, source="the file")
    for i, path in enumerate(shapes):
        leaf = variables
        for key in path:
            leaf = leaf[key]
        assert float(leaf.min()) == float(leaf.max()) == i


def test_aligned_memory_is_taken_over_without_a_copy():
    values = aligned_empty((3, 5), np.dtype(np.float32))
    assert values.ctypes.data % 64 == 0
    assert values.shape == (3, 5)
    assert jax.device_put(values).unsafe_buffer_pointer() == values.ctypes.data
