"""`jaxplain demo`: every method on pictures whose evidence is known, and on real handwriting."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli import compilation, facts
from jaxplain.cli.console import note, progress, say
from jaxplain.cli.explain import tell_skipped
from jaxplain.cli.maps import Maps, Task, run_methods
from jaxplain.cli.request import left_out
from jaxplain.cli.scoring import score, show_scores
from jaxplain.outputs import check_writable
from jaxplain.report import (
    Case,
    Explained,
    MethodEntry,
    Report,
    Scores,
    Section,
    write_report,
)

if TYPE_CHECKING:
    from jaxplain.methods import Method
    from jaxplain.model import Model

CHUNK = 17
SHOWN = 4
"""Pictures of each network on the page."""

WIDEST = 12
"""Classes of the flower network that has most."""

QUICK: Mapping[str, Mapping[str, int | str]] = {
    "smooth_grad": {"samples": 3},
    "integrated_gradients": {"steps": 4, "rule": "midpoint"},
    "occlusion": {"window": 32, "stride": 27, "chunk": 4},
}
"""Options for the flowers; the page says so. Less would be seen, more would be waited for."""


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """A network and what it is shown.

    Attributes:
        model: name of the network.
        title: heading of its section.
        description: what the pictures are, and what to look for.
        variant: of the rendered flowers; None for handwritten digits.
    """

    model: str
    title: str
    description: str
    variant: str | None


EXHIBITS = (
    Exhibit(
        "an8flower-single-6c",
        "Flowers: the colour of the petals",
        "The class is the colour of the petals, one of six. Pot, centre, background and clutter "
        "wear the same colours by chance, so a network that is right must have found the petals, "
        "and a good map shows it: it fills the white outline.",
        "single_6c",
    ),
    Exhibit(
        "an8flower-double-12c",
        "Flowers: petals or stem",
        "Either the petals or the stem wear a colour; colour and part together are the class, one "
        "of twelve. A good map moves from the petals to the stem when the class does.",
        "double_12c",
    ),
    Exhibit(
        "digits",
        "Handwritten digits",
        "Real handwriting, scanned at 8 × 8 and enlarged. Nobody knows which strokes ought to "
        "decide, so nothing is scored: look for the strokes, and for the gaps, that tell a digit "
        "from its neighbours.",
        None,
    ),
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """Held-out pictures.

    Attributes:
        pictures: uint8 (N, h, w, 3) or (N, h, w).
        labels: (N,) true classes.
        masks: (N, h, w) known evidence, if any.
        noun: what one of them is called.
    """

    pictures: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    noun: str


def run(*, out: Path, flowers: int, seed: int, chunk: int | None, cache: bool) -> None:
    """Explain, score, write the report and print the table.

    Args:
        out: the report.
        flowers: flowers to score on, half for each of the two networks.
        seed: of everything random.
        chunk: pictures explained at once.
        cache: keep compiled programs.

    Raises:
        OSError: `out` cannot be written.
    """
    began = time.perf_counter()
    check_writable(out)
    compilation.keep(option=cache)
    first, second, small = EXHIBITS
    chunk = chunk or CHUNK
    explain = functools.partial(explain_exhibit, seed=seed, chunk=chunk)
    steps = len(affordable()) * -(-flowers // 2 // chunk)
    # What one network's methods wait for, Python at times and the processor at others, leaves room
    # for something else: the digits and the scores of the first flowers stand beside the second,
    # whose methods are traced by then.
    with ThreadPoolExecutor(1) as drawing, ThreadPoolExecutor(2) as aside:
        drawn = [drawing.submit(held_out, exhibit, flowers) for exhibit in EXHIBITS]
        with progress(steps) as advance:
            seen = [explain(first, drawn[0], tick=advance)]
        last = aside.submit(explain, small, drawn[2])
        scoring = aside.submit(score_exhibit, seen[0], seed=seed)
        beside: list[Future[Any]] = [last, scoring]
        with progress(steps) as advance:
            seen.append(explain(second, drawn[1], tick=advance, alone=lambda: wait(beside)))
    with progress(len(seen[1].found)) as advance:
        scored = [scoring.result(), score_exhibit(seen[1], seed=seed, tick=advance), NO_SCORES]
    seen.append(last.result())
    sections = [make_section(*each) for each in zip(seen, scored, strict=True)]
    made = facts.of_the_run(seed=seed, seconds=time.perf_counter() - began)
    lead = (
        "Three small classifiers, explained by every method of jaxplain that needs no hundreds of "
        "passes, on pictures that they had never seen: two of rendered flowers, for which the "
        "evidence is known to the pixel, and one of real handwriting."
    )
    write_report(out, Report("What did the classifier look at?", lead, sections, made))
    for section in sections:
        if section.scores is not None:
            show_scores(section, section.scores)
    say(out)


def held_out(exhibit: Exhibit, flowers: int) -> Shown:
    """Return pictures of the test split, the classes in turn."""
    if exhibit.variant is not None:
        from jaxplain.data.an8flower import dataset_arrays

        count = -(-flowers // 2)
        found = dataset_arrays(exhibit.variant, "test", count)
        return Shown(found.images, found.labels, found.masks, "flower")
    from jaxplain.data.digits import digits as handwritten

    test = handwritten("test")
    # The second of each class: the first of some are hardly legible at 8 x 8.
    rows = np.array([np.flatnonzero(test.labels == label)[1] for label in spread(10)])
    return Shown(test.images[rows, ..., 0], test.labels[rows], None, "digit")


@dataclasses.dataclass(frozen=True)
class Seen:
    """A network's pictures, explained.

    Attributes:
        exhibit: the network.
        model: the same, loaded.
        methods: name -> method, with the options that it had.
        shown: the pictures.
        chances: (N, classes) the probabilities that it gave.
        found: method name -> maps of the true classes.
        skipped: title -> reason of methods that were left out.
    """

    exhibit: Exhibit
    model: "Model"
    methods: Mapping[str, "Method"]
    shown: Shown
    chances: np.ndarray
    found: Mapping[str, Maps]
    skipped: Mapping[str, str]


Scored = tuple[Scores | None, Sequence[MethodEntry]]
NO_SCORES: Scored = (None, ())


def explain_exhibit(
    exhibit: Exhibit,
    drawn: Future[Shown],
    *,
    seed: int,
    chunk: int,
    tick: Callable[[str], None] = lambda title: None,
    alone: Callable[[], object] = lambda: None,
) -> Seen:
    """Explain the true class of every picture by every method."""
    from jaxplain.methods import METHODS
    from jaxplain.models import load_model

    model = load_model(exhibit.model)
    assert model.preprocessing is not None
    methods = affordable() if exhibit.variant is None else quicker(affordable())
    common, chosen = model, methods
    if exhibit.variant is not None:
        common, chosen = widened(model, WIDEST), fitted(methods, model)
    shown = drawn.result()
    note(f"{exhibit.model}: {len(methods)} methods on {len(shown.pictures)} held-out pictures")
    images = model.preprocessing.batch(list(shown.pictures))
    chances = facts.probabilities(common, images, chunk=chunk)[:, : len(model.class_names)]
    found, skipped = run_methods(
        list(chosen.values()),
        Task(common, images, shown.labels, seed, chunk),
        forgiving=True,
        tick=tick,
        alone=alone,
    )
    tell_skipped(common, found, skipped)
    skipped |= left_out(METHODS.values())
    return Seen(exhibit, model, methods, shown, chances, found, skipped)


def affordable() -> dict[str, "Method"]:
    """Return the methods of the demo."""
    from jaxplain.methods import METHODS

    return {name: method for name, method in METHODS.items() if not method.costly}


def score_exhibit(
    seen: Seen, *, seed: int, tick: Callable[[str], None] = lambda title: None
) -> Scored:
    """Return the scores of a network's maps, and the lines of maps that know nothing."""
    from jaxplain.methods import METHODS

    assert seen.shown.masks is not None
    return score(
        METHODS,
        seen.found,
        seen.shown.masks,
        seen.shown.labels,
        seen.model.class_names,
        seed=seed,
        tick=lambda name: tick(f"scoring {METHODS[name].title}"),
    )


def make_section(seen: Seen, scored: Scored) -> Section:
    """Return a network's section of the report."""
    from jaxplain.models import parameter_count

    scores, yardsticks = scored
    model, shown = seen.model, seen.shown
    correct = seen.chances.argmax(1) == shown.labels
    entries = [
        facts.entry(seen.methods[name], maps, seen.methods[name].layer_read(model))
        for name, maps in seen.found.items()
    ]
    return Section(
        title=seen.exhibit.title,
        description=seen.exhibit.description,
        class_names=model.class_names,
        methods=[*entries, *yardsticks],
        cases=[
            make_case(shown, seen.chances, seen.found, row) for row in chosen_rows(shown, correct)
        ],
        facts={
            "Network": seen.exhibit.model,
            "Right on these pictures": f"{correct.sum()} of {len(correct)}",
            "Parameters": f"{parameter_count(model):,}",
            "Layer of CAM methods": model.default_layer or "–",
        },
        scores=scores,
        skipped=seen.skipped,
    )


def quicker(methods: Mapping[str, "Method"]) -> dict[str, "Method"]:
    """Return the methods with the options of the demo, for hundreds of pictures on two cores."""
    changed = dict(methods)
    for name, options in QUICK.items():
        if name in methods:
            kept = {**dict(methods[name].options), **options}
            changed[name] = dataclasses.replace(methods[name], options=tuple(kept.items()))
    return changed


def fitted(methods: Mapping[str, "Method"], model: "Model") -> dict[str, "Method"]:
    """Return the methods so that those fitted to a network explain it as it is, never `widened`."""
    return {
        name: method
        if method.fit is None
        else dataclasses.replace(
            method.bound(model), function=functools.partial(explain_instead, method.function, model)
        )
        for name, method in methods.items()
    }


def explain_instead(
    function: Callable[..., Any], model: "Model", _: "Model", *rest: Any, **options: Any
) -> Any:
    """Explain a model in place of the one that is given."""
    return function(model, *rest, **options)


def widened(model: "Model", classes: int) -> "Model":
    """Return a flower network with as many logits as `classes`, under a name common to all.

    The new logits are constants, and far below the others, so no map changes. The networks of both
    variants become equal but for their parameters: every method is compiled once for the two.
    """
    from jaxplain.model import LinenApply

    layers = dict(model.params["params"])
    head = layers["logits"]
    missing = classes - len(head["bias"])
    layers["logits"] = {
        "kernel": np.pad(head["kernel"], ((0, 0), (0, missing))),
        "bias": np.pad(head["bias"], (0, missing), constant_values=-1e4),
    }
    assert isinstance(model.apply, LinenApply)
    apply = LinenApply(model.apply.module.clone(num_classes=classes), model.apply.call)
    params = {**model.params, "params": layers}
    return dataclasses.replace(model, params=params, apply=apply, class_names=(), name="an8flower")


def spread(classes: int) -> np.ndarray:
    """Return the classes that are shown, as far apart as they can be."""
    return np.linspace(0, classes - 1, SHOWN).round().astype(int)


def chosen_rows(shown: Shown, correct: np.ndarray) -> Sequence[int]:
    """Return the pictures for the page: classes far apart, and one that was mistaken, if any."""
    labels = spread(int(shown.labels.max()) + 1)
    rows = [int(np.flatnonzero(shown.labels == label)[0]) for label in labels]
    mistaken = np.flatnonzero(~correct)
    if len(mistaken) and int(mistaken[0]) not in rows:
        rows.append(int(mistaken[0]))
    return rows


def make_case(shown: Shown, chances: np.ndarray, found: Mapping[str, Maps], row: int) -> Case:
    """Return one picture with the maps of its true class."""
    notes = {
        name: f"completeness gap {maps.gap[row]:.2g}"
        for name, maps in found.items()
        if maps.gap is not None
    }
    label = int(shown.labels[row])
    return Case(
        name=f"Held-out {shown.noun} {row + 1}",
        picture=shown.pictures[row],
        probabilities=chances[row],
        explained=[
            Explained(label, {name: maps.heatmaps[row] for name, maps in found.items()}, notes)
        ],
        truth=label,
        mask=None if shown.masks is None else shown.masks[row],
    )
