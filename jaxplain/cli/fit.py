"""What the commands of `jaxplain fit` have in common: their options, pictures and progress."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli import compilation
from jaxplain.cli.console import progress
from jaxplain.names import unknown
from jaxplain.outputs import check_writable

if TYPE_CHECKING:
    from jaxplain.data.labelled import Data
    from jaxplain.methods.streaming import Progress
    from jaxplain.model import Model
    from jaxplain.preprocessing import Preprocessing

EVERY_LAYER = "all"
"""The word for all layers that a fit can use."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What the user asks of every fit; see `jaxplain fit --help`."""

    model: str
    weights: str | None
    data: str | None
    layers: str
    pictures: int | None
    batch_size: int
    checkpoints: Path | None
    every: int
    out: Path | None
    seed: int
    join: bool
    coordinator: str | None
    processes: int | None
    process: int | None
    cache: bool

    @property
    def together(self) -> bool:
        """Whether this process is one of several."""
        others = (self.coordinator, self.processes, self.process)
        return self.join or any(part is not None for part in others)

    def begin(self, suffix: str, *outputs: Path | None) -> Path:
        """Join the other processes, and return where the result goes.

        Args:
            suffix: of its name, where the user gave none.
            outputs: other files that will be written.

        Raises:
            ValueError: the pictures are not named, or only some of the options of processes are.
            OSError: a file cannot be written.
        """
        from jaxplain.models import MODELS
        from jaxplain.sharding import join_processes

        if self.together:
            join_processes(self.coordinator, self.processes, self.process)
        out = self.out or Path(f"{self.model}.{suffix}")
        kept = None if self.checkpoints is None else self.checkpoints / "state"
        for path in (out, kept, *outputs):
            if path is not None:
                check_writable(path)
        if self.model in MODELS:
            named_data(self.model, self.data)
        compilation.keep(option=self.cache)
        return out

    def load(self) -> "Model":
        """Return the model.

        Raises:
            ValueError: it is unknown, or cannot read pictures.
        """
        from jaxplain.models import load_model

        model = load_model(self.model, weights=self.weights)
        if model.preprocessing is None:
            raise ValueError(f"model {model.name!r} has no preprocessing; it cannot read pictures")
        return model

    def named_layers(self, model: "Model") -> list[str] | None:
        """Return the layers that the user named; None for all.

        Raises:
            ValueError: a layer that the model lacks, or none.
        """
        if self.layers.strip() == EVERY_LAYER:
            return None
        known = [layer.name for layer in model.layers()]
        words = (word.strip() for word in self.layers.split(","))
        names = list(dict.fromkeys(word for word in words if word))
        for name in names:
            if name not in known:
                raise ValueError(unknown("layer", name, [*known, EVERY_LAYER]))
        if not names:
            raise ValueError(f"--layers names none; expected {EVERY_LAYER}, or names with commas")
        return names

    def open(self) -> tuple["Data", np.ndarray]:
        """Return the data, and which of those for training are learned from.

        Raises:
            ValueError: none are named for a model without pictures of its own.
            OSError: they cannot be read.
        """
        from jaxplain.training import open_data

        wanted = self.pictures
        data = open_data(
            named_data(self.model, self.data),
            multilabel=True,  # a picture may have any number of labels
            pictures=asked_for(wanted),
            seed=self.seed,
        )
        count = len(data.train.images)
        return data, np.arange(count if wanted is None else min(wanted, count))

    def stream(self, source: Any) -> Iterator[Any]:
        """Return this process's batches of a source."""
        import jax

        from jaxplain.data.loaders import batches

        return batches(
            source,
            self.batch_size,
            seed=self.seed,
            shuffle=True,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    @contextlib.contextmanager
    def watched(self, count: int) -> Iterator[Callable[["Progress"], None]]:
        """Show how far a fit of so many pictures is: give what this yields its `Progress`."""
        with progress(count) as advance:

            def show(now: "Progress") -> None:
                text = f"{self.model}: pictures"
                if now.resumed:
                    text += f" (from {now.resumed:,})"
                advance(text, done=now.images, total=count)

            yield show


@dataclass(frozen=True)
class Cut:
    """Pictures as the network takes them, uint8, with labels if there are any.

    What a loader reads.
    """

    pictures: Any
    preprocessing: "Preprocessing"
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = {"image": self.preprocessing.cut(self.pictures[index])}
        return example if self.labels is None else example | {"label": self.labels[index]}


def named_data(model: str, data: str | None) -> str:
    """Return what to learn from: what was named, or what the model was trained on.

    Raises:
        ValueError: nothing was named, for a model without pictures of its own.
    """
    from jaxplain.training import RECIPES

    if data is not None:
        return data
    if model not in RECIPES:
        raise ValueError(
            f"--data is missing: {model} has no pictures of its own; expected folder:PATH or "
            "tfds:NAME"
        )
    return RECIPES[model].data


def asked_for(pictures: int | None) -> int | None:
    """Return how many pictures to open, so that so many are left for training."""
    return None if pictures is None else max(10, math.ceil(pictures / 0.6))
