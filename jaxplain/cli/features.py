"""`jaxplain fit features`: the channels that tell a classifier's classes apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli import compilation
from jaxplain.cli.console import note, progress, say, show_table, table
from jaxplain.cli.fit import Cut, asked_for, named_data
from jaxplain.names import unknown
from jaxplain.outputs import check_writable, replacing
from jaxplain.report import duration

if TYPE_CHECKING:
    from jaxplain.data.labelled import Pictures
    from jaxplain.methods.interpretation import Progress, RelevantFeatures
    from jaxplain.model import Model

SIZE = 8
"""Average images in a row of the montage."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `jaxplain fit features --help`."""

    model: str
    weights: str | None
    data: str | None
    layers: str
    skip_last: int
    pictures: int | None
    mu: float
    pool: str
    labels: str | None
    squared: bool
    nonnegative: bool
    batch_size: int
    checkpoints: Path | None
    every: int
    out: Path | None
    montage: Path | None
    patches: int
    seed: int
    join: bool
    coordinator: str | None
    processes: int | None
    process: int | None
    cache: bool


@dataclass(frozen=True)
class Labelled:
    """Pictures as the network takes them, with labels: what a loader reads."""

    cut: Cut
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.cut)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self.cut[index]
        return example if self.labels is None else example | {"label": self.labels[index]}


def run(request: Request) -> None:
    """Gather, select, write and print what was selected.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, named.
    """
    import time

    import jax

    from jaxplain.data.loaders import batches
    from jaxplain.methods import interpretation
    from jaxplain.models import MODELS, load_model
    from jaxplain.sharding import data_mesh, join_processes

    began = time.perf_counter()
    others = (request.coordinator, request.processes, request.process)
    joined = request.join or any(part is not None for part in others)
    if joined:
        join_processes(*others)
    if request.pool not in interpretation.POOLS:
        raise ValueError(unknown("pool", request.pool, interpretation.POOLS))
    if request.labels is not None and request.labels not in interpretation.LABELS:
        raise ValueError(unknown("labels", request.labels, interpretation.LABELS))
    if not request.mu > 0:
        raise ValueError(f"--mu is {request.mu}; expected above 0")
    if request.montage is not None and joined:
        raise ValueError("--montage is drawn by one process alone; leave it out")
    out = request.out or Path(f"{request.model}.{interpretation.SUFFIX}")
    for path in (out, request.montage):
        if path is not None:
            check_writable(path)
    if request.checkpoints is not None:
        check_writable(request.checkpoints / "state")
    if request.model in MODELS:
        named_data(request.model, request.data)  # which says that none are named
    compilation.keep(option=request.cache)
    model = load_model(request.model, weights=request.weights)
    if model.preprocessing is None:
        raise ValueError(f"model {model.name!r} has no preprocessing; it cannot read pictures")
    layers = choose_layers(request.layers, model)
    blocks = interpretation.blocks(model, layers, skip_last=request.skip_last)
    source = open_labelled(request, model)
    mesh = data_mesh()
    note(
        f"{request.model}: {len(source):,} pictures, {sum(b.channels for b in blocks):,} channels "
        f"of {len(blocks)} layers, devices: {mesh.size}"
    )

    def stream() -> Iterator[Any]:
        return batches(
            source,
            request.batch_size,
            seed=request.seed,
            shuffle=True,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    with progress(len(source)) as advance:

        def show(now: "Progress") -> None:
            text = f"{request.model}: pictures"
            if now.resumed:
                text += f" (from {now.resumed:,})"
            advance(text, done=now.images, total=len(source))

        statistics = interpretation.gather(
            model,
            stream(),
            [block.layer for block in blocks],
            squared=request.squared,
            mesh=mesh,
            checkpoint=request.checkpoints,
            every=request.every,
            progress=show,
        )
    if jax.process_index() != 0:
        return
    found = interpretation.select(
        statistics,
        mu=request.mu,
        labels=request.labels,
        pool=request.pool,
        nonnegative=request.nonnegative,
    )
    interpretation.save(out, found)
    show_features(found, model.class_names)
    if request.montage is not None:
        draw(model, found, stream(), request, len(source))
    say(f"selected in {duration(time.perf_counter() - began)}")
    for path in (out, request.montage):
        if path is not None:
            say(path)


def choose_layers(text: str, model: "Model") -> list[str] | None:
    """Return the layers that `text` names; None for all.

    Raises:
        ValueError: a layer that the model lacks, or none.
    """
    if text.strip() == "all":
        return None
    known = [layer.name for layer in model.layers()]
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise ValueError(unknown("layer", name, [*known, "all"]))
    if not names:
        raise ValueError("--layers names none; expected all, or names with commas")
    return names


def open_labelled(request: Request, model: "Model") -> Labelled:
    """Return the pictures to learn from, with their labels unless the network's own are asked for.

    Raises:
        ValueError: none are named for a model without pictures of its own, or the classes are
            others than the model's.
        OSError: they cannot be read.
    """
    from jaxplain.data.labelled import Chosen
    from jaxplain.training import open_data

    data = open_data(
        named_data(request.model, request.data),
        multilabel=True,
        pictures=asked_for(request.pictures),
        seed=request.seed,
    )
    count = len(data.train.labels)
    rows = np.arange(count if request.pictures is None else min(request.pictures, count))
    assert model.preprocessing is not None
    cut = Cut(Chosen(data.train.images, rows), model.preprocessing)
    if request.labels == "predicted":
        return Labelled(cut, None)
    return Labelled(cut, match_labels(data.train, data.class_names, model)[rows])


def match_labels(part: "Pictures", names: Sequence[str], model: "Model") -> np.ndarray:
    """Return labels (n, classes) by the model's own numbers.

    Classes are matched by name; where the model has no names, by number, as many as it has.

    Raises:
        ValueError: a class that the model does not have.
    """
    from jaxplain.methods.streaming import classes_of

    assert model.input_shape is not None
    classes = classes_of(model, model.input_shape)
    if not model.class_names:
        if len(names) != classes:
            raise ValueError(
                f"the data have {len(names)} classes, model {model.name!r} has {classes} without "
                "names; with --labels predicted its own answers are taken"
            )
        return part.labels
    strange = [name for name in names if name not in model.class_names]
    if strange:
        raise ValueError(
            f"{unknown('class', strange[0], model.class_names)} ({len(strange)} of {len(names)} "
            f"classes are none of model {model.name!r}); with --labels predicted its own answers "
            "are taken"
        )
    places = [model.class_names.index(name) for name in names]
    labels = np.zeros((len(part.labels), classes), np.int8)
    labels[:, places] = part.labels
    return labels


def show_features(found: "RelevantFeatures", class_names: Sequence[str]) -> None:
    """Print the features of every class, and how good the solution is."""
    columns: Sequence[tuple[str, str]] = [
        ("class", "left"),
        ("pictures", "right"),
        ("features", "right"),
        ("gap", "right"),
        ("strongest", "left"),
    ]
    settings = found.settings
    rows = table(f"relevant features, μ = {settings.mu:g}", columns)
    for label in range(len(found.weights)):
        features = found.of(label)
        strongest = [f"{f.layer} {f.channel}" for f in features[:3] if f.weight > 0]
        rows.add_row(
            class_names[label] if class_names else str(label),
            f"{int(found.images[label]):,}",
            str(len(features)),
            f"{float(found.gap[label]):.0e}",
            ", ".join(strongest) or "–",
        )
    show_table(rows)
    say(
        f"{len(found.selected())} of {settings.features:,} channels selected; "
        f"{settings.silent} silent, rank {settings.rank}, {settings.sums} ties by unit sums"
    )


def draw(
    model: "Model", found: "RelevantFeatures", stream: Any, request: Request, count: int
) -> None:
    """Write the average images of every class's features as one picture."""
    from jaxplain import plot
    from jaxplain.methods import interpretation

    names = model.class_names or tuple(str(label) for label in range(len(found.weights)))
    rows = {
        name: [feature for feature in found.of(label) if feature.weight > 0][:SIZE]
        for label, name in enumerate(names)
    }
    chosen = list({f[:3]: f for features in rows.values() for f in features}.values())
    with progress(count) as advance:
        averages = interpretation.average_images(
            model,
            stream,
            chosen,
            top=request.patches,
            progress=lambda now: advance("average images", done=now.images, total=count),
        )
    shown = {
        name: [
            (feature, averages.averages[place])
            for feature, place in zip(features, averages.of(features), strict=True)
        ]
        for name, features in rows.items()
    }
    assert request.montage is not None
    with replacing(request.montage) as part:
        plot.montage(shown, most=SIZE).savefig(part, format="png", dpi=100)
