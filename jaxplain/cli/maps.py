"""Runs methods over pictures in batches of one size, each compiled once, and keeps time."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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


def run_method(
    method: "Method",
    model: "Model",
    images: np.ndarray,
    targets: np.ndarray,
    *,
    seed: int,
    chunk: int,
    layer: str | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Maps:
    """Explain N images with one method.

    Args:
        method: a line of METHODS.
        model: the network.
        images: (N, H, W, C) float32.
        targets: (N,) int32.
        seed: of random methods.
        chunk: images a batch. The last one is filled up with copies, whose maps are dropped.
        layer: of layered methods.
        tick: called after every batch.

    Raises:
        ValueError: what the method refuses, or a map that is not finite.
    """
    import jax

    chunk = min(chunk, len(images))
    # One key for all batches: a picture's map does not depend on the batch that it is in.
    key = jax.random.key(seed) if method.random else None
    parts: list[dict[str, Any]] = []
    times: list[float] = []
    audit: Sequence[Mapping[str, Any]] = ()
    for number, start in enumerate(range(0, len(images), chunk)):
        rows = np.minimum(np.arange(start, start + chunk), len(images) - 1)
        began = time.perf_counter()
        found = jax.block_until_ready(
            method.explain(model, images[rows], targets[rows], key=key, layer=layer)
        )
        times.append(time.perf_counter() - began)
        if number == 0 and found.audit is not None:
            audit = tuple(found.audit.rows())
        kept = min(chunk, len(images) - start)
        fields = {"heatmaps": found.heatmap, "stderr": found.stderr, "gap": found.gap}
        parts.append(
            {name: np.asarray(value)[:kept] for name, value in fields.items() if value is not None}
        )
        tick()
    joined = {
        name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]
    }
    bad = ~np.isfinite(joined["heatmaps"]).all((1, 2))
    if bad.any():
        raise ValueError(
            f"method {method.name!r} gave maps that are not finite for {int(bad.sum())} of "
            f"{len(images)} pictures; are the weights finite?"
        )
    steady = statistics.median(times[1:]) if len(times) > 1 else None
    return Maps(
        **joined,
        audit=audit,
        seconds=None if steady is None else steady / chunk,
        compile_seconds=None if steady is None else max(0.0, times[0] - steady),
    )
