"""The shape of ResNet, as torchvision has it."""

import pytest
from ports import layer_names

from jaxplain.models.resnet import ResNet


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
