"""`jaxplain evaluate`: every method on the same pictures, method by method, each kept once done."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli import compilation, facts
from jaxplain.cli.console import note, progress, say, show_table, table
from jaxplain.cli.explain import load
from jaxplain.cli.kept import digest_of, kept_path, versions
from jaxplain.cli.maps import Task, run_batch
from jaxplain.cli.request import check_weights, choose_methods
from jaxplain.names import unknown
from jaxplain.outputs import check_writable, replacing

if TYPE_CHECKING:
    from jaxplain.evaluation.leaderboard import Leaderboard, Measured, Standing
    from jaxplain.methods import Method
    from jaxplain.model import Model

COUNT, COSTLY = 204, 12
"""Pictures for a method, and for one that takes hundreds of passes a picture."""

CHUNK = 12
FORMAT = "jaxplain.leaderboard.method/1"
KIND = "an8flower/"
YARDSTICKS = {"centre": "Centre of the image", "random": "Random map"}


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `jaxplain evaluate --help`."""

    data: str
    model: str | None
    weights: str | None
    methods: str
    count: int | None
    costly: int | None
    out: Path | None
    seed: int
    chunk: int | None
    cache: bool


@dataclass(frozen=True)
class Pictures:
    """Held-out pictures with their evidence, as the network takes them; `jaxplain.data.an8flower`.

    Attributes:
        images: (N, H, W, C) floats.
        labels: (N,) true classes.
        masks: (N, H, W) the evidence.
        boxes: (N, 4) around it.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray

    def first(self, count: int) -> "Pictures":
        """Return the first few."""
        fields = dataclasses.fields(self)
        return Pictures(*(getattr(self, field.name)[:count] for field in fields))


@dataclass(frozen=True)
class Done:
    """What is kept of a method: everything but its maps.

    Attributes:
        measured: its measures, picture by picture; None if it failed.
        seconds: a picture, of each batch after the first, which compiles.
        error: why it failed.
    """

    measured: "Measured | None"
    seconds: Sequence[float] = ()
    error: str | None = None


def run(request: Request) -> None:
    """Measure what is not measured yet; write the table as Markdown, JSON and a page.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, named.
    """
    import jax

    from jaxplain.evaluation.leaderboard import STEPS, Leaderboard, ranked, standing
    from jaxplain.evaluation.pointing import scaled_tolerance
    from jaxplain.methods import METHODS
    from jaxplain.report.leaderboard import render_leaderboard

    variant = find_data(request.data)
    name = request.model or f"an8flower-{variant.replace('_', '-')}"
    folder = request.out or Path(f"leaderboard-{variant}")
    files = {kind: folder / f"leaderboard.{kind}" for kind in ("md", "json", "html")}
    for path in (*files.values(), folder / "kept" / "method.json"):
        check_writable(path)
    chosen = choose(request.methods, METHODS)
    check_weights(name, request.weights)
    compilation.keep(option=request.cache)
    model = load(name, request.weights)
    check_classes(model, variant)
    count = request.count or COUNT
    costly = min(count, request.costly or request.count or COSTLY)
    pictures = held_out(model, variant, count)
    right = facts.probabilities(model, pictures.images, chunk=request.chunk or CHUNK).argmax(1)
    height, width = pictures.masks.shape[1:]
    digest = digest_of(model)
    note(
        f"{request.data}: {len(chosen)} methods on {count} pictures, those of hundreds of passes a "
        f"picture on {costly}; {folder / 'kept'} keeps what is done"
    )

    lines: list[Standing] = []
    entries: list[Method | str] = [*chosen, *YARDSTICKS]
    counts = [costly if costs(entry) else count for entry in entries]
    chunks = [request.chunk or max(1, min(CHUNK, number // 4)) for number in counts]
    steps = [-(-number // chunk) for number, chunk in zip(counts, chunks, strict=True)]
    with progress(sum(steps)) as advance:
        for entry, number, chunk, batches in zip(entries, counts, chunks, steps, strict=True):
            title = YARDSTICKS[entry] if isinstance(entry, str) else entry.title
            options = {} if isinstance(entry, str) else dict(entry.options)
            work = {
                "method": entry if isinstance(entry, str) else entry.name,
                "options": {key: str(value) for key, value in options.items()},
                "data": request.data,
                "model": model.name,
                "weights": digest,
                "pictures": number,
                "chunk": chunk,
                "seed": request.seed,
                "steps": STEPS,
                **versions(),
            }
            path = kept_path(folder, work)
            done = read_kept(path, work)
            if done is None:
                task = pictures.first(number)
                try:
                    done = measure(entry, model, task, seed=request.seed, chunk=chunk, tick=advance)
                except KeyboardInterrupt:
                    made = f"{len(lines)} of {len(entries)} lines of the table"
                    note(f"{made} are in {folder / 'kept'}; the same command goes on")
                    raise
                write_kept(path, work, done)
            else:
                advance(f"{title}: kept", batches)
            if done.error is not None:
                note(f"{title} left out: {done.error}")
            lines.append(line_of(entry, done, pictures.labels[:number], standing, request.seed))
    if all(line.error is not None for line in lines if not line.baseline):
        raise ValueError(f"no method can explain model {model.name!r}: {lines[0].error}")
    board = Leaderboard(
        data=request.data,
        model=model.name,
        digest=digest,
        seed=request.seed,
        accuracy=float((right == pictures.labels).mean()),
        tolerance=float(scaled_tolerance((height, width))),
        standings=ranked(lines),
        facts={**facts.of_the_run(seed=request.seed), "Backend": jax.default_backend()},
    )
    contents = (board.to_markdown(), board.to_json(), render_leaderboard(board))
    for path, content in zip(files.values(), contents, strict=True):
        with replacing(path) as part:
            part.write_text(content, encoding="utf-8")
    show(board)
    for path in files.values():
        say(path)


def find_data(data: str) -> str:
    """Return the variant of the flowers that is meant.

    Raises:
        ValueError: other data; the nearest are named.

    Example:
        >>> find_data("an8flower/single_6c")
        'single_6c'
    """
    from jaxplain.data.an8flower import VARIANTS

    known = [f"{KIND}{variant}" for variant in VARIANTS]
    if data not in known:
        raise ValueError(
            f"{unknown('data', data, known)}; only pictures whose evidence is known can be scored"
        )
    return data.removeprefix(KIND)


def choose(text: str, known: Mapping[str, "Method"]) -> list["Method"]:
    """Return the methods that are meant, those of hundreds of passes a picture last.

    Raises:
        ValueError: as `choose_methods`.
    """
    found = list(known.values()) if text.strip() == "all" else choose_methods(text, known)
    return sorted(found, key=costs)


def costs(entry: "Method | str") -> bool:
    """Say whether something takes hundreds of passes a picture."""
    return not isinstance(entry, str) and entry.costly


def check_classes(model: "Model", variant: str) -> None:
    """Raise ValueError unless a model reads pictures and has the classes of a variant."""
    from jaxplain.data.an8flower import find_variant

    classes = find_variant(variant).class_names
    if model.preprocessing is None:
        raise ValueError(f"model {model.name!r} has no preprocessing; it cannot read pictures")
    if model.class_names != classes:
        raise ValueError(
            f"model {model.name!r} knows {len(model.class_names)} classes, not those of "
            f"{KIND}{variant}: {', '.join(classes)}"
        )


def held_out(model: "Model", variant: str, count: int) -> Pictures:
    """Return the first pictures of the test split, the classes in turn."""
    from jaxplain.data.an8flower import dataset_arrays

    assert model.preprocessing is not None
    height, width = model.preprocessing.input_shape[:2]
    if height != width:
        raise ValueError(
            f"model {model.name!r} takes {height} × {width} pixels; flowers are square"
        )
    found = dataset_arrays(variant, "test", count, size=height)
    images = np.asarray(model.preprocessing.batch(list(found.images)))
    return Pictures(images, found.labels, found.masks, found.boxes)


def measure(
    entry: "Method | str",
    model: "Model",
    pictures: Pictures,
    *,
    seed: int,
    chunk: int,
    tick: Callable[[str], None],
) -> Done:
    """Explain the pictures with one method, and measure its maps batch by batch."""
    from jaxplain.evaluation.leaderboard import joined, measure_maps

    count = len(pictures.labels)
    task = Task(model, pictures.images, pictures.labels.astype(np.int32), seed, chunk)
    parts, seconds = [], []
    try:
        for number, (title, maps, took) in enumerate(batches(entry, task)):
            # Whole batches, so that the measures are compiled once; copies at the end are dropped.
            rows = np.minimum(np.arange(number * task.size, (number + 1) * task.size), count - 1)
            found = measure_maps(
                model,
                pictures.images[rows],
                task.targets[rows],
                maps[np.minimum(np.arange(task.size), len(maps) - 1)],
                pictures.masks[rows],
                pictures.boxes[rows],
            )
            parts.append(kept_rows(found, len(maps)))
            if number and took is not None:
                seconds.append(took / task.size)
            tick(title)
        return Done(joined(parts), seconds)
    except ValueError as error:
        return Done(None, error=str(error))


def batches(entry: "Method | str", task: Task) -> Iterator[tuple[str, np.ndarray, float | None]]:
    """Yield (title, maps, seconds) of each batch; of maps with a sign, the evidence in favour."""
    import jax

    from jaxplain.evaluation.baselines import centre_map, random_maps

    if isinstance(entry, str):
        height, width = task.images.shape[1:3]
        for number in range(task.batches):
            kept = min(task.size, len(task.images) - number * task.size)
            key = jax.random.fold_in(jax.random.key(task.seed), number)
            maps = (
                np.repeat(np.asarray(centre_map(height, width))[None], kept, 0)
                if entry == "centre"
                else np.asarray(random_maps(key, kept, height, width))
            )
            yield YARDSTICKS[entry], maps, None
        return
    bound = entry.bound(task.model, entry.importance)
    for number in range(task.batches):
        batch = run_batch(bound, task, number)
        maps = batch.fields["heatmaps"]
        yield entry.title, np.maximum(maps, 0) if entry.signed else maps, batch.seconds


def kept_rows(found: "Measured", count: int) -> "Measured":
    """Return the first pictures' measures."""
    return type(found)(
        {name: values[:count] for name, values in found.values.items()},
        {name: values[:count] for name, values in found.curves.items()},
        found.overlaps[:count],
    )


def line_of(
    entry: "Method | str",
    done: Done,
    labels: np.ndarray,
    standing: Callable[..., "Standing"],
    seed: int,
) -> "Standing":
    """Return a method's line of the table."""
    import jax

    from jaxplain.evaluation.leaderboard import Standing

    if isinstance(entry, str):
        name, title = entry, YARDSTICKS[entry]
        traits: dict[str, Any] = {"baseline": True}
    else:
        name, title = entry.name, entry.title
        options = ", ".join(f"{key} = {value}" for key, value in entry.options)
        traits = {"costly": entry.costly, "options": options, "reference": entry.reference}
    if done.measured is None:
        return Standing(name, title, len(labels), {}, error=done.error, **traits)
    key = jax.random.key(seed)
    return standing(name, title, done.measured, labels, done.seconds, key=key, **traits)


def write_kept(path: Path, work: Mapping[str, Any], done: Done) -> None:
    """Keep a method's figures; the file appears whole or not at all."""
    measured = None
    if done.measured is not None:
        fields = done.measured._asdict()
        measured = {
            "values": {name: listed(each) for name, each in fields["values"].items()},
            "curves": {name: listed(each) for name, each in fields["curves"].items()},
            "overlaps": listed(fields["overlaps"]),
        }
    content = {
        "format": FORMAT,
        "work": dict(work),
        "measured": measured,
        "seconds": list(done.seconds),
        "error": done.error,
    }
    with replacing(path) as part:
        part.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def read_kept(path: Path, work: Mapping[str, Any]) -> Done | None:
    """Return a method's figures, or None where there are none, or none that are whole."""
    from jaxplain.evaluation.leaderboard import Measured

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["work"] != dict(work):
            return None
        found = content["measured"]
        measured = None
        if found is not None:
            measured = Measured(
                {name: np.array(each, np.float64) for name, each in found["values"].items()},
                {name: np.array(each, np.float64) for name, each in found["curves"].items()},
                np.array(found["overlaps"], np.float64),
            )
        return Done(measured, tuple(content["seconds"]), content["error"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def listed(values: np.ndarray) -> list[Any]:
    """Return an array as lists, with None for NaN, which JSON lacks.

    Example:
        >>> listed(np.array([[1.0, np.nan]]))
        [[1.0, None]]
    """
    found = values.astype(object)
    found[np.isnan(values)] = None
    return found.tolist()


def show(board: "Leaderboard") -> None:
    """Print the table."""
    from jaxplain.evaluation.leaderboard import MEASURES, shown

    heads = [(f"{m.title} {'↑' if m.higher else '↓'}", "right") for m in MEASURES]
    rows = table(board.data, [("Method", "left"), *heads, ("Pictures", "right")])
    for line in board.standings:
        if line.error is not None:
            continue
        found = [line.estimates.get(measure.name) for measure in MEASURES]
        cells = [
            "–" if each is None or each.value is None else shown(measure, each.value)
            for measure, each in zip(MEASURES, found, strict=True)
        ]
        style = "dim" if line.baseline else None
        rows.add_row(line.title, *cells, str(line.pictures), style=style)
    show_table(rows)
