"""VGG-11, 13, 16 and 19, with and without batch norm.

Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition",
https://arxiv.org/abs/1409.1556, configurations A, B, D and E, with torchvision's details. Layers
have Caffe's names: conv1_1 ... conv5_4 are activations behind the ReLU, pool1 ... pool5, avgpool
(only images of other sizes than 224 are changed by it), fc6, fc7, logits.

Example:
    >>> import jax.numpy as jnp
    >>> network = VGG(depth=11, num_classes=5)
    >>> images = jnp.zeros((1, 32, 32, 3))
    >>> shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> jax.eval_shape(vgg11, shapes, images).shape
    (1, 5)
"""

from typing import ClassVar

import flax.linen as nn
import jax

from jaxplain.models.network import (
    Network,
    Taps,
    as_function,
    batch_norm,
    conv,
    dropout,
    flatten,
)
from jaxplain.models.pooling import adaptive_average_pool, max_pool

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
DENSE_WIDTH = 4096


class VGG(Network):
    """Five blocks of 3x3 convolutions, each with a pooling behind it, and three dense layers.

    Attributes:
        depth: 11, 13, 16 or 19 layers with weights.
        batch_norm: whether batch norm follows every convolution.
    """

    depth: int = 16
    batch_norm: bool = False

    head: ClassVar[str] = "logits"
    flattened = {"fc6": (7, 7)}  # noqa: RUF012 - a ClassVar of Network

    timm_names = {  # noqa: RUF012 - a ClassVar of Network
        "fc6": "pre_logits.fc1",
        "fc7": "pre_logits.fc2",
        "logits": "head.fc",
    }

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        """Run the layers."""
        if self.depth not in CONVOLUTIONS:
            raise ValueError(f"depth is {self.depth}; expected one of {list(CONVOLUTIONS)}")
        for block, (convolutions, width) in enumerate(
            zip(CONVOLUTIONS[self.depth], WIDTHS, strict=True), start=1
        ):
            for number in range(1, convolutions + 1):
                x = conv(x, f"conv{block}_{number}", width, 3, padding=1)
                if self.batch_norm:
                    x = batch_norm(x, f"bn{block}_{number}", train)
                x = tap(nn.relu(x), f"conv{block}_{number}")
            x = tap(max_pool(x, f"pool{block}", 2, stride=2), f"pool{block}")
        x = tap(adaptive_average_pool(x, (7, 7)), "avgpool")
        return dense_head(x, self.num_classes, tap, train)

    def torch_names(self) -> dict[str, str]:
        """Return {our name: torchvision's}, which numbers all modules of a sequence."""
        names, index = {}, 0
        for block, convolutions in enumerate(CONVOLUTIONS[self.depth], start=1):
            for number in range(1, convolutions + 1):
                names[f"conv{block}_{number}"] = f"features.{index}"
                if self.batch_norm:
                    names[f"bn{block}_{number}"] = f"features.{index + 1}"
                index += 3 if self.batch_norm else 2
            index += 1
        return names | {"fc6": "classifier.0", "fc7": "classifier.3", "logits": "classifier.6"}


def dense_head(
    x: jax.Array, num_classes: int, tap: Taps, train: bool, *, drop_first: bool = False
) -> jax.Array:
    """Flatten, run fc6, fc7 and the logits, with dropout behind (or before: AlexNet's order)."""
    init = nn.initializers.normal(0.01)
    x = flatten(x)
    for name in ("fc6", "fc7"):
        if drop_first:
            x = dropout(x, 0.5, train)
        x = tap(nn.relu(nn.Dense(DENSE_WIDTH, kernel_init=init, name=name)(x)), name)
        if not drop_first:
            x = dropout(x, 0.5, train)
    return tap(nn.Dense(num_classes, kernel_init=init, name="logits")(x), "logits")


vgg11 = as_function("vgg11", VGG(depth=11))
vgg13 = as_function("vgg13", VGG(depth=13))
vgg16 = as_function("vgg16", VGG(depth=16))
vgg19 = as_function("vgg19", VGG(depth=19))
vgg11_bn = as_function("vgg11_bn", VGG(depth=11, batch_norm=True))
vgg13_bn = as_function("vgg13_bn", VGG(depth=13, batch_norm=True))
vgg16_bn = as_function("vgg16_bn", VGG(depth=16, batch_norm=True))
vgg19_bn = as_function("vgg19_bn", VGG(depth=19, batch_norm=True))
