"""The page of a leaderboard: its table, quality against time, and the curves behind the areas."""

import math
import tomllib
from collections.abc import Sequence
from typing import Any

from jaxplain.evaluation.leaderboard import CONFIDENCE, MEASURES, Leaderboard, Standing, shown
from jaxplain.report import frame
from jaxplain.report.page import read_glossary
from jaxplain.report.tables import CHART

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Between the marks of an axis: the least that spans 0..1 with five of them, or less with finer."""


def render_leaderboard(board: Leaderboard) -> str:
    """Return the page as HTML; it needs no other file.

    Raises:
        ValueError: no method has a figure.

    Example:
        >>> from jaxplain.evaluation.results import Estimate
        >>> line = Standing("m", "A <method>", 6, {"iou_area": Estimate(0.5, 0.4, 0.6, 6)})
        >>> page = render_leaderboard(Leaderboard("flowers", "net", "ab", 0, 1.0, 7.5, (line,)))
        >>> "A &lt;method&gt;" in page, "A <method>" in page
        (True, False)
    """
    lines = [line for line in board.standings if line.error is None]
    if not lines:
        raise ValueError("no method of the leaderboard has a figure")
    ranks = {line.name: place for place, line in enumerate(_competing(lines), 1)}
    texts = {**read_glossary()["metrics"], **tomllib.loads(frame.text_of("leaderboard.toml"))}
    return frame.render(
        "leaderboard.html.jinja",
        frame.text_of("report.css") + frame.text_of("leaderboard.css"),
        frame.text_of("page.js"),
        board=board,
        lines=lines,
        ranks=ranks,
        columns=[{"measure": m, "text": texts[m.name]} for m in MEASURES],
        cells={
            (line.name, measure.name): _cell(board, measure, line)
            for line in lines
            for measure in MEASURES
        },
        best=_best(board, lines),
        most=max(line.pictures for line in lines),
        plots=[plot for plot in (_against_time(lines, ranks), _orders(lines, ranks)) if plot],
        overlap=_charts(lines, ranks, ("iou",)),
        orders=_charts(lines, ranks, ("insertion", "deletion")),
        confidence=CONFIDENCE,
    )


def _competing(lines: Sequence[Standing]) -> list[Standing]:
    return [line for line in lines if not line.baseline]


def _cell(board: Leaderboard, measure: Any, line: Standing) -> dict[str, Any] | None:
    """A figure with its interval as the table shows it; None where there is none."""
    estimate = line.estimates.get(measure.name)
    if estimate is None or estimate.value is None:
        return None
    text = shown(measure, estimate.value)
    low, high = estimate.low, estimate.high
    bounds = None if low is None or high is None else (low, high)
    return {
        "value": estimate.value,
        "text": text,
        "best": not line.baseline and float(text) == board.best(measure),
        "range": None if measure.name == "seconds" else bounds,
        "range_text": "–".join(shown(measure, bound) for bound in bounds or ()),
    }


def _best(board: Leaderboard, lines: Sequence[Standing]) -> list[dict[str, Any]]:
    """For each measure but the time: who is best, and how good."""
    found = []
    for measure in MEASURES[:-1]:
        value = board.best(measure)
        titles = [
            line.title
            for line in _competing(lines)
            if (cell := _cell(board, measure, line)) is not None and cell["best"]
        ]
        if titles:
            found.append({"measure": measure, "titles": titles, "text": shown(measure, value or 0)})
    return found


def _against_time(lines: Sequence[Standing], ranks: dict[str, int]) -> dict[str, Any] | None:
    """IoU area over seconds a picture, on a logarithmic scale."""
    points = _points(lines, "seconds", "iou_area")
    if not points:
        return None
    logs = [math.log10(max(x, 1e-6)) for _, x, _ in points]
    first, last = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    low, high, marks = _axis([y for *_, y in points])
    return {
        "title": "Quality against time",
        "text": "IoU area upwards, seconds a picture to the right, each mark ten times the last. "
        "Best is the upper left.",
        "x": [(100 * (p - first) / (last - first), _power(p)) for p in range(first, last + 1)],
        "y": marks,
        "dots": [
            _dot(line, ranks, (log - first) / (last - first), (y - low) / (high - low))
            for (line, _, y), log in zip(points, logs, strict=True)
        ],
    }


def _orders(lines: Sequence[Standing], ranks: dict[str, int]) -> dict[str, Any] | None:
    """Insertion area over deletion area."""
    points = _points(lines, "deletion", "insertion")
    if not points:
        return None
    left, right, across = _axis([x for _, x, _ in points])
    low, high, up = _axis([y for *_, y in points])
    return {
        "title": "What the network itself says",
        "text": "Insertion area upwards, deletion area to the right. Best is the upper left.",
        "x": across,
        "y": up,
        "dots": [
            _dot(line, ranks, (x - left) / (right - left), (y - low) / (high - low))
            for line, x, y in points
        ],
    }


def _points(lines: Sequence[Standing], x: str, y: str) -> list[tuple[Standing, float, float]]:
    found = []
    for line in _competing(lines):
        across, up = line.value(x), line.value(y)
        if across is not None and up is not None:
            found.append((line, across, up))
    return found


def _dot(line: Standing, ranks: dict[str, int], across: float, up: float) -> dict[str, Any]:
    return {"title": line.title, "rank": ranks[line.name], "x": 100 * across, "y": 100 * (1 - up)}


def _axis(values: Sequence[float]) -> tuple[float, float, list[tuple[float, str]]]:
    """Round ends around all values, and marks between them: (place in percent, what it says)."""
    spread = max(values) - min(values)
    step = next(each for each in _STEPS if 5 * each >= spread)
    first = math.floor(min(values) / step + 1e-9)
    last = max(math.ceil(max(values) / step - 1e-9), first + 1)
    marks = [
        (100 * (mark - first) / (last - first), f"{mark * step:.2f}")
        for mark in range(first, last + 1)
    ]
    return first * step, last * step, marks


def _power(exponent: int) -> str:
    """Ten to some power, of seconds, as people read it."""
    if exponent < 0:
        return f"{10 ** (3 + exponent):g} ms" if exponent >= -3 else f"{10 ** (6 + exponent):g} µs"
    return f"{10**exponent:,} s"


def _charts(
    lines: Sequence[Standing], ranks: dict[str, int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """A chart a method: its curves as the points of polylines, all on one scale."""
    curves = [line.curves[name] for line in lines for name in names if name in line.curves]
    top = max((max(curve) for curve in curves), default=1.0) or 1.0
    found = []
    for line in lines:
        if all(name in line.curves for name in names):
            polylines = {name: _polyline(line.curves[name], top) for name in names}
            found.append(
                {
                    "title": line.title,
                    "rank": ranks.get(line.name),
                    "polylines": polylines,
                    "top": top,
                    "values": {
                        name: value
                        for name in names
                        if (value := line.value({"iou": "iou_area"}.get(name, name))) is not None
                    },
                }
            )
    return found


def _polyline(curve: Sequence[float], top: float) -> str:
    last = max(len(curve) - 1, 1)
    return " ".join(
        f"{CHART[0] * i / last:.1f},{CHART[1] * (1 - value / top):.1f}"
        for i, value in enumerate(curve)
    )
