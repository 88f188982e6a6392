"""The table of networks."""

import jax
import jax.numpy as jnp

from jaxplain.models.weights.published import GOOGLE_224, GOOGLE_299, IMAGENET
from jaxplain.models.zoo import ARCHITECTURES

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def test_every_network_is_there_once():
    assert sorted(BY_NAME) == sorted(
        ["alexnet", "vgg_f", "googlenet", "inception_v3"]
        + [f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")]
        + [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    )
    assert len(ARCHITECTURES) == len(BY_NAME)


def test_networks_are_built_with_any_number_of_classes():
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    network = BY_NAME["resnet18"].build(7)
    logits, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 7)


def test_preprocessing_is_that_of_the_published_weights():
    assert BY_NAME["vgg16"].preprocessing == IMAGENET
    assert BY_NAME["googlenet"].preprocessing == GOOGLE_224
    assert BY_NAME["inception_v3"].preprocessing == GOOGLE_299
    assert BY_NAME["inception_v3"].preprocessing.resize == 342


def test_only_vgg_f_has_nothing_to_download():
    assert [a.name for a in ARCHITECTURES if not a.weights] == ["vgg_f"]
    assert BY_NAME["resnet50"].weights == {
        "imagenet": "resnet50-0676ba61.pth",
        "imagenet-v2": "resnet50-11ad3fa6.pth",
    }
