"""`jaxplain fit chip`: the importance of a classifier's channels, from many pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli import compilation
from jaxplain.cli.console import note, progress, say, show_table, table
from jaxplain.names import unknown
from jaxplain.outputs import check_writable
from jaxplain.report import duration

if TYPE_CHECKING:
    from jaxplain.methods.chip import ChipImportance, Progress
    from jaxplain.model import Model
    from jaxplain.preprocessing import Preprocessing

EVERY_LAYER = "all"
"""The word for all layers with positions that separate the pictures from the answer."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `jaxplain fit chip --help`."""

    model: str
    weights: str | None
    data: str | None
    layers: str
    pictures: int | None
    num_gates: int
    keep: float
    sigma: float | None
    penalty: float
    shared: bool
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


@dataclass(frozen=True)
class Cut:
    """Pictures as the network takes them, uint8: what a loader reads."""

    pictures: Any
    preprocessing: "Preprocessing"

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.preprocessing.cut(self.pictures[index])}


def run(request: Request) -> None:
    """Fit, write and print how it went.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, named.
    """
    import time

    import jax

    from jaxplain.data.loaders import batches
    from jaxplain.methods import chip
    from jaxplain.models import load_model
    from jaxplain.sharding import data_mesh, join_processes

    began = time.perf_counter()
    others = (request.coordinator, request.processes, request.process)
    if request.join or any(part is not None for part in others):
        join_processes(*others)
    out = request.out or Path(f"{request.model}.chip.safetensors")
    check_writable(out)
    if request.checkpoints is not None:
        check_writable(request.checkpoints / "state")
    compilation.keep(option=request.cache)
    model = load_model(request.model, weights=request.weights)
    if model.preprocessing is None:
        raise ValueError(f"model {model.name!r} has no preprocessing; it cannot read pictures")
    layers = choose_layers(request.layers, model)
    pictures = open_pictures(request, model)
    mesh = data_mesh()
    note(
        f"{request.model}: {len(pictures):,} pictures, {request.num_gates} gate vectors each; "
        f"layers {', '.join(layers)}, devices: {mesh.size}"
    )
    stream = batches(
        Cut(pictures, model.preprocessing),
        request.batch_size,
        seed=request.seed,
        shuffle=True,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with progress(len(pictures)) as advance:

        def show(now: "Progress") -> None:
            text = f"{request.model}: pictures"
            if now.resumed:
                text += f" (from {now.resumed:,})"
            advance(text, done=now.images, total=len(pictures))

        found = chip.fit(
            model,
            stream,
            layers,
            key=jax.random.key(request.seed),
            num_gates=request.num_gates,
            keep=request.keep,
            sigma=request.sigma,
            penalty=request.penalty,
            gates="shared" if request.shared else "fresh",
            mesh=mesh,
            checkpoint=request.checkpoints,
            every=request.every,
            progress=show,
        )
    if jax.process_index() == 0:
        chip.save(out, found)
        show_layers(found)
        say(f"fitted in {duration(time.perf_counter() - began)}")
        say(out)


def choose_layers(text: str, model: "Model") -> list[str]:
    """Return the layers that `text` names.

    Raises:
        ValueError: a layer that the model lacks, or none.
    """
    from jaxplain.trace import split

    known = {layer.name: layer.shape for layer in model.layers()}
    if text.strip() != EVERY_LAYER:
        names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        for name in names:
            if name not in known:
                raise ValueError(unknown("layer", name, [*known, EVERY_LAYER]))
        if not names:
            raise ValueError(f"--layers names none; expected {EVERY_LAYER}, or names with commas")
        return names
    names = []
    for name, shape in known.items():
        if len(shape) != 3:
            continue
        try:
            split(model, name)
        except ValueError:  # a path goes round it
            continue
        names.append(name)
    if not names:
        raise ValueError(f"no layer of model {model.name!r} has positions and separates")
    return names


def open_pictures(request: Request, model: "Model") -> Any:
    """Return the pictures to learn from.

    Raises:
        ValueError: none are named for a model without pictures of its own, or the data do not fit.
        OSError: they cannot be read.
    """
    from jaxplain.data.labelled import Chosen
    from jaxplain.training import open_data

    data, wanted = named_data(request.model, request.data), request.pictures
    # Labels are not looked at: a picture may have any number.
    asked = asked_for(wanted)
    pictures = open_data(data, multilabel=True, pictures=asked, seed=request.seed).train.images
    rows = np.arange(len(pictures) if wanted is None else min(wanted, len(pictures)))
    return Chosen(pictures, rows)


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


def show_layers(found: "dict[str, ChipImportance]") -> None:
    """Print how each layer was fitted, and how good the solution is."""
    columns: Sequence[tuple[str, str]] = [
        ("layer", "left"),
        ("channels", "right"),
        ("important", "right"),
        ("classes", "right"),
        ("KKT", "right"),
        ("gates", "left"),
    ]
    from jaxplain.methods.chip import important

    rows = table("CHIP", columns)
    for layer, importance in found.items():
        fitted = np.asarray(importance.fitted)
        counts = important(importance).sum(1)[fitted]
        rows.add_row(
            layer,
            str(importance.weights.shape[1]),
            f"{counts.mean():.1f}" if len(counts) else "–",
            f"{fitted.sum()} of {len(fitted)}",
            f"{float(np.asarray(importance.kkt).max()):.1e}",
            importance.path,
        )
    show_table(rows)
