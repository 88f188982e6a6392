"""How well maps that were already made agree with known evidence, as the report shows it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli.console import show_table, table
from jaxplain.cli.maps import Maps
from jaxplain.report import Interval, MethodEntry, Scores, Section, digits, duration

if TYPE_CHECKING:
    from jaxplain.evaluation.results import Estimate, Evaluation
    from jaxplain.methods import Method


@dataclasses.dataclass(frozen=True)
class Made:
    """A method whose maps exist: it is shown the numbers of the pictures, and looks them up."""

    name: str
    title: str
    signed: bool
    heatmaps: np.ndarray

    def explain(self, model: Any, images: Any, targets: Any, *, key: Any, layer: Any = None) -> Any:
        """Return the maps of the pictures whose numbers are in `images`."""
        import jax.numpy as jnp

        from jaxplain.methods import Explanation

        del model, targets, key, layer
        rows = np.asarray(images)[:, 0, 0, 0].astype(int)
        return Explanation(jnp.asarray(self.heatmaps[rows]))


def score(
    methods: Mapping[str, "Method"],
    found: Mapping[str, Maps],
    masks: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    seed: int,
    tick: Callable[[str], None] = lambda name: None,
) -> tuple[Scores, list[MethodEntry]]:
    """Score every method, and maps that know nothing of the picture, on the same pictures.

    The measures and intervals are those of `jaxplain.evaluation`; only the maps need not be made
    again.

    Args:
        methods: METHODS.
        found: method name -> maps (N, H, W) of the true class of each picture.
        masks: (N, H, W) the known evidence.
        labels: (N,) the true classes.
        class_names: of all classes.
        seed: of the random map and of the bootstrap.
        tick: called with the method's name when it is scored.

    Returns:
        The scores, and the report's lines for the maps that know nothing.
    """
    import jax
    import jax.numpy as jnp

    from jaxplain.evaluation.run import evaluate
    from jaxplain.model import Model

    count, height, width = masks.shape
    numbers = np.arange(count, dtype=np.float32)[:, None, None, None]
    made = [
        Made(name, methods[name].title, methods[name].signed, maps.heatmaps)
        for name, maps in found.items()
    ]

    def measure(some: Sequence[Made]) -> "Evaluation":
        return evaluate(
            Model.from_function(jnp.zeros_like, class_names=tuple(class_names)),
            some,
            np.broadcast_to(numbers, (count, height, width, 1)),
            labels,
            masks,
            key=jax.random.key(seed),
            batch_size=count,
            progress=lambda name, done, total: tick(name),
        )

    # Nothing is timed here, and what one method gets does not depend on the others.
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(measure, (made[::2], made[1::2])))
    results = {result.name: result for half in halves for result in half.results}
    ordered = [*(each.name for each in made), *(r.name for r in halves[0].results if r.baseline)]
    evaluation = dataclasses.replace(halves[0], results=tuple(results[name] for name in ordered))
    baselines = [
        MethodEntry(result.name, result.title, baseline=True)
        for result in evaluation.results
        if result.baseline
    ]
    return _scores(evaluation), baselines


def _scores(evaluation: "Evaluation") -> Scores:
    from jaxplain.evaluation.results import METRICS

    metrics: dict[str, dict[str, Interval]] = {metric.name: {} for metric in METRICS}
    by_class: dict[str, dict[str, dict[str, Interval]]] = {
        name: {metric.name: {} for metric in METRICS} for name in evaluation.classes
    }
    curves: dict[str, np.ndarray] = {}
    for result in evaluation.results:
        for metric, score in result.scores.items():
            if (interval := interval_of(score.mean)) is not None:
                metrics[metric][result.name] = interval
            for name, estimate in zip(evaluation.classes, score.per_class, strict=True):
                if (interval := interval_of(estimate)) is not None:
                    by_class[name][metric][result.name] = interval
        if None not in result.curve:
            curves[result.name] = np.array(result.curve, np.float64)
    return Scores(
        images=evaluation.images,
        metrics=metrics,
        thresholds=np.array(evaluation.thresholds),
        curves=curves,
        confidence=evaluation.confidence,
        by_class=by_class,
        noise="random",
    )


def interval_of(estimate: "Estimate") -> Interval | None:
    """Return the report's form of an estimate: what is not known of it stays unknown.

    Example:
        >>> from jaxplain.evaluation import Estimate
        >>> interval_of(Estimate(0.5, 0.4, 0.6, 9))
        Interval(mean=0.5, bounds=(0.4, 0.6))
        >>> interval_of(Estimate(0.5, None, None, 1))
        Interval(mean=0.5, bounds=None)
        >>> interval_of(Estimate(None, None, None, 0)) is None
        True
    """
    if estimate.value is None:
        return None
    if estimate.low is None or estimate.high is None:
        return Interval(estimate.value)
    return Interval(estimate.value, (estimate.low, estimate.high))


def show_scores(section: Section, scores: Scores) -> None:
    """Print a network's table of scores."""
    heads = {
        "iou_area": "IoU area",
        "pointing": "pointing",
        "pointing_plain": "strict",
        "energy": "energy inside",
    }
    columns = [
        ("method", "left"),
        *((head, "right") for head in heads.values()),
        ("a picture", "right"),
    ]
    rows = table(f"{section.title} ({scores.images} pictures)", columns)
    for entry in section.methods:
        intervals = [scores.metrics[metric].get(entry.name) for metric in heads]
        rows.add_row(
            entry.title,
            *map(cell, intervals),
            duration(entry.seconds),
            style="dim" if entry.baseline else None,
        )
    show_table(rows)


def cell(interval: Interval | None) -> str:
    """Return a mean with its interval, or what is known of them.

    Example:
        >>> cell(Interval(0.5, (0.4, 0.6))), cell(Interval(0.5)), cell(None)
        ('0.50 [dim]0.40–0.60[/dim]', '0.50', '–')
    """
    if interval is None:
        return "–"
    if interval.bounds is None:
        return digits(interval.mean)
    low, high = interval.bounds
    return f"{digits(interval.mean)} [dim]{digits(low)}–{digits(high)}[/dim]"
