"""Closing channels: does a class lose more by those that matter to it than by any others?

`ablate_channels`: the channels of a layer that an importance ranks highest for a class are closed,
and the fall of the class's probability is compared with the mean fall for as many channels at
random, image by image. An importance that knows nothing makes no difference.

`ablate_features`: all features that were selected for any class, of all layers, are closed at once,
and the mean class accuracy is compared with that of the whole network and of networks without as
many channels at random (Oramas et al. 2019, "Visual Explanation by
Interpretation", §4.1, Fig. 4).
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxplain.evaluation.bootstrap import ClassMeans, class_means
from jaxplain.methods.chip import ChipImportance
from jaxplain.methods.interpretation import RelevantFeatures
from jaxplain.methods.method import check_inputs
from jaxplain.model import Model
from jaxplain.scores import score_fn
from jaxplain.trace import edit, split


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
    chance = score_fn("probability", multilabel=model.multilabel)

    def fall(order: jax.Array) -> jax.Array:
        """The fall when the first channels of an order (B, K) are closed."""
        rank = jnp.argsort(order, 1)
        gates = (rank >= closed[:, None]).astype(activation.dtype)
        gated = activation * gates.reshape(len(gates), *positions, channels)
        return chance(suffix(activation), targets) - chance(suffix(gated), targets)

    def of_draw(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(images))
        return fall(jax.vmap(lambda k: jax.random.permutation(k, channels))(keys))

    random = jax.lax.map(of_draw, jax.random.split(key, draws))
    return fall(ranked), random.mean(0)


class Closed(NamedTuple):
    """What closing one set of features does to a network.

    Attributes:
        accuracy: of each class and their mean (mCA), without the features.
        random: (draws,) mean class accuracies without as many channels at random.
        fall: how much more of its accuracy a class loses by the features than by random channels,
            image by image against the mean over the draws: above zero where they matter.
        channels: how many were closed.
    """

    accuracy: ClassMeans
    random: Float[np.ndarray, " draws"]
    fall: ClassMeans
    channels: int


class FeatureAblation(NamedTuple):
    """Mean class accuracies of a network with and without features: Fig. 4 of the paper.

    Attributes:
        original: of the whole network.
        sets: by the name of each set of features.
    """

    original: ClassMeans
    sets: dict[str, Closed]

    def rows(self) -> list[dict[str, object]]:
        """Return the bars of Fig. 4, one dictionary each, with intervals.

        The interval of random channels says how far the draws spread: from their 2.5th to their
        97.5th percentile.
        """
        found: list[dict[str, object]] = [
            {"set": "original", "closed": 0, **_interval(self.original)}
        ]
        for name, closed in self.sets.items():
            spread = np.quantile(closed.random, (0.025, 0.975))
            found.append({"set": name, "closed": closed.channels, **_interval(closed.accuracy)})
            found.append(
                {
                    "set": f"random for {name}",
                    "closed": closed.channels,
                    "mca": float(closed.random.mean()),
                    "low": float(spread[0]),
                    "high": float(spread[1]),
                }
            )
        return found


def ablate_features(
    model: Model,
    images: Float[Array, "n h w c"] | Float[np.ndarray, "n h w c"],
    labels: Int[Array, " n"] | Int[np.ndarray, " n"],
    features: Mapping[str, RelevantFeatures],
    *,
    key: jax.Array,
    draws: int = 20,
    matched: bool = False,
    batch_size: int = 32,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> FeatureAblation:
    """Close selected features, and as many channels at random.

    Oramas et al. 2019, §4.1. All features that were selected for any class are closed. As in the
    paper, random ones are drawn from all layers that the features could be of: the convolutions for
    OnlyConv.

    Args:
        model: the model.
        images: (N, H, W, C) preprocessed floats.
        labels: (N,) their classes.
        features: sets by name, such as {"All": ..., "OnlyConv": ...}.
        key: of the random channels and of the bootstrap.
        draws: random choices.
        matched: draw as many of each layer as were selected there. That asks for more than the
            paper does: random channels of a narrow layer are most of what it has.
        batch_size: images run at once.
        resamples: of the bootstrap.
        confidence: of its intervals.

    Raises:
        ValueError: a number is out of range, nothing was selected, a layer is not in this model, or
            its channels are not those of the features.
        TypeError: images that are not floats, or labels that are not integers.

    Example:
        >>> from jaxplain.data.digits import digits
        >>> from jaxplain.methods.interpretation import shipped
        >>> from jaxplain.models import load_model
        >>> model, test = load_model("digits"), digits("test")
        >>> images = model.preprocessing.batch(test.images[:20])
        >>> found = ablate_features(
        ...     model, images, test.labels[:20], {"All": shipped(model)}, key=jax.random.key(0),
        ...     draws=2,
        ... )
        >>> [row["set"] for row in found.rows()]
        ['original', 'All', 'random for All']
    """
    for name, number in (("draws", draws), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1")
    check_inputs(model, images, labels)
    truth = np.asarray(labels, np.int32)
    means = functools.partial(
        class_means,
        labels=truth,
        num_classes=_logits_of(model, images),
        key=jax.random.fold_in(key, 0),
        resamples=resamples,
        confidence=confidence,
    )
    sets = {}
    original = _right(model, images, truth, [{}], batch_size)[0]
    for number, (name, own) in enumerate(features.items(), start=1):
        chosen = own.gates()
        if not chosen:
            raise ValueError(f"features[{name!r}] selects nothing")
        random = np.random.default_rng(
            np.asarray(jax.random.key_data(jax.random.fold_in(key, number))).ravel().tolist()
        )
        if not matched:
            chosen = _of_pool(own)
        drawn = [_shuffled(chosen, random, matched=matched) for _ in range(draws)]
        kept, *others = _right(model, images, truth, [chosen, *drawn], batch_size)
        several = np.stack(others)
        per_class = [several[:, truth == label].mean(1) for label in np.unique(truth)]
        sets[name] = Closed(
            means(kept),
            np.mean(per_class, 0),
            means(several.mean(0) - kept),
            sum(int((gate == 0).sum()) for gate in chosen.values()),
        )
    return FeatureAblation(means(original), sets)


def _of_pool(features: RelevantFeatures) -> dict[str, np.ndarray]:
    """Return gates of every layer that features could be of, whether one was selected or not."""
    pool, selected = features.settings.pool, features.gates()
    return {
        block.layer: selected.get(block.layer, np.ones(block.channels, np.float32))
        for block in features.blocks
        if pool in ("all", block.kind)
    }


def _shuffled(
    gates: dict[str, np.ndarray], random: np.random.Generator, *, matched: bool
) -> dict[str, np.ndarray]:
    """Return gates that close as many channels at random, of each layer or of all."""
    if matched:
        return {layer: random.permutation(gate) for layer, gate in gates.items()}
    mixed = random.permutation(np.concatenate(list(gates.values())))
    cuts = np.cumsum([len(gate) for gate in gates.values()])[:-1]
    return dict(zip(gates, np.split(mixed, cuts), strict=True))


def _right(
    model: Model,
    images: jax.Array | np.ndarray,
    labels: np.ndarray,
    gates: list[dict[str, np.ndarray]],
    batch_size: int,
) -> np.ndarray:
    """Return (gates, N): whether each image's answer is right under each set of gates."""
    stacked = {layer: jnp.asarray(np.stack([g[layer] for g in gates])) for layer in gates[0]}
    found = []
    for start in range(0, len(labels), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(labels) - 1)
        answers = _answers(model, jnp.asarray(images[rows]), stacked)
        right = np.asarray(answers).reshape(len(gates), -1) == labels[rows]
        found.append(right[:, : len(labels) - start])
    return np.concatenate(found, 1).astype(np.float32)


@jax.jit
def _answers(model: Model, images: jax.Array, gates: dict[str, jax.Array]) -> jax.Array:
    """Return the likeliest class of each image under each set of gates, (gates, B)."""

    def under(own: dict[str, jax.Array]) -> jax.Array:
        return edit(model, gates=own)(images).argmax(-1)

    return jax.lax.map(under, gates) if gates else model(images).argmax(-1)


def _logits_of(model: Model, images: jax.Array | np.ndarray) -> int:
    image = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    return jax.eval_shape(lambda m, x: m(x), model, image).shape[-1]


def _interval(means: ClassMeans) -> dict[str, float]:
    mean = means.mean
    return {"mca": float(mean.value), "low": float(mean.low), "high": float(mean.high)}
