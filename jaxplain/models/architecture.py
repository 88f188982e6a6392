"""`Architecture`: one row of the table of networks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxplain.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Weights read from elsewhere than this package's own files.

    Attributes:
        variables: as the module's `init` returns them.
        preprocessing: what these weights were trained with; None for the architecture's.
        class_names: one a class; None for the architecture's.
        num_classes: length of the logits; None for what was asked for.
        multilabel: whether each class has a sigmoid of its own.
    """

    variables: Any
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    num_classes: int | None = None
    multilabel: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that `load_model` knows, and what the methods need to know of it.

    Attributes:
        name: what the user calls it.
        description: one line for people.
        build: `build(num_classes)` returns the Flax Linen module; its `__call__` takes images and
            the keywords `gates` and `masks`.
        num_classes: classes unless weights or the user say otherwise.
        preprocessing: of pictures, unless the weights bring their own.
        default_layer: the last layer with positions, which Grad-CAM explains.
        evidence_layer: the layer at which excitation backprop reads its map.
        weights: what is published, by the name that `load_model` takes: {"shipped": a file in the
            package} or {"imagenet": a file that can be downloaded}.
        class_names: one a class, or empty.
        foreign: `foreign(source, num_classes)` reads everything but "shipped" weights: a name in
            `weights`, a path, or a mapping of arrays; `num_classes` is None for that of the
            weights. None where only the package's own files and variables in memory are known.
    """

    name: str
    description: str
    build: Callable[[int], Any]
    num_classes: int
    preprocessing: Preprocessing
    default_layer: str
    evidence_layer: str
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    foreign: Callable[[Any, int | None], Foreign] | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the network was made for."""
        return self.preprocessing.input_shape
