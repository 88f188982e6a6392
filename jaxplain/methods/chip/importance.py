"""`ChipImportance`: what a fit finds, and its file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from jaxplain.methods.fitted import Fitted
from jaxplain.model import Model

KIND = Fitted(
    "chip",
    "layers",
    "importances of CHIP",
    "CHIP needs importances",
    "fit them with jaxplain.chip.fit",
)
_ARRAYS = ("weights", "gap", "kkt", "converged", "weight", "predicted")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How importances were fitted.

    Attributes:
        model: name of the model.
        fingerprint: checksum of its parameters.
        images: how many were seen.
        num_gates: gate vectors an image.
        keep: probability of an open gate.
        sigma: width of the proximity; the paper's σ² is sigma² · K.
        gates: "fresh" or "shared".
        penalty: λ as a share of the largest one at which a weight is not zero.
    """

    model: str
    fingerprint: int
    images: int
    num_gates: int
    keep: float
    sigma: float
    gates: str
    penalty: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class ChipImportance:
    """How important each channel of a layer is for each class.

    Attributes:
        weights: w, (classes, K). Zero for a class that is never the likeliest of an image.
        gap: (classes,) bound on how far the objective is from its minimum, in squared probability.
        kkt: (classes,) how far the conditions of optimality are violated, as a share of λ's
            largest useful value.
        converged: (classes,) whether the gap met the tolerance.
        weight: (classes,) sum of the weights of all perturbed data.
        predicted: (classes,) of how many images the class was the likeliest.
        layer: name of the layer.
        path: how the perturbed predictions were computed.
        settings: how it was fitted.
    """

    weights: Float[Array, "classes k"]
    gap: Float[Array, " classes"]
    kkt: Float[Array, " classes"]
    converged: Bool[Array, " classes"]
    weight: Float[Array, " classes"]
    predicted: Int[Array, " classes"]
    layer: str
    path: str
    settings: Settings

    @property
    def fitted(self) -> Bool[Array, " classes"]:
        """Which classes were fitted: those that the network predicted at least once."""
        return self.predicted > 0


jax.tree_util.register_dataclass(
    ChipImportance, data_fields=list(_ARRAYS), meta_fields=["layer", "path", "settings"]
)

Importances = Mapping[str, ChipImportance]
"""Layer name -> importance."""


def save(path: str | Path, importances: ChipImportance | Importances) -> None:
    """Write importances of one or several layers as safetensors; the file appears when complete.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> from jaxplain.models import load_model
        >>> found = shipped(load_model("digits"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/chip.safetensors", found)
        ...     again = load(f"{folder}/chip.safetensors")
        >>> bool((again["conv2"].weights == found["conv2"].weights).all())
        True
    """
    if isinstance(importances, ChipImportance):
        importances = {importances.layer: importances}
    arrays = {
        f"{number}/{name}": getattr(importance, name)
        for number, importance in enumerate(importances.values())
        for name in _ARRAYS
    }
    told = [
        {"layer": i.layer, "path": i.path, "settings": dataclasses.asdict(i.settings)}
        for i in importances.values()
    ]
    KIND.write(path, arrays, told)


def load(path: str | Path) -> dict[str, ChipImportance]:
    """Read importances: {layer: importance}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no file of importances.
    """
    return KIND.read(path, _importances)


def _importances(arrays: Mapping[str, jax.Array], told: Any) -> dict[str, ChipImportance]:
    found = {}
    for number, one in enumerate(told):
        own = {name: arrays[f"{number}/{name}"] for name in _ARRAYS}
        found[one["layer"]] = ChipImportance(
            **own, layer=one["layer"], path=one["path"], settings=Settings(**one["settings"])
        )
    return found


def shipped(model: Model) -> dict[str, ChipImportance]:
    """Return the importances that ship with a model.

    Raises:
        ValueError: none do, or the model's weights are not those that they were fitted for.

    Example:
        >>> from jaxplain.models import load_model
        >>> list(shipped(load_model("digits")))
        ['conv1', 'pool1', 'conv2', 'pool2', 'conv3']
    """
    found = KIND.shipped(model, load)
    check_model(model, found, "those that ship are for other weights")
    return found


def check_model(model: Model, importances: Importances, reason: str) -> None:
    """Raise ValueError unless importances were fitted for a model with these parameters."""
    KIND.check(model, (i.settings.fingerprint for i in importances.values()), reason)


def pick(importances: Any, layer: str, known: tuple[str, ...]) -> ChipImportance:
    """Return the importance of a layer.

    Raises:
        ValueError: the layer is unknown or was not fitted.
        TypeError: what was given are no importances.
    """
    from jaxplain.names import unknown

    if isinstance(importances, ChipImportance):
        importances = {importances.layer: importances}
    if not isinstance(importances, Mapping) or not all(
        isinstance(i, ChipImportance) for i in importances.values()
    ):
        raise TypeError(
            f"importance is a {type(importances).__name__}; expected ChipImportance, or a mapping "
            "of layers to it, as jaxplain.chip.fit returns it"
        )
    if layer not in known:
        raise ValueError(unknown("layer", layer, known))
    if layer not in importances:
        raise ValueError(
            f"layer {layer!r} has no fitted importances; fitted: {', '.join(importances)}"
        )
    return importances[layer]
