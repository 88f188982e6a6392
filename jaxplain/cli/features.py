"""`jaxplain fit features`: the channels that tell a classifier's classes apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli.console import note, progress, say, show_table, table
from jaxplain.cli.fit import Cut, Fit
from jaxplain.names import unknown
from jaxplain.outputs import replacing
from jaxplain.report import duration

if TYPE_CHECKING:
    from jaxplain.data.labelled import Pictures
    from jaxplain.methods.interpretation import RelevantFeatures
    from jaxplain.model import Model

SIZE = 8
"""Average images in a row of the montage."""


@dataclass(frozen=True, kw_only=True)
class Request(Fit):
    """What the user asked for; see `jaxplain fit features --help`."""

    skip_last: int
    mu: float
    pool: str
    labels: str | None
    squared: bool
    nonnegative: bool
    montage: Path | None
    patches: int


def run(request: Request) -> None:
    """Gather, select, write and print what was selected.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, named.
    """
    import time

    import jax

    from jaxplain.methods import interpretation
    from jaxplain.sharding import data_mesh

    began = time.perf_counter()
    if request.pool not in interpretation.POOLS:
        raise ValueError(unknown("pool", request.pool, interpretation.POOLS))
    if request.labels is not None and request.labels not in interpretation.LABELS:
        raise ValueError(unknown("labels", request.labels, interpretation.LABELS))
    if not request.mu > 0:
        raise ValueError(f"--mu is {request.mu}; expected above 0")
    out = request.begin(interpretation.SUFFIX, request.montage)
    if request.montage is not None and request.together:
        raise ValueError("--montage is drawn by one process alone; leave it out")
    model = request.load()
    layers = request.named_layers(model)
    blocks = interpretation.blocks(model, layers, skip_last=request.skip_last)
    source = open_labelled(request, model)
    mesh = data_mesh()
    note(
        f"{request.model}: {len(source):,} pictures, {sum(b.channels for b in blocks):,} channels "
        f"of {len(blocks)} layers, devices: {mesh.size}"
    )
    with request.watched(len(source)) as show:
        statistics = interpretation.gather(
            model,
            request.stream(source),
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
        draw(model, found, request.stream(source), request, len(source))
    say(f"selected in {duration(time.perf_counter() - began)}")
    for path in (out, request.montage):
        if path is not None:
            say(path)


def open_labelled(request: Request, model: "Model") -> Cut:
    """Return the pictures to learn from, with their labels unless the network's own are asked for.

    Raises:
        ValueError: none are named for a model without pictures of its own, or the classes are
            others than the model's.
        OSError: they cannot be read.
    """
    from jaxplain.data.labelled import Chosen

    data, rows = request.open()
    labels = None
    if request.labels != "predicted":
        labels = match_labels(data.train, data.class_names, model)[rows]
    assert model.preprocessing is not None
    return Cut(Chosen(data.train.images, rows), model.preprocessing, labels)


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
