r"""The masking network: a decoder on the features of a frozen classifier, told which class to find.

Dabkowski and Gal 2017, arXiv:1705.07857. The classifier is the encoder of a U-Net. A class s has an
embedding :math:`C_s`; the feature filter lets the deepest features X pass only where they look like
the class,

.. math:: Y_{ijk} = X_{ijk} \, \sigma(X_{ij}^T C_s). \quad (4)

They are then enlarged scale by scale, with the classifier's features of each scale beside them. Two
last channels make the mask, which is enlarged to the picture:

.. math:: M_{ij} = |E_{ij0}| / (|E_{ij0}| + |E_{ij1}|). \quad (5)

The filter also says whether the picture shows the class at all; it learns to, as in the authors'
program:

.. math:: p_s = \sigma\bigl(\operatorname{mean}_{ij} X_{ij}^T C_s\bigr). \quad (6)

Two things differ from the authors': X is first projected to a few channels, so that a thousand
embeddings are small; and there is no batch norm, but each layer of each picture is scaled to mean
square one, so that a batch equals its single pictures.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxplain.methods.method import resize_maps
from jaxplain.model import Model

FINEST = 2
"""The picture's sides over those of the finest scale that is decoded; above, it is enlarged."""

_ALIKE = 0.7
_SMALLEST = 1e-6


class Masked(NamedTuple):
    """What a masking network says.

    Attributes:
        masks: (B, h, w) in 0..1.
        presence: (B,) log odds that the picture shows the class.
    """

    masks: Float[Array, "b h w"]
    presence: Float[Array, " b"]


class MaskingNetwork(nn.Module):
    """From features of one or several scales and a class to a mask.

    Attributes:
        classes: of the classifier.
        widths: channels of each scale, the finest first; as many as there are features.
    """

    classes: int
    widths: tuple[int, ...]

    @nn.compact
    def __call__(
        self, features: Sequence[Float[Array, "b _ _ _"]], targets: Int[Array, " b"]
    ) -> Masked:
        """Return masks, of the size of the first feature.

        Args:
            features: (B, h, w, c) each, the finest first.
            targets: (B,) classes.
        """
        *finer, deepest = (_comparable(feature) for feature in features)
        x = nn.Dense(self.widths[-1], name="deepest")(deepest)
        embedding = nn.Embed(self.classes, self.widths[-1], name="embedding")(targets)  # C_s
        likeness = jnp.einsum("bhwk,bk->bhw", x, embedding)
        x = x * nn.sigmoid(likeness)[..., None]  # (4)
        for scale in reversed(range(len(finer))):
            skip = nn.Dense(self.widths[scale], name=f"skip{scale}")(finer[scale])
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "bilinear")
            x = jnp.concatenate([x, skip], -1)
            x = nn.relu(nn.Conv(self.widths[scale], (3, 3), name=f"merge{scale}")(x))
        ends = jnp.abs(nn.Conv(2, (3, 3), name="ends")(x)) + _SMALLEST
        return Masked(ends[..., 0] / ends.sum(-1), likeness.mean((1, 2)))  # (5), (6)


def _comparable(feature: jax.Array) -> jax.Array:
    """Features of any network on one scale: each picture's layer has mean square one."""
    mean = (feature**2).mean((1, 2, 3), keepdims=True)
    return feature * jax.lax.rsqrt(mean + 1e-8)


def scales(model: Model) -> tuple[str, ...]:
    """Return the layers that a masking network reads, the finest first.

    Of each size the last layer, if it is the input's over `FINEST` or below: it holds all that was
    found at its scale. Sizes that differ by a border alone, as where convolutions do not pad, count
    as one.

    Raises:
        ValueError: the model has no such layer, or nobody knows the size of its input.

    Example:
        >>> from jaxplain.models import load_model
        >>> scales(load_model("an8flower-single-6c"))
        ('conv2', 'conv3', 'conv4')
    """
    if model.input_shape is None:
        raise ValueError(f"model {model.name!r} has no input_shape, which a masking network needs")
    largest = -(-model.input_shape[0] // FINEST)
    last = {
        layer.shape[:2]: layer.name
        for layer in model.layers()
        if len(layer.shape) == 3 and 1 < layer.shape[0] <= largest
    }
    chosen: dict[float, str] = {}
    group = float("inf")
    for (height, width), name in sorted(last.items(), reverse=True):
        side = (height * width) ** 0.5
        group = group if side > _ALIKE * group else side
        chosen[group] = name
    if not chosen:
        raise ValueError(
            f"model {model.name!r} has no layer with positions at {FINEST} times less than its "
            "input or below, which a masking network reads"
        )
    return tuple(chosen.values())


def apply_masker(
    network: MaskingNetwork,
    params: Mapping[str, Any],
    features: Sequence[Float[Array, "b _ _ _"]],
    targets: Int[Array, " b"],
    size: tuple[int, int],
) -> Masked:
    """Return masks at the size of the pictures; NaN for classes that do not exist."""
    found = network.apply({"params": params}, tuple(features), jnp.clip(targets, 0))
    assert isinstance(found, Masked)
    known = (targets >= 0) & (targets < network.classes)
    masks = jnp.where(known[:, None, None], resize_maps(found.masks, size), jnp.nan)
    return Masked(masks, found.presence)
