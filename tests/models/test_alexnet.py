"""AlexNet and VGG-F: shapes as published, normalization as MatConvNet computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ports import layer_names, tapped

from jaxplain.models.alexnet import VGGF, AlexNet, local_response_normalization


def shapes_of(network, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    layers = jax.eval_shape(lambda v, x: tapped(network, v, x)[1], variables, images)
    return {name: layer.shape[1:] for name, layer in layers.items()}


def test_vgg_f_has_the_sizes_of_matconvnet():
    assert shapes_of(VGGF(), 224) == {
        "conv1": (54, 54, 64),
        "norm1": (54, 54, 64),
        "pool1": (27, 27, 64),
        "conv2": (27, 27, 256),
        "norm2": (27, 27, 256),
        "pool2": (13, 13, 256),
        "conv3": (13, 13, 256),
        "conv4": (13, 13, 256),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "avgpool": (6, 6, 256),
        "fc6": (4096,),
        "fc7": (4096,),
        "logits": (1000,),
    }


def test_alexnet_has_the_sizes_of_torchvision():
    assert shapes_of(AlexNet(), 224) == {
        "conv1": (55, 55, 64),
        "pool1": (27, 27, 64),
        "conv2": (27, 27, 192),
        "pool2": (13, 13, 192),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 256),
        "conv5": (13, 13, 256),
        "pool5": (6, 6, 256),
        "avgpool": (6, 6, 256),
        "fc6": (4096,),
        "fc7": (4096,),
        "logits": (1000,),
    }


def test_other_sizes_are_pooled_to_what_the_dense_layers_read():
    assert shapes_of(AlexNet(), 300)["pool5"] == (8, 8, 256)
    assert shapes_of(AlexNet(), 300)["avgpool"] == (6, 6, 256)
    assert "avgpool" in layer_names(VGGF(), 64)


def normalized(x, size, kappa, alpha, beta):
    """y = x (kappa + alpha sum x^2)^-beta over the neighbouring channels, one by one."""
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        near = x[..., max(0, c - size // 2) : c + size // 2 + 1]
        y[..., c] = x[..., c] * (kappa + alpha * (near**2).sum(-1)) ** -beta
    return y


@pytest.mark.parametrize(
    ("size", "kappa", "alpha", "beta"),
    [(5, 2.0, 1e-4, 0.75), (3, 1.0, 0.1, 0.5), (1, 1.0, 1.0, 1.0)],
)
def test_local_response_normalization(size, kappa, alpha, beta):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 7)) * 20
    ours = local_response_normalization(
        jnp.asarray(x, jnp.float32), size=size, kappa=kappa, alpha=alpha, beta=beta
    )
    np.testing.assert_allclose(ours, normalized(x, size, kappa, alpha, beta), rtol=1e-5, atol=1e-6)


def test_local_response_normalization_refuses_an_even_window():
    with pytest.raises(ValueError, match="size is 4; expected an odd number"):
        local_response_normalization(jnp.ones((1, 1, 1, 6)), size=4)
