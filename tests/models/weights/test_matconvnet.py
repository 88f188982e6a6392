"""MatConvNet's files, in their newer and their older form."""

import numpy as np
import pytest
from matconvnet_writer import cells, write_matconvnet
from scipy import io
from tiny_network import Plain

from jaxplain.models.alexnet import VGGF
from jaxplain.models.weights.fill import fill, variable_shapes
from jaxplain.models.weights.matconvnet import matconvnet_plan, read_matconvnet


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("classes", [4, 1])
def test_filters_and_biases_are_read(tmp_path, old, classes):
    weights, biases = write_matconvnet(tmp_path / "a.mat", old=old, classes=classes)
    tensors, _ = read_matconvnet(tmp_path / "a.mat")
    assert set(tensors) == {"conv1.filters", "conv1.biases", "logits.filters", "logits.biases"}
    network = Plain(num_classes=classes)
    shapes = variable_shapes(network)
    variables = fill(matconvnet_plan(network, shapes), shapes, tensors, source="the file")["params"]
    np.testing.assert_array_equal(variables["conv1"]["kernel"], weights["conv1"])
    np.testing.assert_array_equal(variables["conv1"]["bias"], biases["conv1"])
    np.testing.assert_array_equal(variables["logits"]["kernel"], weights["fc8"][0, 0])
    np.testing.assert_array_equal(variables["logits"]["bias"], biases["fc8"])


@pytest.mark.parametrize("average", [None, np.array([123.0, 117, 104]).reshape(1, 1, 3)])
def test_preprocessing_subtracts_the_mean_colour(tmp_path, average):
    write_matconvnet(tmp_path / "a.mat", average=average)
    _, preprocessing = read_matconvnet(tmp_path / "a.mat")
    assert preprocessing.size == (224, 224)
    assert preprocessing.resize == 256
    assert preprocessing.interpolation == "bicubic"
    picture = np.full((300, 300, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(preprocessing(picture)[10, 10], [77, -17, -54], atol=1e-3)


def test_the_dense_layers_of_vgg_f_are_convolutions_over_the_last_map():
    network = VGGF()
    shapes = variable_shapes(network)
    plan = matconvnet_plan(network, shapes)
    found = {slot.name: slot.shape for slot in plan.values()}
    assert found["fc6.filters"] == (6, 6, 256, 4096)
    assert found["fc7.filters"] == (1, 1, 4096, 4096)
    assert found["logits.filters"] == (1, 1, 4096, 1000)
    assert found["conv2.filters"] == (5, 5, 64, 256)


def test_other_workspaces_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    for workspace, message in (
        ({"x": np.ones(3)}, "it has no layers"),
        ({"layers": cells([{"name": "relu1", "type": "relu"}])}, "no convolutions"),
        ({"layers": np.ones((2, 2))}, "it has no type"),
    ):
        io.savemat(path, workspace)
        with pytest.raises(ValueError, match=f"not a MatConvNet network: .*({message})"):
            read_matconvnet(path)


def test_a_file_of_matlab_7_3_is_refused_by_name(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512))
    with pytest.raises(ValueError, match=r"version 7\.3 \(HDF5\); save it with -v7"):
        read_matconvnet(path)
