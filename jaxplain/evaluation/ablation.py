"""Closing channels: does a class lose more by those that matter to it than by any others?

The channels of a layer that an importance ranks highest for a class are closed, and the fall of the
class's probability is compared with the mean fall for as many channels at random, image by image.
An importance that knows nothing makes no difference.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxplain.evaluation.bootstrap import ClassMeans, class_means
from jaxplain.methods.chip import ChipImportance
from jaxplain.methods.method import check_inputs
from jaxplain.model import Model
from jaxplain.trace import split


class Ablation(NamedTuple):
    """How far a class's probability falls when channels are closed.

    Attributes:
        highest: fall for the channels that matter most.
        random: mean fall for as many channels at random.
        difference: the first less the second, image by image: above zero where the importance knows
            something.
        closed: (classes,) channels closed for each class.
    """

    highest: ClassMeans
    random: ClassMeans
    difference: ClassMeans
    closed: Int[np.ndarray, " classes"]


def ablate_channels(
    model: Model,
    images: Float[Array, "n h w c"] | Float[np.ndarray, "n h w c"],
    targets: Int[Array, " n"] | Int[np.ndarray, " n"],
    importance: ChipImportance,
    *,
    key: jax.Array,
    top: int = 10,
    draws: int = 20,
    batch_size: int = 32,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Ablation:
    """Close the channels that matter most to each image's class, and others at random.

    Args:
        model: the model.
        images: (N, H, W, C) preprocessed floats.
        targets: (N,) classes.
        importance: of one layer; a class's channels are ranked by its weights.
        key: of the random channels and of the bootstrap.
        top: channels to close; of a class with fewer positive weights, only those, and as many at
            random.
        draws: random choices for each image.
        batch_size: images run at once.
        resamples: of the bootstrap.
        confidence: of the intervals.

    Raises:
        ValueError: a number is out of range, the layer is not in this model or does not separate,
            or its channels are not those of the importance.
        TypeError: images that are not floats, or targets that are not integers.

    Example:
        >>> from jaxplain.data.digits import digits
        >>> from jaxplain.methods.chip import shipped
        >>> from jaxplain.models import load_model
        >>> model, test = load_model("digits"), digits("test")
        >>> images = model.preprocessing.batch(test.images[:20])
        >>> found = ablate_channels(
        ...     model, images, test.labels[:20], shipped(model)["conv2"], key=jax.random.key(0)
        ... )
        >>> bool(found.difference.mean.value > 0)
        True
    """
    for name, number in (("top", top), ("draws", draws), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1")
    check_inputs(model, images, targets)
    weights = np.asarray(importance.weights)
    labels = np.asarray(targets, np.int32)
    ranked = np.argsort(-weights, 1, kind="stable")
    closed = np.minimum((weights > 0).sum(1), top)
    falls = []
    for number, start in enumerate(range(0, len(labels), batch_size)):
        # The last batch is filled up with its last image, so that one program serves all.
        rows = np.minimum(np.arange(start, start + batch_size), len(labels) - 1)
        own = labels[rows]
        found = _falls(
            model,
            jnp.asarray(images[rows]),
            jnp.asarray(own),
            jnp.asarray(ranked[own]),
            jnp.asarray(closed[own]),
            jax.random.fold_in(key, number),
            layer=importance.layer,
            draws=draws,
        )
        falls.append([np.asarray(part)[: len(labels) - start] for part in found])
    highest, random = (np.concatenate(part) for part in zip(*falls, strict=True))
    means = functools.partial(
        class_means,
        labels=labels,
        num_classes=len(weights),
        key=jax.random.fold_in(key, len(labels)),
        resamples=resamples,
        confidence=confidence,
    )
    return Ablation(means(highest), means(random), means(highest - random), closed)


@functools.partial(jax.jit, static_argnames=("layer", "draws"))
def _falls(
    model: Model,
    images: jax.Array,
    targets: jax.Array,
    ranked: jax.Array,
    closed: jax.Array,
    key: jax.Array,
    *,
    layer: str,
    draws: int,
) -> tuple[jax.Array, jax.Array]:
    """Return the falls (B,) for the highest channels, and the mean falls for random ones."""
    prefix, suffix = split(model, layer, image_shape=images.shape[1:])  # type: ignore[arg-type]
    activation = prefix(images)
    channels = activation.shape[-1]
    if ranked.shape[1] != channels:
        raise ValueError(
            f"importance of layer {layer!r} is for {ranked.shape[1]} channels, the layer has "
            f"{channels}: it was fitted for another model"
        )
    positions = (1,) * (activation.ndim - 2)

    def fall(order: jax.Array) -> jax.Array:
        """The fall when the first channels of an order (B, K) are closed."""
        rank = jnp.argsort(order, 1)
        gates = (rank >= closed[:, None]).astype(activation.dtype)
        gated = activation * gates.reshape(len(gates), *positions, channels)
        return _probability(suffix(activation), targets) - _probability(suffix(gated), targets)

    def of_draw(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(images))
        return fall(jax.vmap(lambda k: jax.random.permutation(k, channels))(keys))

    random = jax.lax.map(of_draw, jax.random.split(key, draws))
    return fall(ranked), random.mean(0)


def _probability(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.softmax(logits), targets[:, None], 1)[:, 0]
