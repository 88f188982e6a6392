"""`jaxplain explain`: a classifier's answers to the user's own pictures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxplain.cli import compilation, facts
from jaxplain.cli.console import note, one_line, progress, say, show_table, table
from jaxplain.cli.maps import Maps, Task, run_methods
from jaxplain.names import unknown
from jaxplain.outputs import check_writable, replacing
from jaxplain.report import LARGEST_PICTURE, Case, Explained, Report, Section, percent, write_report

if TYPE_CHECKING:
    from jaxplain.methods import Method
    from jaxplain.model import Model

CHUNK = 16


@dataclass(frozen=True)
class Request:
    """What the user asked for; see `jaxplain explain --help`."""

    pictures: Sequence[Path]
    model: str
    weights: str | None
    methods: str
    target: str
    layer: str | None
    out: Path
    npz: Path | None
    seed: int
    chunk: int | None
    cache: bool


@dataclass(frozen=True)
class Pictures:
    """The user's pictures, read.

    Attributes:
        names: what to call them: their file names, with the folder where two are equal.
        shown: the part of each that the network sees, uint8, no larger than the report shows.
        images: (N, H, W, C) inputs of the network.
    """

    names: Sequence[str]
    shown: Sequence[np.ndarray]
    images: np.ndarray


def run(request: Request) -> None:
    """Check everything, explain, write.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, named.
    """
    from jaxplain.methods import METHODS
    from jaxplain.models import load_model, parameter_count

    began = time.perf_counter()
    check_outputs(request)
    chosen = choose_methods(request.methods, METHODS)
    compilation.keep(option=request.cache)
    model = load_model(request.model, weights=request.weights)
    check_layer(model, request.layer, chosen)
    wanted = parse_target(request.target, model.class_names)
    pictures = read_pictures(request.pictures, model)

    chunk = request.chunk or CHUNK
    chances = facts.probabilities(model, pictures.images, chunk=chunk)
    targets = pick_targets(wanted, chances)
    per_picture = targets.shape[1]
    found, skipped = explain_all(
        chosen,
        model,
        np.repeat(pictures.images, per_picture, axis=0),
        targets.reshape(-1),
        seed=request.seed,
        chunk=chunk,
        layer=request.layer,
        forgiving=request.methods.strip() == "all",
    )
    if request.npz is not None:
        write_npz(request.npz, pictures.names, model, chances, targets, found)
    section = Section(
        title=model.name or request.model,
        description=(
            f"Your pictures, {len(pictures.names)} in all, explained for "
            f"{described(request.target, model)}."
        ),
        class_names=model.class_names,
        methods=[
            facts.entry(METHODS[name], maps, METHODS[name].layer_read(model, request.layer))
            for name, maps in found.items()
        ],
        cases=make_cases(pictures, chances, targets, found),
        facts={
            "Parameters": f"{parameter_count(model):,}",
            "Classes": str(chances.shape[1]),
        },
        skipped=skipped,
    )
    lead = (
        "Each method below answers the same question in its own way: which pixels made the "
        "classifier say so?"
    )
    made = facts.of_the_run(seed=request.seed, seconds=time.perf_counter() - began)
    write_report(request.out, Report("What did the classifier look at?", lead, [section], made))
    show_answers(pictures.names, model, chances, targets)
    for path in (request.out, request.npz):
        if path is not None:
            say(path)


def check_outputs(request: Request) -> None:
    """Raise unless the outputs can be written, are two files, and replace none that is read.

    Raises:
        ValueError: two names of one file; links count as what they lead to.
        OSError: a file cannot be written.
    """
    read = {path.resolve(): "one of the pictures" for path in request.pictures}
    if request.weights is not None and Path(request.weights).exists():
        read[Path(request.weights).resolve()] = "the file of weights"
    for option, path in (("--out", request.out), ("--npz", request.npz)):
        if path is None:
            continue
        check_writable(path)
        if path.resolve() in read:
            what = read[path.resolve()]
            raise ValueError(f"{option} {str(path)!r} is {what}, which it would replace")
    if request.npz is not None and request.npz.resolve() == request.out.resolve():
        raise ValueError(f"--npz and --out are the same file, {str(request.out)!r}; expected two")


def choose_methods(text: str, known: Mapping[str, "Method"]) -> list["Method"]:
    """Return the methods that `text` names: "all", or names with commas between.

    Raises:
        ValueError: an unknown name, or none at all.
    """
    if text.strip() == "all":
        return list(known.values())
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("--methods names none; expected all, or names with commas between")
    for name in names:
        if name not in known:
            raise ValueError(unknown("method", name, known))
    return [known[name] for name in names]


def check_layer(model: "Model", layer: str | None, chosen: Sequence["Method"]) -> None:
    """Raise ValueError for a layer that the model lacks, or that none of the methods takes."""
    if layer is None:
        return
    names = [known.name for known in model.layers()]
    if layer not in names:
        raise ValueError(unknown("layer", layer, names))
    if not any(method.layered for method in chosen):
        raise ValueError(
            f"--layer {layer} has no meaning for {', '.join(m.name for m in chosen)}: "
            "none explains a layer"
        )


def parse_target(text: str, class_names: Sequence[str]) -> int | str:
    """Return a class number, "top1" or "top5".

    A class name goes before a number, so that a network of digits can be asked for "7".

    Raises:
        ValueError: no such class.
    """
    text = text.strip()
    if text in ("top1", "top5"):
        return text
    if text in class_names:
        return list(class_names).index(text)
    if text.isdecimal() and (not class_names or int(text) < len(class_names)):
        return int(text)
    raise ValueError(unknown("class", text, [*class_names, "top1", "top5"]))


def pick_targets(wanted: int | str, chances: np.ndarray) -> np.ndarray:
    """Return the classes to explain, int32 (N, T), likeliest first.

    Raises:
        ValueError: a class that the network does not have.
    """
    count, classes = chances.shape
    if isinstance(wanted, int):
        if wanted >= classes:
            raise ValueError(f"class {wanted} is unknown; the model has classes 0 to {classes - 1}")
        return np.full((count, 1), wanted, np.int32)
    top = 1 if wanted == "top1" else min(5, classes)
    return np.argsort(-chances, axis=1, kind="stable")[:, :top].astype(np.int32)


def read_pictures(paths: Sequence[Path], model: "Model") -> Pictures:
    """Read every picture, keeping of each only what the network and the report need.

    Raises:
        ValueError, OSError: a file that is not a picture, or a model that does not say how to read
            one.
    """
    from PIL import Image

    from jaxplain.data.images import load_image

    if model.preprocessing is None:
        raise ValueError(f"model {model.name!r} has no preprocessing; it cannot read picture files")
    images, shown = [], []
    with progress(len(paths)) as advance:
        for path in paths:
            picture = load_image(path)
            images.append(model.preprocessing(picture))
            top, left, height, width = model.preprocessing.region(
                (picture.shape[0], picture.shape[1])
            )
            seen = Image.fromarray(picture[top : top + height, left : left + width])
            if model.preprocessing.channels == 1:
                seen = seen.convert("L")
            seen.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
            shown.append(np.asarray(seen))
            advance(f"reading {path.name}")
    plain = [path.name for path in paths]
    names = [path.name if plain.count(path.name) == 1 else str(path) for path in paths]
    return Pictures(names, shown, np.stack(images))


def explain_all(
    chosen: Sequence["Method"],
    model: "Model",
    images: np.ndarray,
    targets: np.ndarray,
    *,
    seed: int,
    chunk: int,
    layer: str | None,
    forgiving: bool,
) -> tuple[dict[str, Maps], dict[str, str]]:
    """Explain the images with every method.

    Returns:
        Method name -> maps, and title -> reason of methods that cannot explain this network. Those
        are left out only if `forgiving`, for nobody asked for them by name.

    Raises:
        ValueError: a method refuses and not `forgiving`, or no method is left.
    """
    task = Task(model, images, targets, seed, chunk, layer)
    with progress(len(chosen) * task.batches) as advance:
        found, skipped = run_methods(chosen, task, forgiving=forgiving, tick=advance)
    for title, reason in skipped.items():
        note(f"{title} left out: {reason}")
    if not found:
        raise ValueError(
            f"no method can explain model {model.name!r}: {'; '.join(skipped.values())}"
        )
    return found, skipped


def make_cases(
    pictures: Pictures, chances: np.ndarray, targets: np.ndarray, found: Mapping[str, Maps]
) -> list[Case]:
    """Return the report's cases: map row i·T + t of each method is target t of picture i."""
    per_picture = targets.shape[1]

    def explained(picture: int, place: int) -> Explained:
        row = picture * per_picture + place
        gaps = {name: maps.gap for name, maps in found.items() if maps.gap is not None}
        return Explained(
            target=int(targets[picture, place]),
            heatmaps={name: maps.heatmaps[row] for name, maps in found.items()},
            notes={name: f"completeness gap {gap[row]:.2g}" for name, gap in gaps.items()},
        )

    return [
        Case(
            name=name,
            picture=pictures.shown[i],
            probabilities=chances[i],
            explained=[explained(i, place) for place in range(per_picture)],
        )
        for i, name in enumerate(pictures.names)
    ]


def write_npz(
    path: Path,
    names: Sequence[str],
    model: "Model",
    chances: np.ndarray,
    targets: np.ndarray,
    found: Mapping[str, Maps],
) -> None:
    """Write the maps as arrays, readable without pickle.

    Keys: pictures (N,), class_names, probabilities (N, classes), targets (N, T), and for each
        method maps/NAME (N, T, H, W), with stderr/NAME of the same shape and gap/NAME (N, T) where
        the method gives them.
    """
    shape = targets.shape
    arrays = {
        "pictures": np.array(names, np.str_),
        "class_names": np.array(model.class_names, np.str_),
        "probabilities": chances,
        "targets": targets,
    }
    for name, maps in found.items():
        for kind, values in (("maps", maps.heatmaps), ("stderr", maps.stderr), ("gap", maps.gap)):
            if values is not None:
                arrays[f"{kind}/{name}"] = values.reshape(*shape, *values.shape[1:])
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def described(target: str, model: "Model") -> str:
    """Return the target in words."""
    if target == "top1":
        return "the class that the network predicts"
    if target == "top5":
        return "the five classes that the network finds likeliest"
    number = parse_target(target, model.class_names)
    name = model.class_names[int(number)] if model.class_names else number
    return f"class “{name}”"


def show_answers(
    names: Sequence[str], model: "Model", chances: np.ndarray, targets: np.ndarray
) -> None:
    """Print what the network answered, a line a picture."""
    from rich.text import Text

    rows = table(
        "",
        [
            ("picture", "left"),
            ("prediction", "left"),
            ("probability", "right"),
            ("explained", "left"),
        ],
    )
    for name, row, chosen in zip(names, chances, targets, strict=True):
        best = int(row.argmax())

        def label(index: int) -> str:
            return one_line(model.class_names[index]) if model.class_names else str(index)

        explained = ", ".join(label(int(index)) for index in chosen)
        rows.add_row(
            Text(one_line(name)), Text(label(best)), percent(float(row[best])), Text(explained)
        )
    show_table(rows)
