"""The scores of a section as its tables and charts show them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxplain.names import unknown
from jaxplain.report.content import Interval, MethodEntry, Scores
from jaxplain.report.words import digits

CHART = (100.0, 60.0)
"""The box of a chart in SVG units, IoU upwards."""

NEAR_NOISE = 3
"""Energy inside, as a multiple of what a map of noise has there, below which the page says so."""


def metrics(
    scores: Scores, entries: Mapping[str, MethodEntry], glossary: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return each metric with its table of means and its table of classes.

    A column is a head, the intervals by method, and the methods that are best: all whose two digits
    are the highest, yardsticks aside.

    Raises:
        ValueError: scores of a method that the section does not list.
    """
    found = []
    for name, values in scores.metrics.items():
        classes = [
            _column(title, by_metric.get(name, {}), entries)
            for title, by_metric in scores.by_class.items()
        ]
        text = glossary["metrics"].get(name, {"title": name, "short": "", "long": ""})
        overall = _column(text["title"], values, entries)
        found.append({"name": name, "text": text, "overall": overall, "classes": classes})
    return found


def _column(
    title: str, values: Mapping[str, Interval], entries: Mapping[str, MethodEntry]
) -> dict[str, Any]:
    for method in values:
        if method not in entries:
            raise ValueError(unknown("method", method, entries))
    shown = {name: digits(values[name].mean) for name in values if not entries[name].baseline}
    highest = max(shown.values(), key=float, default="")
    best = {name for name, mean in shown.items() if mean == highest}
    return {"title": title, "by_method": values, "best": best}


def near_noise(scores: Scores, entries: Mapping[str, MethodEntry]) -> dict[str, Any] | None:
    """Return which methods put little more of their maps on the evidence than noise would.

    Returns:
        {"noise": the share of noise, "methods": [(title, options, share), …]}, the least first;
        None where every method does clearly better, or nobody scored noise.
    """
    values = scores.metrics.get("energy", {})
    if scores.noise not in values:
        return None
    noise = values[scores.noise].mean
    few = [
        (entries[name].title, entries[name].options, interval.mean)
        for name, interval in values.items()
        if not entries[name].baseline and interval.mean < NEAR_NOISE * noise
    ]
    few.sort(key=lambda line: line[2])
    return {"noise": noise, "methods": few, "times": NEAR_NOISE} if few else None


def curves(scores: Scores, entries: Mapping[str, MethodEntry]) -> list[dict[str, Any]]:
    """Return a chart a method: its IoU over the thresholds as the points of a polyline.

    Raises:
        ValueError: a curve of a method that the section does not list.
    """
    top = max((float(np.max(curve)) for curve in scores.curves.values()), default=1.0) or 1.0
    x = np.asarray(scores.thresholds, float)
    across = (x - x.min()) / (np.ptp(x) or 1) * CHART[0]
    found = []
    for name, curve in scores.curves.items():
        if name not in entries:
            raise ValueError(unknown("method", name, entries))
        up = CHART[1] * (1 - np.asarray(curve, float) / top)
        best = int(np.argmax(curve))
        found.append(
            {
                "entry": entries[name],
                "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True)),
                "top": top,
                "best": float(curve[best]),
                "at": float(x[best]),
            }
        )
    return found
