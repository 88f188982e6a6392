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
from jaxplain.models.weights.fill import fill, misfits, own_plan
from jaxplain.models.weights.safetensors_file import (
    ChecksumError,
    read_safetensors,
    write_safetensors,
)
from jaxplain.models.weights.tensors import FileTensor, MemoryTensor
from jaxplain.preprocessing import Preprocessing

FORMAT = "jaxplain"

# What a header may hold, each as JSON: its type, and that in words.
_KINDS = {
    "architecture": (str, "a name"),
    "num_classes": (int, "a number of classes"),
    "class_names": (list, "a list of names"),
    "recipe": (dict, "an object"),
    "figures": (dict, "an object"),
    "multilabel": (bool, "true or false"),
}


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
        multilabel: whether each class has a sigmoid of its own, instead of one softmax for all.
    """

    variables: Any
    architecture: str
    num_classes: int
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    multilabel: bool = False


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself: the fields of `Weights`, empty where it says nothing."""

    architecture: str = ""
    num_classes: int | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    multilabel: bool = False


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
    check_class_names(weights.class_names, weights.num_classes, "weights")
    about = {
        "architecture": weights.architecture,
        "num_classes": weights.num_classes,
        "class_names": weights.class_names,
        "recipe": weights.recipe,
        "figures": weights.figures,
    } | ({"multilabel": True} if weights.multilabel else {})
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in about.items()}
    if weights.preprocessing is not None:
        metadata["preprocessing"] = weights.preprocessing.to_json()
    write_safetensors(path, arrays, {"format": FORMAT, **metadata})


def read(path: str | Path) -> tuple[dict[str, FileTensor], Header]:
    """Return the tensors of a file, still to be read, and what it says of itself.

    What files with other names for their tensors say is not for us: their header counts as empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its header is wrong.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT and not any(name.startswith("params/") for name in tensors):
        return tensors, Header()
    said = {key: _json(path, metadata, key) for key in _KINDS}
    for key, (kind, expected) in _KINDS.items():
        # A bool is an int to Python.
        if said[key] is not None and type(said[key]) is not kind:
            raise ValueError(f"{path}: {key} is {said[key]!r:.200}; expected {expected}")
    classes, names = said["num_classes"], said["class_names"] or ()
    if classes is not None and not 1 <= classes <= 1_000_000:
        raise ValueError(f"{path}: num_classes is {classes!r:.200}; expected a number of classes")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: class_names is {names!r:.200}; expected a list of names")
    preprocessing = metadata.get("preprocessing")
    return tensors, Header(
        architecture=said["architecture"] or "",
        num_classes=classes,
        preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
        class_names=tuple(names),
        recipe=said["recipe"] or {},
        figures=said["figures"] or {},
        multilabel=said["multilabel"] or False,
    )


def load(path: str | Path, architecture: Architecture, num_classes: int | None = None) -> Weights:
    """Read weights for a network: all of them, or none.

    Files of others do if their tensors are named and laid out alike; what their header does not say
    is then left out of the result.

    Args:
        path: the file.
        architecture: the network.
        num_classes: length of the logits; None for that of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, its header is wrong, it is of another network, or it does not fit
            the network; all tensors that do not are listed.
    """
    try:
        tensors, header = read(path)
    except ChecksumError as error:
        # A file that was changed by hand is told what to mend, all at once.
        expected = variable_shapes(architecture, num_classes or architecture.num_classes)
        wrong = misfits(own_plan(expected), error.tensors, numbers=True)
        raise ValueError("; ".join([str(error), *wrong])) from error
    check_architecture(header, architecture.name, str(path))
    head = f"params/{architecture.build(1).head}/kernel"
    found = header.num_classes
    if found is None and head in tensors:
        found = tensors[head].shape[-1] if tensors[head].shape else None
    classes = agreed_classes(num_classes, found, f"{path} ({head})") or architecture.num_classes
    shapes = variable_shapes(architecture, classes)
    variables = fill(own_plan(shapes), shapes, tensors, source=str(path))
    check_class_names(header.class_names, classes, str(path))
    said: dict[str, Any] = {f.name: getattr(header, f.name) for f in dataclasses.fields(Header)}
    said["num_classes"] = classes
    return Weights(variables=variables, **said)


def agreed_classes(asked: int | None, found: int | None, source: str) -> int | None:
    """Return the number of classes that weights have, or that was asked for; None if neither is.

    Raises:
        ValueError: the two differ.

    Example:
        >>> agreed_classes(None, 20, "a.pth"), agreed_classes(20, None, "a.pth")
        (20, 20)
        >>> agreed_classes(5, 20, "a.pth")
        Traceback (most recent call last):
            ...
        ValueError: num_classes is 5, but a.pth has 20 classes; leave it out to take those
    """
    if asked is not None and found is not None and asked != found:
        raise ValueError(
            f"num_classes is {asked}, but {source} has {found} classes; leave it out to take those"
        )
    return found if asked is None else asked


def check_architecture(header: Header, name: str, source: str) -> None:
    """Raise ValueError if a file says that it is of another network than `name`."""
    if header.architecture not in ("", name):
        raise ValueError(
            f"{source} holds weights of {header.architecture!r}, which are none of {name!r}"
        )


def check_class_names(names: tuple[str, ...], classes: int, source: str) -> None:
    """Raise ValueError unless there are no names, or one a class."""
    if names and len(names) != classes:
        raise ValueError(f"{source}: {len(names)} class names for {classes} classes")


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
