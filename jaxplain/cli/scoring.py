"""How well maps that were already made agree with known evidence, as the report shows it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxplain.cli.maps import Maps
from jaxplain.report import Interval, MethodEntry, Scores

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
            if (interval := _interval(score.mean)) is not None:
                metrics[metric][result.name] = interval
            for name, estimate in zip(evaluation.classes, score.per_class, strict=True):
                if (interval := _interval(estimate)) is not None:
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


def _interval(estimate: "Estimate") -> Interval | None:
    """The report's form of an estimate; without a spread, its bounds are the mean itself."""
    if estimate.value is None:
        return None
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    return Interval(estimate.value, low, high)
