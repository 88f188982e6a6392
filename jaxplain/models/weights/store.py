"""The package's own files of weights: safetensors that say what they are and how good they are.

Beside the tensors ("params/conv1/kernel", laid out as in the network), the header holds as JSON
the architecture, the preprocessing, the class names, the recipe of the training and the figures
reached. Nothing in such a file is ever run.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxplain.models.architecture import Architecture
from jaxplain.models.weights.fill import fill, own_plan
from jaxplain.models.weights.safetensors_file import read_safetensors, write_safetensors
from jaxplain.models.weights.tensors import MemoryTensor
from jaxplain.preprocessing import Preprocessing

FORMAT = "jaxplain"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A trained network, and where it comes from.

    Attributes:
        variables: {"params": {layer: {"kernel": ..., "bias": ...}}}.
        architecture: name of the network in `MODELS`; empty if the file does not say.
        num_classes: length of the logits.
        preprocessing: of the pictures; None if the file does not say.
        class_names: one a class, or empty.
        recipe: how it was trained: JSON values.
        figures: what it reaches, such as {"test_accuracy": 0.99}.
    """

    variables: Any
    architecture: str
    num_classes: int
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


def save(path: str | Path, weights: Weights) -> None:
    """Write weights to a file, which appears whole or not at all.

    Raises:
        OSError: the file cannot be written.
        ValueError: a value is NaN or infinite, or there are not as many class names as classes.
    """
    flat = traverse_util.flatten_dict(weights.variables, sep="/")
    arrays = {name: np.asarray(values) for name, values in sorted(flat.items())}
    broken = [name for name, values in arrays.items() if not np.isfinite(values).all()]
    if broken:
        raise ValueError(f"weights hold NaN or infinity in: {', '.join(broken)}")
    _check_class_names(weights.class_names, weights.num_classes, "weights")
    about = {
        "architecture": weights.architecture,
        "num_classes": weights.num_classes,
        "class_names": weights.class_names,
        "recipe": weights.recipe,
        "figures": weights.figures,
    }
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in about.items()}
    if weights.preprocessing is not None:
        metadata["preprocessing"] = weights.preprocessing.to_json()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, arrays, {"format": FORMAT, **metadata})


def load(path: str | Path, architecture: Architecture, num_classes: int | None = None) -> Weights:
    """Read weights for a network: all of them, or none.

    Files of others do if their tensors are named and laid out alike; what their header does not say
    is then left out of the result.

    Args:
        path: the file.
        architecture: the network.
        num_classes: length of the logits; None for what the file says, or the network's own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, its header is wrong, or it does not fit the network; all tensors
            that do not are listed.
    """
    tensors, metadata = read_safetensors(path)
    said = {key: _json(path, metadata, key) for key in ("num_classes", "recipe", "figures")}
    _check_header(path, said)
    names = _json(path, metadata, "class_names") or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: class_names is {names!r:.200}; expected a list of names")
    classes = num_classes or said["num_classes"] or architecture.num_classes
    shapes = variable_shapes(architecture, classes)
    variables = fill(own_plan(shapes), shapes, tensors, source=str(path))
    _check_class_names(tuple(names), classes, str(path))
    preprocessing = metadata.get("preprocessing")
    return Weights(
        variables=variables,
        architecture=str(_json(path, metadata, "architecture") or ""),
        num_classes=classes,
        preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
        class_names=tuple(names),
        recipe=said["recipe"] or {},
        figures=said["figures"] or {},
    )


def from_mapping(
    variables: Mapping[str, Any], architecture: Architecture, num_classes: int
) -> dict[str, Any]:
    """Return the network's variables made of {"params": {layer: {"kernel": array, ...}}}.

    Raises:
        ValueError: tensors are missing, left over or of another shape; all are listed.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    tensors = {name: MemoryTensor(np.asarray(values)) for name, values in flat.items()}
    shapes = variable_shapes(architecture, num_classes)
    return fill(own_plan(shapes), shapes, tensors, source="the mapping of weights")


def variable_shapes(
    architecture: Architecture, num_classes: int
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shape of every variable of a network, by path; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *architecture.input_shape), jnp.float32)
    shapes: Any = jax.eval_shape(architecture.build(num_classes).init, jax.random.key(0), images)
    flat: Any = traverse_util.flatten_dict(shapes)
    return {path: leaf.shape for path, leaf in flat.items()}


def _json(path: str | Path, metadata: Mapping[str, str], key: str) -> Any:
    """Return what the header says of `key`, None if nothing."""
    if key not in metadata:
        return None
    try:
        return json.loads(metadata[key])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: {key} in the header is not JSON: {error}") from error


def _check_header(path: str | Path, said: Mapping[str, Any]) -> None:
    classes = said["num_classes"]
    if classes is not None and (type(classes) is not int or not 1 <= classes <= 1_000_000):
        raise ValueError(f"{path}: num_classes is {classes!r:.200}; expected a number of classes")
    for key in ("recipe", "figures"):
        if said[key] is not None and not isinstance(said[key], dict):
            raise ValueError(f"{path}: {key} is a {type(said[key]).__name__}; expected an object")


def _check_class_names(names: tuple[str, ...], classes: int, source: str) -> None:
    if names and len(names) != classes:
        raise ValueError(f"{source}: {len(names)} class names for {classes} classes")
