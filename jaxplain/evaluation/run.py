"""Every method on the same images: quality against the known evidence, and speed, in one table.

`evaluate` streams the images through each method in batches of one shape, so that a method compiles
once, and keeps the measures of each image, not its map.

A method is anything with `name` and `explain(model, images, targets, *, key, layer)`, whose result
has a `heatmap` (B, H, W); `title`, `random`, `layered`, `signed` and `host` are read where present.
Methods that read the same run (`Method.shares`) have it together.
"""

import functools
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.evaluation.baselines import centre_map, random_maps
from jaxplain.evaluation.bootstrap import class_means
from jaxplain.evaluation.energy import energy_inside
from jaxplain.evaluation.mask_iou import THRESHOLDS, mask_iou
from jaxplain.evaluation.normalize import constant, finite
from jaxplain.evaluation.pointing import pointing_game
from jaxplain.evaluation.results import METRICS, Estimate, Evaluation, MethodResult, Score
from jaxplain.evaluation.task import Batch, Task, make_task
from jaxplain.methods.method import grouped

Explain = Callable[[Any, jax.Array, jax.Array, Any], Any]
Progress = Callable[[str, int, int], None]
Measures = dict[str, np.ndarray]

# What JAX raises where a traced array is used as a number: the mark of work on the host.
_HOST_WORK = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)

_BASELINES = {"centre": "Centre of the image", "random": "Random map"}


class _Timing(NamedTuple):
    """The fields of `MethodResult` that say how long a method took."""

    seconds_per_image: float | None = None
    compile_seconds: float | None = None
    compiled: bool = True


def evaluate(
    model: Any,
    methods: Mapping[str, Any] | Iterable[Any],
    images: Any,
    targets: Any,
    masks: Any,
    *,
    key: jax.Array,
    batch_size: int = 32,
    layer: str | None = None,
    progress: Progress | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    tolerance: float | int | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
    on_error: Literal["raise", "report"] = "raise",
) -> Evaluation:
    """Measure how well each method's maps agree with known evidence, and how long they take.

    Maps of methods that say `signed` enter with their positive part, the evidence for the target;
    otherwise zero, no evidence, would be half-way up the min-max scale. All other maps enter as
    they are. Two baselines follow the methods: the centre of the image, and a random map.

    The random key of a method depends on its name and the batch alone, or on its function's where
    several read the same run, so that evaluating fewer methods changes none of their maps. All
    intervals use the same resampled images.

    Args:
        model: a `Model` (any pytree that the methods understand; `class_names` is read where
            present).
        methods: `METHODS`, or some of its entries.
        images: (N, H, W, C) floats, preprocessed.
        targets: (N,) integers, the classes to explain; the means per class go by them.
        masks: (N, H, W) booleans, true on the evidence for the target.
        key: of `jax.random`.
        batch_size: images explained at once.
        layer: for methods that are `layered`.
        progress: called as progress(method name, images done, images in all) after every batch.
        thresholds: of the IoU curves.
        tolerance: of the pointing game in pixels; None scales 15 pixels to the image.
        resamples: of the bootstrap.
        confidence: of the intervals.
        on_error: "raise" passes on the ValueError of a method that cannot explain this model;
            "report" notes it in the table and goes on.

    Returns:
        The figures of every method and baseline.

    Raises:
        TypeError: images that are not floats, targets that are not integers, masks that are not
            booleans, or methods that cannot explain.
        ValueError: shapes that do not belong together, no images, NaN or infinity in the images,
            targets without a class name, an impossible option, a method that occurs twice, or one
            that returns maps of another shape.

    Example:
        >>> from types import SimpleNamespace
        >>> class Brightness:
        ...     name, title = "brightness", "Brightness"
        ...     def explain(self, model, images, targets, *, key=None, layer=None):
        ...         return SimpleNamespace(heatmap=images.mean(-1))
        >>> masks = np.zeros((2, 8, 8), bool)
        >>> masks[:, 2:4, 2:4] = True
        >>> images = masks[..., None].astype(np.float32)
        >>> key = jax.random.key(0)
        >>> table = evaluate(None, [Brightness()], images, np.zeros(2, int), masks, key=key)
        >>> [row["method"] for row in table.rows()], table.rows()[0]["energy"]
        (['brightness', 'centre', 'random'], 1.0)
    """
    if on_error not in ("raise", "report"):
        raise ValueError(f"on_error is {on_error!r}, expected 'raise' or 'report'")
    entries = _entries(methods)
    names = tuple(getattr(model, "class_names", ()))
    task = make_task(
        images,
        targets,
        masks,
        class_names=names,
        batch_size=batch_size,
        thresholds=thresholds,
        tolerance=tolerance,
    )
    classes, labels = np.unique(task.targets, return_inverse=True)

    def means(measures: Measures) -> dict[str, Any]:
        return _means(measures, labels, _named(key, "bootstrap"), resamples, confidence)

    # First, so that an option that no measure can take is not blamed on a method.
    baselines = [
        MethodResult(
            name, title, baseline=True, **means(_measure_baseline(name, task, _named(key, name)))
        )
        for name, title in _BASELINES.items()
    ]
    results: dict[str, MethodResult] = {}
    for group in grouped(entries.values()):
        titles = {method.name: getattr(method, "title", method.name) for method in group}
        try:
            # What was fitted to a model is found while its parameters are known.
            ready = [m.bound(model) if hasattr(m, "bound") else m for m in group]
            measured, timing = _explain_all(
                model,
                ready,
                task,
                key=_named(key, _run_name(group[0])),
                layer=layer,
                progress=progress,
            )
        except ValueError as error:
            if on_error == "raise":
                raise
            for name, title in titles.items():
                results[name] = MethodResult(name, title, {}, (), error=str(error))
            continue
        for (name, title), measures in zip(titles.items(), measured, strict=True):
            results[name] = MethodResult(name, title, **means(measures), **timing._asdict())
    return Evaluation(
        results=(*(results[name] for name in entries), *baselines),
        classes=tuple(names[target] if names else str(target) for target in classes),
        thresholds=task.thresholds,
        tolerance=task.tolerance,
        images=task.count,
        image_shape=task.shape,
        batch_size=task.batch_size,
        resamples=resamples,
        confidence=confidence,
        key=tuple(int(word) for word in np.ravel(jax.random.key_data(key))),
    )


def _entries(methods: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for method in methods.values() if isinstance(methods, Mapping) else methods:
        if not callable(getattr(method, "explain", None)):
            raise TypeError(f"methods hold {method!r}, expected entries of METHODS")
        if method.name in entries or method.name in _BASELINES:
            raise ValueError(
                f"methods hold the name {method.name!r} twice"
                f" ({' and '.join(_BASELINES)} are the baselines)"
            )
        entries[method.name] = method
    return entries


def _explain_all(
    model: Any,
    group: Sequence[Any],
    task: Task,
    *,
    key: jax.Array,
    layer: str | None,
    progress: Progress | None,
) -> tuple[list[Measures], _Timing]:
    """Explain all images with methods that read the same run.

    Returns:
        The measures of each image, one a method, and the times, which are those of each by itself.
    """
    first = group[0]
    options = {"layer": layer} if _says(first, "layered") else {}

    def explain(model: Any, images: jax.Array, targets: jax.Array, key: Any) -> Any:
        if len(group) == 1:
            return (first.explain(model, images, targets, key=key, **options).heatmap,)
        said = first.run(model, images, targets, key=key, **options)
        return tuple(method.read(said, images.shape[1:3]).heatmap for method in group)

    run: Explain = explain
    compile_seconds = None
    compiled = False
    seconds: list[float] = []
    parts: list[list[Measures]] = [[] for _ in group]
    for batch in task.batches():
        batch_key = jax.random.fold_in(key, batch.number) if _says(first, "random") else None
        inputs = (model, batch.images, batch.targets, batch_key)
        if batch.number == 0 and not _says(first, "host"):
            run, compile_seconds = _compile(explain, *inputs)
            compiled = compile_seconds is not None
        start = time.perf_counter()
        maps = jax.block_until_ready([jnp.asarray(each) for each in run(*inputs)])
        seconds.append(time.perf_counter() - start)
        for method, heatmaps, measured in zip(group, maps, parts, strict=True):
            measured.append(_measure(_evidence_for(method, heatmaps, batch), batch, task))
            if progress is not None:
                progress(method.name, batch.number * task.batch_size + batch.kept, task.count)
    if not compiled and len(seconds) > 1:
        # The first batch also paid for whatever the method compiles inside.
        begun, *seconds = seconds
        compile_seconds = max(begun - statistics.median(seconds), 0.0)
    per_image = statistics.median(seconds) / task.batch_size
    return [_joined(measured) for measured in parts], _Timing(per_image, compile_seconds, compiled)


def _evidence_for(method: Any, heatmaps: jax.Array, batch: Batch) -> jax.Array:
    """Return the maps as they are measured, or raise if they have another shape."""
    if heatmaps.shape != batch.masks.shape:
        raise ValueError(
            f"method {method.name!r} returned maps of shape {heatmaps.shape},"
            f" expected {batch.masks.shape}"
        )
    if _says(method, "signed"):
        # An infinity stays, to be counted as one.
        return jnp.where(jnp.isfinite(heatmaps), jnp.maximum(heatmaps, 0), heatmaps)
    return heatmaps


def _compile(explain: Explain, *inputs: Any) -> tuple[Explain, float | None]:
    """Compile a method for inputs of these shapes: (program, seconds), or (itself, None)."""
    start = time.perf_counter()
    try:
        program = jax.jit(explain).lower(*inputs).compile()
    except _HOST_WORK:
        return explain, None
    return program, time.perf_counter() - start


def _measure_baseline(name: str, task: Task, key: jax.Array) -> Measures:
    height, width = task.shape
    parts = []
    for batch in task.batches():
        if name == "centre":
            maps = jnp.broadcast_to(centre_map(height, width), batch.masks.shape)
        else:
            batch_key = jax.random.fold_in(key, batch.number)
            maps = random_maps(batch_key, task.batch_size, height, width)
        parts.append(_measure(maps, batch, task))
    return _joined(parts)


def _measure(heatmaps: jax.Array, batch: Batch, task: Task) -> Measures:
    iou = mask_iou(heatmaps, batch.masks, thresholds=task.thresholds)
    measures = {
        "iou_area": iou.areas,
        "pointing": pointing_game(heatmaps, batch.near, tolerance=0),
        "pointing_plain": pointing_game(heatmaps, batch.masks, tolerance=0),
        "energy": energy_inside(heatmaps, batch.masks),
        "curves": iou.curves,
        "finite": finite(heatmaps),
        "constant": constant(heatmaps),
    }
    return {name: np.asarray(each)[: batch.kept] for name, each in measures.items()}


def _joined(parts: list[Measures]) -> Measures:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _means(
    measures: Measures, labels: np.ndarray, key: jax.Array, resamples: int, confidence: float
) -> dict[str, Any]:
    """Return the fields of `MethodResult` that are made of the measures of each image."""
    classes = int(labels.max()) + 1
    measure = functools.partial(
        class_means,
        labels=labels,
        num_classes=classes,
        key=key,
        resamples=resamples,
        confidence=confidence,
    )
    # All measures at once, for they share the resampled images.
    stacked = np.stack([measures[metric.name] for metric in METRICS])
    means = jax.tree.map(np.asarray, jax.vmap(measure)(stacked))
    scores = {}
    for row, metric in enumerate(METRICS):
        mean, per_class, counts = jax.tree.map(lambda each, row=row: each[row], means)
        scores[metric.name] = Score(
            _estimate(mean[0], mean[1], mean[2], counts.sum()),
            tuple(_estimate(*each) for each in zip(*per_class, counts, strict=True)),
        )
    return {
        "scores": scores,
        "curve": _mean_curve(measures["curves"], labels),
        "nonfinite": int((~measures["finite"]).sum()),
        "constant": int(measures["constant"].sum()),
    }


def _mean_curve(curves: np.ndarray, labels: np.ndarray) -> tuple[float | None, ...]:
    """Average the defined curves per class and then over classes."""
    defined = ~np.isnan(curves).any(1)
    means = [
        curves[defined & (labels == label)].mean(0, dtype=np.float64)
        for label in np.unique(labels[defined])
    ]
    if not means:
        return (None,) * curves.shape[1]
    return tuple(float(value) for value in np.mean(means, 0))


def _estimate(value: Any, low: Any, high: Any, count: Any) -> Estimate:
    value, low, high = (None if np.isnan(each) else float(each) for each in (value, low, high))
    return Estimate(value, low, high, int(count))


def _says(method: Any, trait: str) -> bool:
    return bool(getattr(method, trait, False))


def _run_name(method: Any) -> str:
    """Return the name that a method's random key goes by: its own, or its function's if shared."""
    if getattr(method, "view", None) is None:
        return method.name
    return f"{method.function.__module__}.{method.function.__qualname__}"


def _named(key: jax.Array, name: str) -> jax.Array:
    """Derive a key from a name, so that it depends on nothing else that is evaluated."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
