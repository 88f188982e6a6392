"""`jaxplain explain`: a classifier's answers to the user's own pictures."""

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli import compilation, facts
from jaxplain.cli.console import note, one_line, progress, say, show_table, table
from jaxplain.cli.maps import Maps, Task, run_methods
from jaxplain.cli.pictures import Pictures, read_pictures
from jaxplain.cli.request import (
    Request,
    asked_for_all,
    check_layer,
    check_outputs,
    check_weights,
    choose_methods,
    described,
    left_out,
    parse_target,
    pick_targets,
)
from jaxplain.outputs import replacing
from jaxplain.report import Case, Explained, Report, Section, percent, render_report

if TYPE_CHECKING:
    from jaxplain.methods import Method
    from jaxplain.model import Model

CHUNK = 16

FAMILIES = {"chip": "chip", "features": "interpretation", "masker": "masker"}
"""What was fitted, as the options call it -> the methods that need it."""

DEFAULT_MODEL = "an8flower-single-6c"
FOR_PHOTOGRAPHS = "--model vgg16 --weights imagenet"


def run(request: Request) -> None:
    """Check everything, explain, write.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, named.
    """
    from jaxplain.methods import METHODS
    from jaxplain.models import parameter_count

    began = time.perf_counter()
    check_outputs(request)
    chosen = choose_methods(request.methods, METHODS)
    all_asked = asked_for_all(request.methods)
    name = request.model or DEFAULT_MODEL
    check_weights(name, request.weights)
    compilation.keep(option=request.cache)
    model = load(name, request.weights)
    check_layer(model, request.layer, chosen)
    chosen = with_fitted(chosen, model, request.fitted)
    wanted = parse_target(request.target, model.class_names)
    pictures = read_pictures(request.pictures, model)
    if request.model is None:
        note(
            f"no --model given: {name} answers, which knows {', '.join(model.class_names)} and "
            f"nothing else; for photographs, add {FOR_PHOTOGRAPHS}"
        )

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
        forgiving=all_asked,
    )
    if all_asked:
        named = [method.name for method in chosen]
        skipped |= left_out(method for method in METHODS.values() if method.name not in named)
    count = len(pictures.names)
    section = Section(
        title=model.name or name,
        description=(
            ("Your picture" if count == 1 else f"Your pictures, {count} in all")
            + f", explained for {described(request.target, model)}."
        ),
        class_names=model.class_names,
        methods=[
            facts.entry(METHODS[key], maps, METHODS[key].layer_read(model, request.layer))
            for key, maps in found.items()
        ],
        cases=make_cases(pictures, chances, targets, found),
        facts={
            "Parameters": f"{parameter_count(model):,}",
            "Input": " × ".join(map(str, pictures.images.shape[2:0:-1])) + " pixels",
        },
        skipped=skipped,
        caution=caution(name, request.weights),
    )
    lead = (
        "Each method below answers the same question in its own way: which pixels made the "
        "classifier say so?"
    )
    made = facts.of_the_run(seed=request.seed, seconds=time.perf_counter() - began)
    page = render_report(Report("What did the classifier look at?", lead, [section], made))
    # The files appear together: each takes its name once both are written.
    with contextlib.ExitStack() as files:
        files.enter_context(replacing(request.out)).write_text(page, encoding="utf-8")
        if request.npz is not None:
            part = files.enter_context(replacing(request.npz))
            write_npz(part, pictures.names, model, chances, targets, found)
    show_answers(pictures.names, model, chances, targets)
    for path in (request.out, request.npz):
        if path is not None:
            say(path)


def with_fitted(
    chosen: Sequence["Method"], model: "Model", files: Mapping[str, Path | None]
) -> Sequence["Method"]:
    """Return the methods, those that need something fitted with what is in the user's files.

    Args:
        chosen: the methods.
        model: what they explain.
        files: family of methods -> file, or None for what ships with the model.

    Raises:
        ValueError, OSError: a file cannot be read, is for another model, or no method needs it.
    """
    from jaxplain import methods

    for name, path in files.items():
        if path is None:
            continue
        family = getattr(methods, FAMILIES[name])
        found = family.load(path)
        family.check_model(model, found, f"{path} is for other weights")
        needing = [method.name for method in chosen if method.fit is family.shipped]
        if not needing:
            raise ValueError(
                f"--{name} {path} has no meaning for "
                f"{', '.join(method.name for method in chosen)}: none needs it"
            )
        chosen = [m.bound(model, found) if m.name in needing else m for m in chosen]
    return chosen


def load(name: str, weights: str | None) -> "Model":
    """Return the network; what is to be said about its weights is said in a line each.

    Raises:
        ValueError, OSError: as `load_model`.
    """
    from jaxplain.models import load_model

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        model = load_model(name, weights=weights)
    for warning in told:
        note(warning.message)
    return model


def caution(name: str, weights: str | None) -> str:
    """Return what the report says first of a network that knows little, or nothing."""
    from jaxplain.models import MODELS, RANDOM, SHIPPED

    if weights == RANDOM:
        return "The weights of this network are random: it has learned nothing, and knows nothing."
    if name not in MODELS or SHIPPED not in MODELS[name].weights or weights not in (None, SHIPPED):
        return ""
    return (
        f"This network was trained on one kind of picture alone ({MODELS[name].description}). "
        "Shown anything else, it still answers with one of its classes, and may be quite sure of "
        "it; such an answer means nothing, and a map of it shows only where it came from. For "
        f"photographs, take a network that knows them: jaxplain explain PHOTO {FOR_PHOTOGRAPHS}."
    )


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
    """Explain the images with every method, showing how far it is.

    Returns:
        Method name -> maps, and title -> reason of methods that cannot explain this network. Those
        are left out only if `forgiving`, for nobody asked for them by name.

    Raises:
        ValueError: a method refuses and not `forgiving`, or no method is left.
    """
    task = Task(model, images, targets, seed, chunk, layer)
    with progress(len(chosen) * task.batches) as advance:
        found, skipped = run_methods(chosen, task, forgiving=forgiving, tick=advance)
    tell_skipped(model, found, skipped)
    return found, skipped


def tell_skipped(model: "Model", found: Mapping[str, Maps], skipped: Mapping[str, str]) -> None:
    """Say which methods were left out, and why.

    Raises:
        ValueError: no method is left.
    """
    for title, reason in skipped.items():
        note(f"{title} left out: {reason}")
    if not found:
        raise ValueError(
            f"no method can explain model {model.name!r}: {'; '.join(skipped.values())}"
        )


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
            entered=pictures.entered[i],
            whole=pictures.wholes[i],
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
    # None of objects: there is nothing that NumPy would pickle.
    arrays: dict[str, Any] = {
        "pictures": np.array(names, np.str_),
        "class_names": np.array(model.class_names, np.str_),
        "probabilities": chances,
        "targets": targets,
    }
    for name, maps in found.items():
        for kind, values in (("maps", maps.heatmaps), ("stderr", maps.stderr), ("gap", maps.gap)):
            if values is not None:
                arrays[f"{kind}/{name}"] = values.reshape(*shape, *values.shape[1:])
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


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
