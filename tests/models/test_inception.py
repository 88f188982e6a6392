"""The shape of GoogLeNet and Inception-V3, as torchvision has them."""

import jax
import numpy as np
from ports import tapped

from jaxplain.models.inception import GoogLeNet, InceptionV3


def shapes_of(network, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    layers = jax.eval_shape(lambda v, x: tapped(network, v, x)[1], variables, images)
    return {name: layer.shape[1:] for name, layer in layers.items()}


def test_googlenet_has_the_sizes_of_the_paper():
    shapes = shapes_of(GoogLeNet(), 224)
    # Table 1 of Szegedy et al. 2014, column "output size".
    for name, shape in {
        "conv1": (112, 112, 64),
        "maxpool1": (56, 56, 64),
        "conv3": (56, 56, 192),
        "maxpool2": (28, 28, 192),
        "inception3a": (28, 28, 256),
        "inception3b": (28, 28, 480),
        "maxpool3": (14, 14, 480),
        "inception4e": (14, 14, 832),
        "maxpool4": (7, 7, 832),
        "inception5b": (7, 7, 1024),
        "avgpool": (1, 1, 1024),
        "fc": (1000,),
    }.items():
        assert shapes[name] == shape, name


def test_inception_v3_has_the_sizes_of_the_paper():
    shapes = shapes_of(InceptionV3(), 299)
    # Table 1 of Szegedy et al. 2015, column "input size".
    for name, shape in {
        "Conv2d_1a_3x3": (149, 149, 32),
        "Conv2d_2b_3x3": (147, 147, 64),
        "maxpool1": (73, 73, 64),
        "maxpool2": (35, 35, 192),
        "Mixed_5d": (35, 35, 288),
        "Mixed_6a": (17, 17, 768),
        "Mixed_6e": (17, 17, 768),
        "Mixed_7a": (8, 8, 1280),
        "Mixed_7b.branch3x3": (8, 8, 768),
        "Mixed_7c": (8, 8, 2048),
        "fc": (1000,),
    }.items():
        assert shapes[name] == shape, name
