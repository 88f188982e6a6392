"""The shape of ResNet, as torchvision has it."""

import numpy as np
import pytest
from ports import layer_names

from jaxplain.models.resnet import ResNet
from jaxplain.models.weights.fill import variable_shapes


# torchvision's documentation, "num_params".
@pytest.mark.parametrize(
    ("depth", "count"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_number_of_parameters(depth, count):
    shapes = variable_shapes(ResNet(depth=depth))
    trained = (int(np.prod(shape)) for path, shape in shapes.items() if path[0] == "params")
    assert sum(trained) == count


def test_layers_have_torchvisions_names():
    names = layer_names(ResNet(depth=18), 32)
    assert names[:4] == ["conv1", "bn1", "relu", "maxpool"]
    assert names[-5:] == ["layer4.1.relu#1", "layer4.1", "layer4", "avgpool", "fc"]
    block = [name for name in names if name.startswith("layer2.0")]
    assert block == [
        f"layer2.0{part}"
        for part in (
            *(".conv1", ".bn1", ".relu#0", ".conv2", ".bn2"),
            *(".downsample.0", ".downsample.1", ".downsample", ".relu#1", ""),
        )
    ]


def test_the_first_stage_of_a_bottleneck_widens_without_a_stride():
    names = layer_names(ResNet(depth=50), 32)
    assert "layer1.0.downsample" in names
    assert "layer1.1.downsample" not in names
    assert "layer1.0.relu#2" in names


def test_unknown_depth_is_refused():
    with pytest.raises(ValueError, match="depth is 20; expected one of"):
        layer_names(ResNet(depth=20), 32)
