"""AlexNet as torchvision has it, and its contemporary VGG-F (CNN-F).

Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks",
https://arxiv.org/abs/1404.5997 (one tower, no local response normalization). Chatfield et al. 2014,
"Return of the devil in the details: delving deep into convolutional nets",
https://arxiv.org/abs/1405.3531, table 1, with MatConvNet's `imagenet-vgg-f` for what the table
leaves out: windows of pooling that hang over the end, and normalization with kappa = 2, alpha =
1e-4, beta = 0.75 over five channels.

Layers have Caffe's names: conv1 ... conv5 are activations behind the ReLU, norm1 and norm2 (VGG-F),
pool1, pool2, pool5, avgpool, fc6, fc7, logits.

Example:
    >>> import jax.numpy as jnp
    >>> network = VGGF(num_classes=5)
    >>> images = jnp.zeros((1, 96, 96, 3))
    >>> shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> jax.eval_shape(vgg_f, shapes, images).shape
    (1, 5)
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxplain.models.network import Network, Taps, as_function, conv
from jaxplain.models.pooling import adaptive_average_pool, max_pool
from jaxplain.models.vgg import dense_head


class AlexNet(Network):
    """Five convolutions, three poolings, three dense layers."""

    head: ClassVar[str] = "logits"
    flattened = {"fc6": (6, 6)}  # noqa: RUF012 - a ClassVar of Network

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        """Run the layers."""
        x = tap(nn.relu(conv(x, "conv1", 64, 11, stride=4, padding=2)), "conv1")
        x = tap(max_pool(x, "pool1", 3, stride=2), "pool1")
        x = tap(nn.relu(conv(x, "conv2", 192, 5, padding=2)), "conv2")
        x = tap(max_pool(x, "pool2", 3, stride=2), "pool2")
        for name, width in (("conv3", 384), ("conv4", 256), ("conv5", 256)):
            x = tap(nn.relu(conv(x, name, width, 3, padding=1)), name)
        x = tap(max_pool(x, "pool5", 3, stride=2), "pool5")
        x = tap(adaptive_average_pool(x, (6, 6)), "avgpool")
        return dense_head(x, self.num_classes, tap, train, drop_first=True)

    def torch_names(self) -> dict[str, str]:
        """Return {our name: torchvision's}, which numbers all modules of a sequence."""
        places = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
        return {name: f"features.{index}" for name, index in places.items()} | {
            "fc6": "classifier.1",
            "fc7": "classifier.4",
            "logits": "classifier.6",
        }


class VGGF(Network):
    """The fast network of Chatfield et al.: AlexNet with fewer channels and with normalization.

    Other sizes than 224 are pooled adaptively to the 6x6 positions that fc6 reads, as in `AlexNet`.
    """

    head: ClassVar[str] = "logits"
    flattened = {"fc6": (6, 6)}  # noqa: RUF012 - a ClassVar of Network

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        """Run the layers."""
        pool = partial(max_pool, size=3, stride=2, padding=(0, 1))
        for number, (width, size, stride, padding) in enumerate(
            ((64, 11, 4, 0), (256, 5, 1, 2)), 1
        ):
            x = conv(x, f"conv{number}", width, size, stride=stride, padding=padding)
            x = tap(nn.relu(x), f"conv{number}")
            x = tap(local_response_normalization(x), f"norm{number}")
            x = tap(pool(x, f"pool{number}"), f"pool{number}")
        for name in ("conv3", "conv4", "conv5"):
            x = tap(nn.relu(conv(x, name, 256, 3, padding=1)), name)
        x = tap(pool(x, "pool5"), "pool5")
        x = tap(adaptive_average_pool(x, (6, 6)), "avgpool")
        return dense_head(x, self.num_classes, tap, train)


def local_response_normalization(
    x: Float[Array, "b h w c"],
    *,
    size: int = 5,
    kappa: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
) -> Float[Array, "b h w c"]:
    """Divide every activation by a power of the energy in the channels around it.

    y_c = x_c (kappa + alpha sum_{|d - c| <= size // 2} x_d^2)^-beta: Krizhevsky et al. 2012,
    section 3.3, with MatConvNet's alpha, which is not divided by `size` (Caffe's and torch's is).

    Args:
        x: feature maps.
        size: how many channels take part; odd.
        kappa: offset.
        alpha: factor of the sum.
        beta: exponent.

    Raises:
        ValueError: `size` is even or below one.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([3.0, 4.0]).reshape(1, 1, 1, 2)
        >>> y = local_response_normalization(x, kappa=0.0, alpha=1.0, beta=0.5)
        >>> [round(float(v), 3) for v in y.ravel()]
        [0.6, 0.8]
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; expected an odd number of channels")
    half = size // 2
    energy = jax.lax.reduce_window(
        x * x, 0.0, jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), ((0, 0),) * 3 + ((half, half),)
    )
    return x * (kappa + alpha * energy) ** -beta


alexnet = as_function("alexnet", AlexNet())
vgg_f = as_function("vgg_f", VGGF())
