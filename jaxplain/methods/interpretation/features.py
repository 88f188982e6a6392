"""`RelevantFeatures`: which channels tell the classes apart, and their file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxplain.methods.fitted import Fitted
from jaxplain.methods.interpretation.descriptors import Block, Kind
from jaxplain.model import Model

KIND = Fitted(
    "features",
    "features",
    "relevant features",
    "interpretation needs relevant features",
    "select them with jaxplain.interpretation.gather and select,",
)
SUFFIX = KIND.suffix
_ARRAYS = ("weights", "gap", "kkt", "converged", "images")


class Feature(NamedTuple):
    """A channel of a layer that tells a class apart.

    Attributes:
        layer: name of the layer.
        kind: "convolution", "pooling", "dense" or "other".
        channel: its number in the layer.
        weight: w of the class, positive where a strong response speaks for it.
    """

    layer: str
    kind: Kind
    channel: int
    weight: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """How features were selected.

    Attributes:
        model: name of the model.
        fingerprint: checksum of its parameters.
        count: how many images were seen.
        mu: μ, the largest L1 norm of a class's weights.
        labels: "true", or "predicted" for the network's own answers.
        pool: which layers could have features.
        squared: whether descriptors are made of squared norms.
        nonnegative: whether weights had to be.
        features: how many features there were to choose from.
        silent: how many of them were zero in every image.
        rank: of the statistics, as far as it can be told from rounding; what it lacks to `features`
            are combinations of features that no image tells apart.
        sums: the exact dependences that unit sums of the layers make: layers less one.
    """

    model: str
    fingerprint: int
    count: int
    mu: float
    labels: str
    pool: str
    squared: bool
    nonnegative: bool
    features: int
    silent: int
    rank: int
    sums: int


@dataclasses.dataclass(frozen=True, eq=False)
class RelevantFeatures:
    """The channels that tell the classes apart, by weights W* of eq. (1).

    Attributes:
        weights: (classes, m), zero for most; one column a number of the descriptor.
        gap: (classes,) bound on how far the objective is from its minimum, as a share of it.
        kkt: (classes,) how far the conditions of optimality are violated, as a share of the
            steepest slope at zero.
        converged: (classes,) whether the solver met its tolerance.
        images: (classes,) how many images the class had; without any it has no features.
        blocks: the layers' parts of the descriptor.
        settings: how they were selected.
    """

    weights: Float[Array, "classes m"]
    gap: Float[Array, " classes"]
    kkt: Float[Array, " classes"]
    converged: Bool[Array, " classes"]
    images: Int[Array, " classes"]
    blocks: tuple[Block, ...]
    settings: Settings

    @property
    def fitted(self) -> Bool[Array, " classes"]:
        """Which classes had images."""
        return self.images > 0

    def feature(self, index: int, weight: float = float("nan")) -> Feature:
        """Return what number `index` of a descriptor is.

        Example:
            >>> from jaxplain.models import load_model
            >>> shipped(load_model("digits")).feature(21)[:3]
            ('pool1', 'pooling', 1)
        """
        start = 0
        for layer, kind, channels in self.blocks:
            if 0 <= index - start < channels:
                return Feature(layer, kind, index - start, weight)
            start += channels
        raise ValueError(f"feature {index} does not exist; there are {start}")

    def of(self, label: int) -> list[Feature]:
        """Return the features of a class, the largest weights first.

        Raises:
            ValueError: there is no such class.

        Example:
            >>> from jaxplain.models import load_model
            >>> found = shipped(load_model("digits")).of(3)
            >>> bool(found[0].weight >= found[-1].weight)
            True
        """
        weights = np.asarray(self.weights)
        if not 0 <= label < len(weights):
            raise ValueError(f"class {label} does not exist; there are {len(weights)}")
        order = np.argsort(-weights[label], kind="stable")
        return [
            self.feature(int(i), float(weights[label, i])) for i in order if weights[label, i] != 0
        ]

    def selected(self) -> list[Feature]:
        """Return the features of all classes, each once, in the order of the layers.

        The weight is the largest in size that a class has.

        Example:
            >>> from jaxplain.models import load_model
            >>> features = shipped(load_model("an8flower-single-6c"))
            >>> len(features.selected()) < features.weights.shape[1]
            True
        """
        weights = np.asarray(self.weights)
        strongest = np.abs(weights).argmax(0)
        return [
            self.feature(int(i), float(weights[strongest[i], i]))
            for i in np.flatnonzero((weights != 0).any(0))
        ]

    def gates(self, dtype: type = np.float32) -> dict[str, Float[np.ndarray, " k"]]:
        """Return factors of the channels that close the selected features: {layer: (K,)}.

        Example:
            >>> from jaxplain.models import load_model
            >>> features = shipped(load_model("digits"))
            >>> closed = sum(int((gate == 0).sum()) for gate in features.gates().values())
            >>> closed == len(features.selected())
            True
        """
        kept = (np.asarray(self.weights) == 0).all(0).astype(dtype)
        cuts = np.cumsum([block.channels for block in self.blocks])[:-1]
        parts = zip(self.blocks, np.split(kept, cuts), strict=True)
        return {block.layer: part for block, part in parts if not part.all()}


jax.tree_util.register_dataclass(
    RelevantFeatures, data_fields=list(_ARRAYS), meta_fields=["blocks", "settings"]
)


def save(path: str | Path, features: RelevantFeatures) -> None:
    """Write features as safetensors; the file appears when complete.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jaxplain.models import load_model
        >>> found = shipped(load_model("digits"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/own.features.safetensors", found)
        ...     again = load(f"{folder}/own.features.safetensors")
        >>> again.settings == found.settings, bool((again.weights == found.weights).all())
        (True, True)
    """
    told = {
        "blocks": [list(block) for block in features.blocks],
        "settings": dataclasses.asdict(features.settings),
    }
    KIND.write(path, {name: getattr(features, name) for name in _ARRAYS}, told)


def load(path: str | Path) -> RelevantFeatures:
    """Read features.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no file of features.
    """
    return KIND.read(path, _features)


def _features(arrays: Mapping[str, jax.Array], told: Any) -> RelevantFeatures:
    own = {name: arrays[name] for name in _ARRAYS}
    blocks = tuple(Block(*block) for block in told["blocks"])
    return RelevantFeatures(**own, blocks=blocks, settings=Settings(**told["settings"]))


def shipped(model: Model) -> RelevantFeatures:
    """Return the features that ship with a model.

    Raises:
        ValueError: none do, or the model's weights are not those that they were selected for.

    Example:
        >>> from jaxplain.models import load_model
        >>> shipped(load_model("digits")).settings.mu
        10.0
    """
    found = KIND.shipped(model, load)
    check_model(model, found, "those that ship are for other weights")
    return found


def check_model(model: Model, features: RelevantFeatures, reason: str) -> None:
    """Raise ValueError unless features were selected for a model with these parameters."""
    KIND.check(model, [features.settings.fingerprint], reason)


def check_features(features: object, targets: jax.Array) -> None:
    """Raise unless these are features, and those of every target that is known.

    Raises:
        TypeError: these are no features.
        ValueError: a class had no images.
    """
    if not isinstance(features, RelevantFeatures):
        raise TypeError(
            f"importance is a {type(features).__name__}; expected RelevantFeatures, as "
            "jaxplain.interpretation.select returns them"
        )
    if not isinstance(targets, Tracer) and not isinstance(features.images, Tracer):
        missing = sorted(set(np.asarray(targets).tolist()) & _classes_without_images(features))
        if missing:
            raise ValueError(
                f"class {missing[0]} had no images when features were chosen for it, so it has "
                "none; gather images of it, too"
            )


def _classes_without_images(features: RelevantFeatures) -> set[int]:
    return set(np.flatnonzero(np.asarray(features.images) == 0).tolist())
