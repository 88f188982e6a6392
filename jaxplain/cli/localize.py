"""`jaxplain localize`: how often the box around a map finds the object, on ILSVRC's pictures.

Pictures are read once, batch by batch, and explained by every method; of a map only how well its
box fits at each threshold is kept. What is kept is written now and then, so that the same command
goes on where it was stopped.
"""

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxplain.cli import compilation, facts
from jaxplain.cli.console import note, progress, say
from jaxplain.cli.explain import load, with_fitted
from jaxplain.cli.kept import Kept, digest_of, kept_path, versions
from jaxplain.cli.localization_table import Board, Line, show
from jaxplain.cli.maps import Task, run_batch
from jaxplain.cli.request import asked_for_all, check_layer, check_weights, choose_methods
from jaxplain.outputs import check_writable, replacing

if TYPE_CHECKING:
    from jaxplain.data.ilsvrc import Entry, Ilsvrc
    from jaxplain.evaluation import Estimate
    from jaxplain.evaluation.boxes import Part, Unit
    from jaxplain.methods import Method
    from jaxplain.model import Model

CHUNK = 16
PATIENCE = 30.0
"""Seconds of work that may be lost."""

TOP = 5
PARTS: Mapping["Unit", "Part"] = {"max": "largest", "mean": "all"}
"""What a threshold is relative to -> the part of the map that the box goes around."""

SHOWN = 3
"""Bad annotations named in an error."""

ANSWERS, CENTRE = "answers", "centre"
"""What is kept of the network's own answers, and of a map that knows nothing of the picture."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `jaxplain localize --help`."""

    data: str
    annotations: Path
    model: str
    weights: str | None
    methods: str
    layer: str | None
    fitted: Mapping[str, Path | None]
    synsets: Path | None
    tuning: int
    count: int | None
    whole: bool
    out: Path
    seed: int
    chunk: int | None
    cache: bool


def run(request: Request) -> None:
    """Explain what is not explained yet; write the errors as Markdown and JSON.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, named.
    """
    from jaxplain.data.ilsvrc import open_ilsvrc, read_synsets
    from jaxplain.methods import METHODS

    files = {kind: request.out / f"localization.{kind}" for kind in ("md", "json")}
    for path in (*files.values(), request.out / "kept" / "method.npz"):
        check_writable(path)
    everything = asked_for_all(request.methods)
    chosen = choose_methods(request.methods, METHODS)
    check_weights(request.model, request.weights)
    synsets = None if request.synsets is None else read_synsets(request.synsets)
    data = open_ilsvrc(request.data, request.annotations, synsets)
    compilation.keep(option=request.cache)
    model = load(request.model, request.weights)
    check_classes(model, len(data.synsets))
    if request.whole and model.preprocessing is not None:
        whole = dataclasses.replace(model.preprocessing, resize=None)
        model = dataclasses.replace(model, preprocessing=whole)
    check_layer(model, request.layer, chosen)
    chosen = with_fitted(chosen, model, request.fitted)
    chosen = applicable(chosen, model, request.layer, forgiving=everything)
    order, entries = read_entries(data, request)
    kept = opened(request, model, len(data.synsets), chosen, entries, order)
    work_through(request, model, data, order, entries, kept)

    told = facts.of_the_run(seed=request.seed, seconds=0.0)
    del told["Time"]
    lines, answers = errors_of(kept, np.array([e.label for e in entries]), request.tuning)
    board = Board(
        request.data, model.name, kept[0].work["weights"], request.tuning,
        len(entries) - request.tuning, request.whole, request.seed, answers, lines, told,
    )  # fmt: skip
    contents = (board.to_markdown(), board.to_json())
    for path, content in zip(files.values(), contents, strict=True):
        with replacing(path) as part:
            part.write_text(content, encoding="utf-8")
    show(board)
    for path in files.values():
        say(path)


def check_classes(model: "Model", synsets: int) -> None:
    """Raise ValueError unless a model reads pictures and has as many classes as there are names."""
    from jaxplain.methods.streaming import classes_of

    if model.preprocessing is None:
        raise ValueError(f"model {model.name!r} has no preprocessing; it cannot read pictures")
    classes = classes_of(model, model.preprocessing.input_shape)
    if classes != synsets:
        raise ValueError(
            f"model {model.name!r} has {classes} classes, and {synsets} synsets are named; "
            "--synsets FILE names those of its classes, in its order, one a line"
        )


def applicable(
    chosen: Sequence["Method"], model: "Model", layer: str | None, *, forgiving: bool
) -> list["Method"]:
    """Return the methods that can explain a model, with what was fitted to it.

    Raises:
        ValueError: one cannot and not `forgiving`, or none can.
    """
    found, reasons = [], []
    for method in chosen:
        reason = method.inapplicable(model, layer=layer if method.layered else None)
        if reason is None:
            found.append(method.bound(model, method.importance))
        elif not forgiving:
            raise ValueError(reason)
        else:
            note(f"{method.title} left out: {reason}")
            reasons.append(reason)
    if not found:
        raise ValueError(f"no method can explain model {model.name!r}: {reasons[0]}")
    return found


def read_entries(data: "Ilsvrc", request: Request) -> tuple[np.ndarray, list["Entry"]]:
    """Return which pictures are explained, in random order, and what is known of them.

    Those for the search of the threshold come first. All annotations are read before any work.

    Raises:
        ValueError, OSError: too few pictures, or bad annotations: how many, and the first of them.
    """
    least = request.tuning + (request.count or 1)
    if len(data) < least:
        raise ValueError(
            f"{request.data} has {len(data)} pictures; {request.tuning} for the thresholds and "
            f"{request.count or 'at least one'} to judge are asked for"
        )
    order = np.random.default_rng(request.seed).permutation(len(data))
    order = order[: least if request.count else None]
    entries, missing, bad = [], [], []
    with progress(len(order)) as advance:
        for index in order:
            try:
                entries.append(data.entry(int(index)))
            except FileNotFoundError as error:
                missing.append(Path(error.filename).name)
            except ValueError as error:
                bad.append(str(error))
            advance("reading annotations")
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(order)} pictures have no annotation in "
            f"{request.annotations}: {listed(sorted(missing), ', ')}"
        )
    if bad:
        raise ValueError(f"{len(bad)} of {len(order)} annotations: {listed(sorted(bad), '; ')}")
    return order, entries


def listed(names: Sequence[str], between: str) -> str:
    """Return the first few of some names.

    Example:
        >>> listed(["a", "b", "c", "d", "e"], ", ")
        'a, b, c and 2 more'
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more


def opened(
    request: Request,
    model: "Model",
    classes: int,
    chosen: Sequence["Method"],
    entries: Sequence["Entry"],
    order: np.ndarray,
) -> list[Kept]:
    """Return what is known so far: of the network's answers, of the centre, of each method."""
    from jaxplain.evaluation.thresholds import GRIDS

    told = hashlib.sha256(order.astype(np.int64).tobytes())
    for entry in entries:
        told.update(f"{entry.name} {entry.label} {entry.boxes.tolist()}\n".encode())
    assert model.preprocessing is not None
    common = {
        "data": told.hexdigest(),
        "model": model.name,
        "weights": digest_of(model),
        "preprocessing": model.preprocessing.to_json(),
        "seed": request.seed,
        **versions(),
    }

    def one(name: str, title: str, method: "Method | None" = None) -> Kept:
        work = {"method": name, **common}
        shapes: dict[str, tuple[int, ...]] = {ANSWERS: (min(TOP, classes),)}
        if name != ANSWERS:
            shapes = {kind: (len(grid),) for kind, grid in GRIDS.items()}
        if method is not None:
            work["options"] = {key: str(value) for key, value in method.options}
            work["layer"] = request.layer if method.layered else None
            work["fitted"] = "" if method.importance is None else digest_of(method.importance)
        dtype = np.int32 if name == ANSWERS else np.float32
        arrays = {key: np.zeros((len(entries), *shape), dtype) for key, shape in shapes.items()}
        path = kept_path(request.out, work).with_suffix(".npz")
        found = Kept(path, work, arrays, 0, title, method)
        found.read()
        return found

    return [
        one(ANSWERS, "the network's answers"),
        one(CENTRE, "Centre of the image"),
        *(one(method.name, method.title, method) for method in chosen),
    ]


def work_through(
    request: Request,
    model: "Model",
    data: "Ilsvrc",
    order: np.ndarray,
    entries: Sequence["Entry"],
    kept: Sequence[Kept],
) -> None:
    """Go through the pictures batch by batch; of each, do what is not done yet."""
    chunk = min(request.chunk or CHUNK, len(entries))
    starts = range(0, len(entries), chunk)
    written = time.monotonic()
    changed: list[Kept] = []
    with progress(len(starts)) as advance:
        try:
            for start in starts:
                rows = slice(start, min(start + chunk, len(entries)))
                waiting = [one for one in kept if one.done < rows.stop]
                if waiting:
                    task, boxes = read_batch(
                        request, model, data, order[rows], entries[rows], chunk
                    )
                    for one in waiting:
                        one.take(rows, measured(one, task, boxes))
                changed += [one for one in waiting if one not in changed]
                if time.monotonic() - written > PATIENCE:
                    write(changed)
                    written = time.monotonic()
                advance(f"{rows.stop:,} of {len(entries):,} pictures")
        except BaseException:
            # Whatever ends the work early, what is done of it is kept.
            write(changed)
            raise
        write(changed)


def write(changed: list[Kept]) -> None:
    """Write what has changed, and forget that it has."""
    for one in changed:
        one.write()
    changed.clear()


def read_batch(
    request: Request,
    model: "Model",
    data: "Ilsvrc",
    order: np.ndarray,
    entries: Sequence["Entry"],
    chunk: int,
) -> tuple[Task, list[np.ndarray]]:
    """Return some pictures as the network sees them, filled up to a batch, and their boxes there.

    Raises:
        ValueError: a picture cannot be read.
    """
    from jaxplain.data.ilsvrc import seen_boxes

    preprocessing = model.preprocessing
    assert preprocessing is not None
    images = np.zeros((chunk, *preprocessing.input_shape), np.float32)
    targets = np.zeros(chunk, np.int32)
    boxes = []
    for row, (index, entry) in enumerate(zip(order, entries, strict=True)):
        picture = data.picture(int(index))
        images[row], targets[row] = preprocessing(picture), entry.label
        boxes.append(seen_boxes(entry.boxes, picture.shape[:2], preprocessing))
    last = len(entries) - 1
    images[last + 1 :], targets[last + 1 :] = images[last], targets[last]
    return Task(model, images, targets, request.seed, chunk, request.layer), boxes


def measured(one: Kept, task: Task, boxes: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return what is kept of a batch.

    Raises:
        ValueError: a map or an answer that is not finite.
    """
    from jaxplain.evaluation.baselines import centre_map
    from jaxplain.evaluation.thresholds import GRIDS, box_overlaps

    count, (height, width) = len(boxes), task.images.shape[1:3]
    if one.work["method"] == ANSWERS:
        chances = facts.probabilities(task.model, task.images, chunk=task.size)[:count]
        top = one.arrays[ANSWERS].shape[1]
        return {ANSWERS: np.argsort(-chances, 1, kind="stable")[:, :top]}
    if one.method is None:
        maps = np.repeat(np.asarray(centre_map(height, width))[None], count, 0)
    else:
        maps = run_batch(one.method, task, 0).fields["heatmaps"][:count].astype(np.float32)
        if not np.isfinite(maps).all():
            raise ValueError(
                f"method {one.method.name!r} gave maps that are not finite; are the weights finite?"
            )
    return {
        kind: box_overlaps(maps, boxes, grid, relative_to=kind, part=PARTS[kind])
        for kind, grid in GRIDS.items()
    }


def errors_of(
    kept: Sequence[Kept], labels: np.ndarray, tuning: int
) -> tuple[list[Line], dict[int, "Estimate"]]:
    """Return every method's errors with each rule, and the network's own, by guesses."""
    from jaxplain.evaluation.localization import error_interval, localization_errors
    from jaxplain.evaluation.thresholds import ENOUGH, GRIDS, choose_threshold

    answers, *others = kept
    guesses, judged = answers.arrays[ANSWERS][tuning:], labels[tuning:]
    tops = (1, guesses.shape[1]) if guesses.shape[1] > 1 else (1,)
    lines = []
    for one in others:
        for kind, grid in GRIDS.items():
            fits = one.arrays[kind]
            rule = choose_threshold(fits[:tuning], grid, relative_to=kind, part=PARTS[kind]).rule
            fit = fits[tuning:, grid.index(rule.threshold)]
            hits = localization_errors(fit, guesses, judged).hits
            lines.append(
                Line(
                    one.work["method"],
                    one.title,
                    kind,
                    rule.threshold,
                    {top: error_interval(~hits[:, top - 1]) for top in tops},
                    error_interval(fit < ENOUGH),
                )
            )
    wrong = guesses != judged[:, None]
    return lines, {top: error_interval(wrong[:, :top].all(1)) for top in tops}
