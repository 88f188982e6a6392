"""The outcome of an evaluation: plain data that turns into rows, Markdown and JSON and back."""

import dataclasses
import difflib
import json
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A measure of agreement with the known evidence; every one is better the larger it is.

    Attributes:
        name: its key in `MethodResult.scores` and its column in `Evaluation.rows`.
        title: its column in Markdown.
    """

    name: str
    title: str


METRICS = (
    Metric("iou_area", "mask IoU area"),
    Metric("pointing", "pointing"),
    Metric("pointing_plain", "pointing, plain"),
    Metric("energy", "energy inside"),
)

FORMAT = "jaxplain.evaluation/1"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval; None where there is nothing to average.

    Attributes:
        value: the mean.
        low: lower bound.
        high: upper bound.
        count: images for which the measure was defined.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class Score:
    """One measure of one method.

    Attributes:
        mean: the mean over classes.
        per_class: one a class, in the order of `Evaluation.classes`.
    """

    mean: Estimate
    per_class: tuple[Estimate, ...]


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """All figures of one method, or of one baseline.

    Attributes:
        name: the method's name.
        title: what people call it.
        scores: measure name (see `METRICS`) -> score; empty if the method failed.
        curve: mean IoU at each threshold, the mean over classes; its area is `iou_area`.
        baseline: True for maps that know nothing of the picture.
        nonfinite: images whose map held a NaN or an infinity; no measure is defined on them.
        constant: images whose map had one value everywhere, and so preferred no pixel.
        seconds_per_image: median over the batches, after compilation; None for baselines.
        compile_seconds: tracing and compiling; None where it could not be told apart.
        compiled: whether the method ran as one compiled program. A method that works on the host
            (superpixels, say) cannot; its first batch then pays for what it compiles inside.
        error: why it could not explain this model, or None.
    """

    name: str
    title: str
    scores: dict[str, Score]
    curve: tuple[float | None, ...]
    baseline: bool = False
    nonfinite: int = 0
    constant: int = 0
    seconds_per_image: float | None = None
    compile_seconds: float | None = None
    compiled: bool = True
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Every method's agreement with the known evidence, with all that is needed to repeat it.

    Two are equal if all their figures are; JSON keeps them exactly.

    Attributes:
        results: one a method, then the baselines.
        classes: names of the classes that occur.
        thresholds: of the IoU curves.
        tolerance: of the pointing game, in pixels.
        images: how many.
        image_shape: (H, W) of the maps.
        batch_size: images explained at once.
        resamples: of the bootstrap.
        confidence: of the intervals.
        key: data of the random key.

    Example:
        >>> score = Score(Estimate(0.5, 0.4, 0.6, 9), (Estimate(0.5, 0.4, 0.6, 9),))
        >>> result = MethodResult("noise", "Noise", {"energy": score}, (0.1, 0.0), baseline=True)
        >>> evaluation = Evaluation((result,), ("rose",), (0.0, 1.0), 7.5, 9, (112, 112), 4)
        >>> Evaluation.from_json(evaluation.to_json()) == evaluation
        True
        >>> evaluation.rows()[0]["energy_low"]
        0.4
    """

    results: tuple[MethodResult, ...]
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    tolerance: float
    images: int
    image_shape: tuple[int, int]
    batch_size: int
    resamples: int = 2000
    confidence: float = 0.95
    key: tuple[int, ...] = ()

    def result(self, name: str) -> MethodResult:
        """Return the figures of one method.

        Raises:
            ValueError: no such method was evaluated; the nearest are named.
        """
        names = [result.name for result in self.results]
        if name not in names:
            near = difflib.get_close_matches(name, names, cutoff=0.4) or names
            raise ValueError(f"method {name!r} was not evaluated; nearest: {', '.join(near)}")
        return self.results[names.index(name)]

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat dictionary a method: the means over classes, bounds, counts, and timings.

        A measure m fills the columns m, m_low, m_high and m_count.
        """
        return [
            {
                "method": result.name,
                "title": result.title,
                "baseline": result.baseline,
                **_columns({name: score.mean for name, score in result.scores.items()}),
                "seconds_per_image": result.seconds_per_image,
                "compile_seconds": result.compile_seconds,
                "compiled": result.compiled,
                "nonfinite": result.nonfinite,
                "constant": result.constant,
                "error": result.error,
            }
            for result in self.results
        ]

    def class_rows(self) -> list[dict[str, Any]]:
        """Return a flat dictionary a method and class, with the columns of the measures."""
        return [
            {
                "method": result.name,
                "class": name,
                **_columns({m: score.per_class[at] for m, score in result.scores.items()}),
            }
            for result in self.results
            for at, name in enumerate(self.classes)
        ]

    def to_markdown(self) -> str:
        """Return the means over classes as a table, with notes on everything that is not in it.

        The best method of each column is bold; baselines do not compete.
        """
        best = {m.name: max(self._competing(m.name), default=None) for m in METRICS}
        heads = ["method", *(metric.title for metric in METRICS), "s / image", "compile s"]
        lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
        for result in self.results:
            cells = [_escaped(result.title) + (" (baseline)" if result.baseline else "")]
            for metric in METRICS:
                score = result.scores.get(metric.name)
                cell = _interval(score.mean) if score else "–"
                value = score.mean.value if score else None
                bold = not result.baseline and value is not None and value == best[metric.name]
                cells.append(f"**{cell}**" if bold else cell)
            cells += [_seconds(result.seconds_per_image), _seconds(result.compile_seconds)]
            lines.append(_line(cells))
        return "\n".join([*lines, "", *self._notes()]) + "\n"

    def _competing(self, metric: str) -> list[float]:
        values = (
            result.scores[metric].mean.value
            for result in self.results
            if metric in result.scores and not result.baseline
        )
        return [value for value in values if value is not None]

    def _notes(self) -> list[str]:
        height, width = self.image_shape
        about = (
            f"{self.images} images of {height} × {width} pixels, {len(self.classes)} classes; means"
            f" over classes with {self.confidence:.0%} bootstrap intervals ({self.resamples}"
            f" resamples). Pointing hits closer than {self.tolerance:.4g} pixels to the evidence."
        )
        notes = [about]
        for result in self.results:
            title = _escaped(result.title)
            if result.error is not None:
                notes.append(f"{title} is not applicable: {_escaped(result.error)}")
            if result.nonfinite:
                notes.append(
                    f"{title}: {result.nonfinite} of {self.images} maps hold NaN or infinity and"
                    " count in no mean."
                )
            if result.constant:
                notes.append(f"{title}: {result.constant} of {self.images} maps are constant.")
            for metric in METRICS:
                score = result.scores.get(metric.name)
                missing = self.images - result.nonfinite - score.mean.count if score else 0
                if missing:
                    notes.append(
                        f"{title}: {metric.title} is undefined on {missing} more of {self.images}"
                        " images."
                    )
            if not result.compiled:
                notes.append(f"{title} works partly on the host; its time is not a compiled one.")
        return [f"- {note}" for note in notes]

    def to_json(self, *, indent: int | None = None) -> str:
        """Return all figures as JSON (strictly: undefined values are null, never NaN)."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """Return the evaluation that `to_json` wrote.

        Raises:
            ValueError: no JSON, or not of an evaluation.
        """
        content = content_of(text, FORMAT)
        try:
            results = tuple(_result(result) for result in content.pop("results"))
            fields: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
            }
            return cls(results=results, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the fields of an evaluation: {error}") from error


def content_of(text: str, kind: str) -> dict[str, Any]:
    """Return what a JSON text holds besides the name of its format, which must be `kind`.

    Raises:
        ValueError: no JSON, or of another format.

    Example:
        >>> content_of('{"format": "colours/1", "red": 3}', "colours/1")
        {'red': 3}
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"text is not JSON: {error}") from error
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != kind:
        raise ValueError(f"format is {found!r}, expected {kind!r}")
    return content


def _result(content: dict[str, Any]) -> MethodResult:
    scores = {
        name: Score(
            Estimate(**score["mean"]), tuple(Estimate(**each) for each in score["per_class"])
        )
        for name, score in content["scores"].items()
    }
    return MethodResult(**{**content, "scores": scores, "curve": tuple(content["curve"])})


def _columns(estimates: dict[str, Estimate]) -> dict[str, float | int | None]:
    nothing = Estimate(None, None, None, 0)
    columns: dict[str, float | int | None] = {}
    for metric in METRICS:
        estimate = estimates.get(metric.name, nothing)
        columns[metric.name] = estimate.value
        columns[f"{metric.name}_low"] = estimate.low
        columns[f"{metric.name}_high"] = estimate.high
        columns[f"{metric.name}_count"] = estimate.count
    return columns


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Keep names from ending a cell, a line or a paragraph, or from becoming HTML."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|*_`[]":
        flat = flat.replace(mark, f"\\{mark}")
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _interval(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.3g}"
