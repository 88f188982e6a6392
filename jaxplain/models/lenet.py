r"""LeNets: the small networks that ship with the package.

The network for digits is that of Oramas et al. ("Visual Explanation by Interpretation", ICLR 2019,
§4.1), MatConvNet's LeNet: convolutions of 20, 50 and 500 channels, then the classes. The one for
flowers is their "LeNet plus one block" for pictures of 112 × 112 pixels, with widths of our own.
Three choices are ours, all so that explanations mean something:

- a ReLU follows every convolution (MatConvNet's first two have none), so that activations are
  evidence and not signed numbers, and rule-based methods have a rule to apply;
- the flower network pads, so that 112 halves to 56, 28 and 14 and unit :math:`(i, j)` of a layer
  looks at the part of the picture that lies there, which is how a layer's map is drawn over it;
- the features are averaged over positions before the classes. So class activation maps apply: they
  read `conv4` of the flower network. Pictures of other sizes work, too.

Layers have Caffe's names: `conv1` is the activation behind the ReLU, then `pool1`, ..., the last
convolution, `avgpool`, `logits`.

Example:
    >>> network = LeNet(widths=(4, 8), kernels=(3, 3), num_classes=2)
    >>> images = jnp.ones((1, 12, 12, 1))
    >>> variables = network.init(jax.random.key(0), images)
    >>> network.apply(variables, images, gates={"conv2": jnp.zeros(8)}).tolist()
    [[0.0, 0.0]]
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxplain.models.architecture import Architecture
from jaxplain.models.network import Network, Taps, batch_norm, conv
from jaxplain.models.pooling import max_pool
from jaxplain.preprocessing import Preprocessing

_EPSILON = 1e-5


class LeNet(Network):
    """Convolution, ReLU and 2 × 2 max pooling, repeated; a last convolution; averages; classes.

    Attributes:
        widths: channels of each convolution.
        kernels: side of each convolution's window.
        padded: whether a convolution returns as many positions as it reads; odd kernels only.
        batch_norm: whether batch norm follows every convolution. Training is then much quicker, and
            `fold_batch_norm` makes the variables of the same network without.
    """

    widths: tuple[int, ...] = (20, 50, 500)
    kernels: tuple[int, ...] = (5, 5, 4)
    padded: bool = False
    batch_norm: bool = False

    head: ClassVar[str] = "logits"

    def forward(self, x: jax.Array, tap: Taps, train: bool) -> jax.Array:
        """Run the layers."""
        for number, (width, size) in enumerate(
            zip(self.widths, self.kernels, strict=True), start=1
        ):
            padding = size // 2 if self.padded else 0
            x = conv(x, f"conv{number}", width, size, padding=padding, bias=not self.batch_norm)
            if self.batch_norm:
                x = batch_norm(x, f"bn{number}", train, epsilon=_EPSILON)
            x = tap(nn.relu(x), f"conv{number}")
            if number < len(self.widths):
                x = tap(max_pool(x, f"pool{number}", 2, stride=2), f"pool{number}")
        x = tap(jnp.mean(x, (1, 2)), "avgpool")
        return tap(nn.Dense(self.num_classes, name="logits")(x), "logits")


def fold_batch_norm(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a `LeNet` with batch norm as those of the same one without.

    At inference a channel becomes γ (w ∗ x - μ) / √(σ² + ε) + β, which is a convolution with
    w γ / √(σ² + ε) and a bias.

    Example:
        >>> network = LeNet(widths=(4, 8), kernels=(3, 3), num_classes=2, batch_norm=True)
        >>> images = jax.random.normal(jax.random.key(0), (1, 12, 12, 1))
        >>> variables = network.init(jax.random.key(1), images)
        >>> folded = fold_batch_norm(variables)
        >>> same = network.clone(batch_norm=False).apply(folded, images)
        >>> bool(jnp.allclose(same, network.apply(variables, images), atol=1e-5))
        True
    """
    params, statistics = variables["params"], variables["batch_stats"]
    folded = {}
    for name, layer in params.items():
        if name.startswith("bn"):
            continue
        norm = name.replace("conv", "bn")
        if name.startswith("conv"):
            scale = params[norm]["scale"] / jnp.sqrt(statistics[norm]["var"] + _EPSILON)
            layer = {
                "kernel": layer["kernel"] * scale[None, None, None],
                "bias": params[norm]["bias"] - statistics[norm]["mean"] * scale,
            }
        folded[name] = dict(layer)
    return {"params": folded}


def digit_network(num_classes: int) -> LeNet:
    """The network of 28 × 28 grey pictures: 431 000 parameters."""
    return LeNet(num_classes=num_classes)


def flower_network(num_classes: int) -> LeNet:
    """The network of 112 × 112 pictures: 35 000 parameters.

    Each unit of `conv4`, 14 × 14 of them, sees 60 of the 112 pixels.
    """
    return LeNet(num_classes, widths=(8, 16, 32, 64), kernels=(5, 5, 5, 3), padded=True)


def _flowers(name: str, evidence: str, classes: int) -> Architecture:
    return Architecture(
        name=name,
        description=f"rendered flowers: {evidence} is the class",
        build=flower_network,
        num_classes=classes,
        preprocessing=Preprocessing((112, 112), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        default_layer="conv4",
        evidence_layer="pool2",
        weights={"shipped": f"{name}.safetensors"},
    )


ARCHITECTURES = (
    _flowers("an8flower-single-6c", "the colour of the petals", 6),
    _flowers(
        "an8flower-double-12c", "the colour of petals or stem, and which of them wears it,", 12
    ),
    Architecture(
        name="digits",
        description="handwritten digits, bright on black",
        build=digit_network,
        num_classes=10,
        preprocessing=Preprocessing((28, 28), (0.2,), (0.3,)),
        default_layer="conv2",
        evidence_layer="pool1",
        weights={"shipped": "digits.safetensors"},
    ),
)
