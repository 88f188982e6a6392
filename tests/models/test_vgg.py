"""The shape of VGG, as table 1 and 2 of the paper have it, and torchvision's names."""

import pytest
from ports import layer_names

from jaxplain.models.vgg import VGG


def test_layers_of_vgg16_have_caffes_names():
    assert layer_names(VGG(depth=16), 32) == [
        *("conv1_1", "conv1_2", "pool1"),
        *("conv2_1", "conv2_2", "pool2"),
        *("conv3_1", "conv3_2", "conv3_3", "pool3"),
        *("conv4_1", "conv4_2", "conv4_3", "pool4"),
        *("conv5_1", "conv5_2", "conv5_3", "pool5"),
        *("avgpool", "fc6", "fc7", "logits"),
    ]


def test_names_in_torchvision_count_every_module():
    names = VGG(depth=16).torch_names()
    assert [names[f"conv{layer}"] for layer in ("1_1", "1_2", "2_1", "5_3")] == [
        "features.0",
        "features.2",
        "features.5",
        "features.28",
    ]
    assert VGG(depth=16, batch_norm=True).torch_names()["bn5_3"] == "features.41"


def test_unknown_depth_is_refused():
    with pytest.raises(ValueError, match=r"depth is 12; expected one of \[11, 13, 16, 19\]"):
        layer_names(VGG(depth=12), 32)
