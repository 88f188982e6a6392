"""Networks: `MODELS` says which there are, `load_model` makes one of them a `Model`."""

import dataclasses
import importlib
import math
import operator
import os
import warnings
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxplain.adapters import LinenApply
from jaxplain.model import Model
from jaxplain.models.architecture import Architecture
from jaxplain.names import unknown
from jaxplain.preprocessing import Preprocessing

SHIPPED, RANDOM = "shipped", "random"
OWN_SUFFIX = ".safetensors"

# Modules that hold `ARCHITECTURES`, read one after the other until a name is found.
_FAMILIES = ("lenet", "zoo")


class _Models(Mapping[str, Architecture]):
    """The architectures of all families by name; a family is imported when it is looked at."""

    def __getitem__(self, name: str) -> Architecture:
        for architecture in self._all():
            if architecture.name == name:
                return architecture
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (architecture.name for architecture in self._all())

    def __len__(self) -> int:
        return sum(1 for _ in self._all())

    def _all(self) -> Iterator[Architecture]:
        for family in _FAMILIES:
            yield from importlib.import_module(f"jaxplain.models.{family}").ARCHITECTURES


MODELS: Mapping[str, Architecture] = _Models()


def find_architecture(name: str) -> Architecture:
    """Return a network of `MODELS`.

    Raises:
        ValueError: there is none of that name; the message gives the nearest.

    Example:
        >>> find_architecture("digits").input_shape
        (28, 28, 1)
        >>> find_architecture("digit")
        Traceback (most recent call last):
            ...
        ValueError: unknown model 'digit'; nearest: digits
    """
    if name not in MODELS:
        raise ValueError(unknown("model", name, MODELS))
    return MODELS[name]


def load_model(
    name: str | os.PathLike[str],
    weights: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Model:
    """Return a network with its weights, preprocessing and class names.

    Args:
        name: one of `MODELS`; or the path of a file of this package, which says what it is.
        weights: None for those that ship with the package; the name of others that are published
            ("imagenet"; downloaded once); "hf:owner/name" on the Hugging Face hub; the path of a
            file; a mapping of arrays; or "random" for an untrained network, the same every time.
        num_classes: length of the logits; None for that of the weights.
        image_size: side, or (height, width), of the input; None for the network's own. What the
            preprocessing resizes to grows with it.

    Raises:
        ValueError: an unknown name, weights that do not fit (all tensors that do not are listed),
            another number of classes than theirs, or pictures too small for the network.
        TypeError: a name or weights that are nothing of the above; sizes that are no whole numbers.
        OSError: the file is missing or cannot be read, or a download failed.

    Warns:
        UserWarning: the file does not name its classes, so that they are numbered.

    Example:
        >>> model = load_model("digits")
        >>> model(jnp.zeros((1, *model.input_shape))).shape, model.class_names[:3]
        ((1, 10), ('0', '1', '2'))
    """
    if not isinstance(name, str | os.PathLike):
        expected = "that of a network or the path of a file"
        raise TypeError(f"name is {name!r}, a {type(name).__name__}; expected {expected}")
    if weights is None and _is_file(name):
        name, weights = architecture_in(name), name
    architecture = find_architecture(os.fspath(name))
    if num_classes is not None:
        num_classes = _whole("num_classes", num_classes)
    size = None if image_size is None else _side_lengths(image_size)
    if size is not None:  # before anything is read or downloaded
        _check_room(architecture, size, f"image_size is {image_size!r}")
    found = _weights(architecture, weights, num_classes)
    preprocessing = found.preprocessing or architecture.preprocessing
    if size is not None:
        preprocessing = _at_size(preprocessing, size)
    elif preprocessing.size != architecture.preprocessing.size:
        _check_room(architecture, preprocessing.size, f"the weights' size is {preprocessing.size}")
    apply = LinenApply(architecture.build(found.num_classes))
    model = _model(architecture, apply, found.variables, preprocessing, found.class_names)
    return dataclasses.replace(model, multilabel=found.multilabel)


def architecture_in(path: str | os.PathLike[str]) -> str:
    """Return the name of the network that a file of this package is of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or does not say.
    """
    from jaxplain.models.weights import store
    from jaxplain.models.weights.safetensors_file import ChecksumError

    try:
        name = store.read(Path(path))[1].architecture if Path(path).suffix == OWN_SUFFIX else ""
    except ChecksumError as error:
        # Who loads it is told that, and what else is wrong with it.
        name = error.metadata.get("architecture", "").strip('"')
        if name not in MODELS:
            raise
    if not name:
        raise ValueError(
            f"{path} does not say which network it is of; name it: one of {', '.join(MODELS)}"
        )
    return name


def _is_file(name: str | os.PathLike[str]) -> bool:
    """Whether this is the path of a file, and no name of a network."""
    if isinstance(name, str) and name in MODELS:
        return False
    return Path(name).suffix == OWN_SUFFIX or Path(name).is_file()


def outline(name: str, *, num_classes: int | None = None) -> Model:
    """Return a network without weights: its parameters are shapes, so it can only be looked at.

    Example:
        >>> [(layer.name, layer.shape) for layer in outline("digits").layers()][:2]
        [('conv1', (24, 24, 20)), ('pool1', (12, 12, 20))]
    """
    architecture = find_architecture(name)
    network = architecture.build(num_classes or architecture.num_classes)
    images = _images(architecture.preprocessing)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    names = architecture.class_names if num_classes is None else ()
    return _model(architecture, LinenApply(network), shapes, architecture.preprocessing, names)


def parameter_count(model: Model) -> int:
    """Return how many numbers a model's parameters are.

    The running statistics of a Flax network's batch norm are none: nothing is learnt there.

    Example:
        >>> parameter_count(outline("digits"))
        431080
    """
    params = model.params
    if isinstance(params, Mapping) and "params" in params:  # Flax's collections of variables
        params = params["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@dataclasses.dataclass(frozen=True)
class _Found:
    variables: Any
    num_classes: int
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...]
    multilabel: bool = False


def _weights(architecture: Architecture, weights: Any, num_classes: int | None) -> _Found:
    """Read what the user asked for."""
    from jaxplain.models.weights import store

    weights = _chosen(architecture, weights)
    if weights == RANDOM:
        classes = num_classes or architecture.num_classes
        init = jax.jit(architecture.build(classes).init)
        images = jnp.zeros((1, *architecture.input_shape))
        variables = init(jax.random.key(0), images)
        return _Found(variables, classes, None, _default_names(architecture, classes))
    if weights == SHIPPED:
        place = resources.files("jaxplain.models.weights") / architecture.weights[SHIPPED]
        with resources.as_file(place) as path:
            return _own(store.load(path, architecture, num_classes))
    if architecture.foreign is not None:
        read = architecture.foreign(weights, num_classes)
        classes = read.num_classes or num_classes or architecture.num_classes
        names = read.class_names
        if names is None:
            names = _default_names(architecture, classes)
        found = _Found(read.variables, classes, read.preprocessing, names, read.multilabel)
    elif isinstance(weights, Mapping):
        classes = num_classes or architecture.num_classes
        variables = store.from_mapping(weights, architecture, classes)
        return _Found(variables, classes, None, _default_names(architecture, classes))
    else:
        found = _own(store.load(Path(weights), architecture, num_classes))
    if not found.class_names and not isinstance(weights, Mapping):
        warnings.warn(
            f"{weights} does not name its {found.num_classes} classes; they are numbered",
            stacklevel=3,
        )
    return found


def _chosen(architecture: Architecture, weights: Any) -> Any:
    """Return the weights that are meant, or raise saying what there is to choose from."""
    if weights is None:
        if SHIPPED not in architecture.weights:
            raise ValueError(
                f"no weights of {architecture.name!r} ship with the package; expected weights to "
                f"be {_choices(architecture)}"
            )
        return SHIPPED
    if isinstance(weights, Mapping):
        return weights
    if not isinstance(weights, str | os.PathLike):
        raise TypeError(
            f"weights are a {type(weights).__name__}; expected {_choices(architecture)}"
        )
    if isinstance(weights, str):
        hub = architecture.foreign is not None and weights.startswith("hf:")
        if hub or weights in (*architecture.weights, RANDOM):
            return weights
    path = Path(weights)
    if not str(weights):
        raise ValueError(f"weights are an empty text; expected {_choices(architecture)}")
    if path.is_dir():
        raise IsADirectoryError(f"weights {str(weights)!r} are a folder; expected a file in it")
    if path.exists():
        return weights
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"there is no file of weights {str(weights)!r}")
    raise ValueError(
        f"unknown weights {str(weights)!r} of {architecture.name!r}; expected "
        f"{_choices(architecture)}"
    )


def _default_names(architecture: Architecture, classes: int) -> tuple[str, ...]:
    """The names of an architecture's classes, if there are as many."""
    return architecture.class_names if classes == len(architecture.class_names) else ()


def _own(weights: Any) -> _Found:
    return _Found(
        weights.variables,
        weights.num_classes,
        weights.preprocessing,
        weights.class_names,
        weights.multilabel,
    )


def _choices(architecture: Architecture) -> str:
    names = ", ".join(repr(name) for name in (*architecture.weights, RANDOM))
    hub = ", 'hf:owner/name'" if architecture.foreign is not None else ""
    return f"{names}{hub}, a path or a mapping of arrays"


def _model(
    architecture: Architecture,
    apply: LinenApply,
    params: Any,
    preprocessing: Preprocessing,
    class_names: tuple[str, ...],
) -> Model:
    return Model(
        params,
        apply,
        input_shape=preprocessing.input_shape,
        preprocessing=preprocessing,
        class_names=class_names,
        name=architecture.name,
        default_layer=architecture.default_layer,
        evidence_layer=architecture.evidence_layer,
    )


def _images(preprocessing: Preprocessing) -> Any:
    return jax.ShapeDtypeStruct((1, *preprocessing.input_shape), jnp.float32)


def _at_size(preprocessing: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    resize = preprocessing.resize
    if resize is not None:
        # The share that the centre crop keeps stays what it was.
        resize = max(*size, round(resize * min(size) / min(preprocessing.size)))
    return dataclasses.replace(preprocessing, size=size, resize=resize)


def _side_lengths(image_size: Any) -> tuple[int, int]:
    """Return (height, width) of what the user calls the size of images."""
    if not isinstance(image_size, tuple | list):
        side = _whole("image_size", image_size)
        return side, side
    if len(image_size) != 2:
        raise ValueError(
            f"image_size is {image_size!r}; expected one side or (height, width), without channels"
        )
    height, width = (_whole("image_size", side, of=image_size) for side in image_size)
    return height, width


def _whole(argument: str, value: Any, *, of: Any = None) -> int:
    """Return a whole number from one, or raise naming the argument that it is `of`."""
    shown = repr(value if of is None else of)
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(
            f"{argument} is {shown}; expected whole numbers, {value!r} is a {kind}"
        ) from None
    if number < 1:
        raise ValueError(f"{argument} is {shown}; expected at least 1")
    return number


def _check_room(architecture: Architecture, size: tuple[int, int], what: str) -> None:
    """Raise ValueError if images of `size` leave a layer of the network nothing to read.

    Tracing shows it; nothing is computed.
    """
    network = architecture.build(architecture.num_classes)
    channels = architecture.input_shape[-1]
    images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    try:
        jax.eval_shape(network.init, jax.random.key(0), images)
    except ValueError as error:
        reason = str(error).removeprefix("images are too small: ")
        raise ValueError(f"{what}, too small for {architecture.name!r}: {reason}") from error
