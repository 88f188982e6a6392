"""Runs methods over pictures in batches of one size, each compiled once, and keeps time."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxplain.methods import Method
    from jaxplain.model import Model


@dataclass(frozen=True)
class Maps:
    """What one method said of N pictures.

    Attributes:
        heatmaps: (N, H, W) float32, finite.
        stderr: (N, H, W) standard errors, of sampling methods.
        gap: (N,) completeness gaps, of methods that have one.
        audit: a row a site, of rule methods.
        seconds: a picture, compiled; None if there was only one batch.
        compile_seconds: what the first batch took beyond the others; None if there was only one.
    """

    heatmaps: np.ndarray
    stderr: np.ndarray | None = None
    gap: np.ndarray | None = None
    audit: Sequence[Mapping[str, Any]] = field(default=())
    seconds: float | None = None
    compile_seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """N images to explain, in batches of one size.

    Attributes:
        model: the network.
        images: (N, H, W, C) float32.
        targets: (N,) int32.
        seed: of random methods. All batches share its key: a picture's map does not depend on the
            batch that it is in.
        chunk: images a batch. The last one is filled up with copies, whose maps are dropped.
        layer: of layered methods.
    """

    model: "Model"
    images: np.ndarray
    targets: np.ndarray
    seed: int
    chunk: int
    layer: str | None = None

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-len(self.images) // self.size)

    @property
    def size(self) -> int:
        """Images a batch: no more than there are."""
        return min(self.chunk, len(self.images))


@dataclass(frozen=True)
class Batch:
    """What a method said of one batch, and how long it took."""

    fields: Mapping[str, np.ndarray]
    audit: Sequence[Mapping[str, Any]]
    seconds: float


def run_methods(
    methods: Sequence["Method"],
    task: Task,
    *,
    forgiving: bool = False,
    tick: Callable[[str], None] = lambda title: None,
    alone: Callable[[], object] = lambda: None,
) -> tuple[dict[str, Maps], dict[str, str]]:
    """Explain the images with every method; those that read the same run have it together.

    The first batches, in which methods are traced and compiled, run side by side, and beside them
    the others of the methods that are ready. The second ones come last, one after the other and
    with nothing beside them, so that their times can be believed.

    Args:
        methods: lines of METHODS.
        task: what to explain.
        forgiving: whether to leave out the methods that refuse this network.
        tick: called with the method's title after every batch.
        alone: called before the batches that are timed; returns once nothing else runs.

    Returns:
        Method name -> maps, and title -> reason of what was left out.

    Raises:
        ValueError: a method refuses and not `forgiving`, or gives a map that is not finite.
    """
    from jaxplain.methods.method import grouped

    skipped: dict[str, str] = {}
    parts: dict[str, dict[int, Batch]] = {}
    made: list[Sequence[Method]] = []
    others: list[tuple[Sequence[Method], int, Future[list[Batch]]]] = []

    def keep(group: Sequence["Method"], number: int, batches: Sequence[Batch]) -> None:
        for method, batch in zip(group, batches, strict=True):
            parts[method.name][number] = batch
            tick(method.title)

    with (
        ThreadPoolExecutor(os.cpu_count()) as tracing,
        ThreadPoolExecutor(os.cpu_count()) as running,
    ):
        try:
            started = [
                (group, tracing.submit(run_first, group, task)) for group in grouped(methods)
            ]
            for group, future in started:
                try:
                    bound, first = future.result()
                except ValueError as error:
                    if not forgiving:
                        raise
                    skipped |= {method.title: str(error) for method in group}
                else:
                    made.append(bound)
                    parts |= {m.name: {0: part} for m, part in zip(bound, first, strict=True)}
                    others += [
                        (bound, number, running.submit(run_group, bound, task, number))
                        for number in range(2, task.batches)
                    ]
                for method in group:
                    tick(method.title)
            for group, number, future in others:
                keep(group, number, future.result())
        finally:
            tracing.shutdown(cancel_futures=True)
            running.shutdown(cancel_futures=True)
    if task.batches > 1:
        alone()
        for group in made:
            keep(group, 1, run_group(group, task, 1))
    found = {
        method.name: join(method, [part for _, part in sorted(parts[method.name].items())], task)
        for method in methods
        if method.name in parts
    }
    return found, skipped


def run_first(group: Sequence["Method"], task: Task) -> tuple[Sequence["Method"], list[Batch]]:
    """Explain the first batch; return it and the methods with what was fitted to the model."""
    bound = [method.bound(task.model, method.importance) for method in group]
    return bound, run_group(bound, task, 0)


def run_batch(method: "Method", task: Task, number: int) -> Batch:
    """Explain one batch."""
    return run_group([method], task, number)[0]


def run_group(group: Sequence["Method"], task: Task, number: int) -> list[Batch]:
    """Explain one batch with methods that read the same run.

    Each is said to have taken the time of that run, as each would by itself.
    """
    import jax

    start = number * task.size
    rows = np.minimum(np.arange(start, start + task.size), len(task.images) - 1)
    key = jax.random.key(task.seed) if group[0].random else None
    began = time.perf_counter()
    images = task.images[rows]
    said = group[0].run(task.model, images, task.targets[rows], key=key, layer=task.layer)
    read = jax.block_until_ready([method.read(said, images.shape[1:3]) for method in group])
    seconds = time.perf_counter() - began
    kept = min(task.size, len(task.images) - start)
    made = []
    for found in read:
        fields = {"heatmaps": found.heatmap, "stderr": found.stderr, "gap": found.gap}
        made.append(
            Batch(
                {name: np.asarray(v)[:kept] for name, v in fields.items() if v is not None},
                () if found.audit is None else tuple(found.audit.rows()),
                seconds,
            )
        )
    return made


def join(method: "Method", parts: Sequence[Batch], task: Task) -> Maps:
    """Return the maps of all batches.

    Raises:
        ValueError: a map that is not finite.
    """
    joined = {
        name: np.concatenate([part.fields[name] for part in parts]).astype(np.float32)
        for name in parts[0].fields
    }
    bad = ~np.isfinite(joined["heatmaps"]).all((1, 2))
    if bad.any():
        raise ValueError(
            f"method {method.name!r} gave maps that are not finite for {int(bad.sum())} of "
            f"{len(task.images)} pictures; are the weights finite?"
        )
    steady = parts[1].seconds if len(parts) > 1 else None
    return Maps(
        **joined,
        audit=parts[0].audit,
        seconds=None if steady is None else steady / task.size,
        compile_seconds=None if steady is None else max(0.0, parts[0].seconds - steady),
    )
