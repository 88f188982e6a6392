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
    """Explain the images with every method.

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
    skipped: dict[str, str] = {}
    parts: dict[str, dict[int, Batch]] = {}
    made: list[Method] = []
    others: list[tuple[Method, int, Future[Batch]]] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as tracing,
        ThreadPoolExecutor(os.cpu_count()) as running,
    ):
        try:
            started = [(method, tracing.submit(run_first, method, task)) for method in methods]
            for method, future in started:
                try:
                    bound, first = future.result()
                except ValueError as error:
                    if not forgiving:
                        raise
                    skipped[method.title] = str(error)
                else:
                    made.append(bound)
                    parts[bound.name] = {0: first}
                    others += [
                        (bound, number, running.submit(run_batch, bound, task, number))
                        for number in range(2, task.batches)
                    ]
                tick(method.title)
            for method, number, future in others:
                parts[method.name][number] = future.result()
                tick(method.title)
        finally:
            tracing.shutdown(cancel_futures=True)
            running.shutdown(cancel_futures=True)
    if task.batches > 1:
        alone()
        for method in made:
            parts[method.name][1] = run_batch(method, task, 1)
            tick(method.title)
    found = {
        method.name: join(method, [part for _, part in sorted(parts[method.name].items())], task)
        for method in made
    }
    return found, skipped


def run_first(method: "Method", task: Task) -> tuple["Method", Batch]:
    """Explain the first batch; return it and the method with what was fitted to the model."""
    bound = method.bound(task.model, method.importance)
    return bound, run_batch(bound, task, 0)


def run_batch(method: "Method", task: Task, number: int) -> Batch:
    """Explain one batch."""
    import jax

    start = number * task.size
    rows = np.minimum(np.arange(start, start + task.size), len(task.images) - 1)
    key = jax.random.key(task.seed) if method.random else None
    began = time.perf_counter()
    found = jax.block_until_ready(
        method.explain(task.model, task.images[rows], task.targets[rows], key=key, layer=task.layer)
    )
    seconds = time.perf_counter() - began
    kept = min(task.size, len(task.images) - start)
    fields = {"heatmaps": found.heatmap, "stderr": found.stderr, "gap": found.gap}
    return Batch(
        {name: np.asarray(value)[:kept] for name, value in fields.items() if value is not None},
        () if found.audit is None else tuple(found.audit.rows()),
        seconds,
    )


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
