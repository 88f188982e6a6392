"""All measures of an explanation for every method on the same pictures, in one table.

`measure_maps` measures the maps of one method picture by picture; `standing` turns that into means
over the classes with bootstrap intervals; a `Leaderboard` is all of them, as Markdown and JSON.

The threshold of the boxes is chosen by leaving one out: each picture's box is cut at the threshold
that misses least on all the *other* pictures, so that no map is needed besides, and none is judged
at a threshold that it chose itself.
"""

import dataclasses
import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxplain.evaluation.bootstrap import class_means
from jaxplain.evaluation.boxes import box_iou, heatmap_boxes
from jaxplain.evaluation.energy import energy_inside
from jaxplain.evaluation.mask_iou import mask_iou
from jaxplain.evaluation.perturbation import insertion_deletion
from jaxplain.evaluation.pointing import pointing_game
from jaxplain.evaluation.results import Estimate, content_of
from jaxplain.evaluation.thresholds import ENOUGH, FRACTIONS
from jaxplain.model import Model

FORMAT = "jaxplain.leaderboard/1"

STEPS = 20
"""Of the insertion and deletion curves."""

RESAMPLES = 2000
CONFIDENCE = 0.95


class Measure(NamedTuple):
    """A column of the table.

    Attributes:
        name: its key, and in the report's glossary.
        title: its head.
        higher: whether more is better.
    """

    name: str
    title: str
    higher: bool


MEASURES = (
    Measure("iou_area", "IoU area", True),
    Measure("pointing", "Pointing", True),
    Measure("pointing_plain", "Strict pointing", True),
    Measure("energy", "Energy inside", True),
    Measure("localization_error", "Localisation error", False),
    Measure("insertion", "Insertion area", True),
    Measure("deletion", "Deletion area", False),
    Measure("seconds", "Seconds a picture", False),
)


class Measured(NamedTuple):
    """What maps of N pictures are worth, picture by picture; NaN where a measure is undefined.

    Attributes:
        values: measure name -> (N,).
        curves: "iou", "insertion" and "deletion" -> (N, T).
        overlaps: (N, K) IoU of the box at each of `FRACTIONS` with the true one.
    """

    values: dict[str, Float[np.ndarray, " n"]]
    curves: dict[str, Float[np.ndarray, "n t"]]
    overlaps: Float[np.ndarray, "n k"]


def measure_maps(
    model: Model,
    images: Float[Any, "n h w c"],
    targets: Int[Any, " n"],
    heatmaps: Float[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    boxes: Int[np.ndarray, "n 4"],
    *,
    tolerance: float | int | None = None,
    steps: int = STEPS,
) -> Measured:
    """Measure maps of one method, picture by picture; all go through the network together.

    Args:
        model: what was explained.
        images: (N, H, W, C) preprocessed floats.
        targets: (N,) classes that were explained.
        heatmaps: (N, H, W) maps; of signed ones, the positive part.
        masks: (N, H, W) the known evidence.
        boxes: (N, 4) around it: top, left, bottom, right.
        tolerance: of the pointing game in pixels; None scales 15 pixels to the image.
        steps: of the insertion and deletion curves.

    Returns:
        Everything but the localisation error, which needs all pictures, and the time.

    Raises:
        TypeError, ValueError: as `mask_iou`, `insertion_deletion`.

    Example:
        >>> model = Model.from_function(lambda _, x: x.mean((1, 2)))
        >>> mask = np.zeros((1, 8, 8), bool)
        >>> mask[0, 2:4, 2:4] = True
        >>> maps = mask.astype(np.float32)
        >>> found = measure_maps(
        ...     model, maps[..., None], np.array([0]), maps, mask, np.array([[2, 2, 4, 4]])
        ... )
        >>> found.values["energy"].tolist(), found.overlaps[0, 0].item()
        ([1.0], 1.0)
    """
    maps = np.asarray(heatmaps)
    iou = mask_iou(maps, masks)
    curves = insertion_deletion(model, images, targets, maps, steps=steps)
    finite = np.isfinite(maps).all((1, 2))
    overlaps = np.full((len(maps), len(FRACTIONS)), np.nan)
    if finite.any():
        found = heatmap_boxes(maps[finite], FRACTIONS)
        overlaps[finite] = box_iou(found, np.asarray(boxes)[finite][:, None])
    values = {
        "iou_area": iou.areas,
        "pointing": pointing_game(maps, masks, tolerance=tolerance),
        "pointing_plain": pointing_game(maps, masks, tolerance=0),
        "energy": energy_inside(maps, masks),
        "insertion": curves.insertion_area,
        "deletion": curves.deletion_area,
    }
    shown = {"iou": iou.curves, "insertion": curves.insertion, "deletion": curves.deletion}
    return Measured(
        {name: np.asarray(value, np.float64) for name, value in values.items()},
        {name: np.asarray(value, np.float64) for name, value in shown.items()},
        overlaps,
    )


def joined(parts: Sequence[Measured]) -> Measured:
    """Return the measures of several batches as those of one.

    Example:
        >>> one = Measured({"energy": np.ones(1)}, {"iou": np.ones((1, 3))}, np.ones((1, 2)))
        >>> joined([one, one]).overlaps.shape
        (2, 2)
    """
    return Measured(
        {name: np.concatenate([p.values[name] for p in parts]) for name in parts[0].values},
        {name: np.concatenate([p.curves[name] for p in parts]) for name in parts[0].curves},
        np.concatenate([part.overlaps for part in parts]),
    )


def left_out_errors(overlaps: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Return 1 for each picture whose box misses at the threshold that is best for the others.

    Of several that are best, the middle one, as in `tune`.

    Args:
        overlaps: (N, K) IoU of each picture's box at K thresholds; NaN for pictures without a map.

    Returns:
        (N,) 0, 1, or NaN.

    Raises:
        ValueError: fewer than two pictures with a map: there are no others.

    Example:
        >>> left_out_errors(np.array([[0.9, 0.1], [0.8, 0.6], [0.2, 0.7]])).tolist()
        [1.0, 0.0, 1.0]
    """
    known = ~np.isnan(overlaps).any(1)
    if known.sum() < 2:
        raise ValueError(f"overlaps are known of {known.sum()} pictures; expected at least two")
    misses = overlaps[known] < ENOUGH
    others = misses.sum(0) - misses
    best = others == others.min(1, keepdims=True)
    # The middle of the best, counted from 0: the one with half of them before it.
    middle = (np.cumsum(best, 1) == best.sum(1, keepdims=True) // 2 + 1) & best
    errors = np.full(len(overlaps), np.nan)
    errors[known] = misses[np.arange(len(misses)), middle.argmax(1)]
    return errors


@dataclasses.dataclass(frozen=True)
class Standing:
    """A line of the table.

    Attributes:
        name: of the method.
        title: for people.
        pictures: how many it explained.
        estimates: measure name -> mean over the classes with its interval; the seconds are a median
            over the batches after the first. Empty if the method failed.
        curves: "iou", "insertion", "deletion" -> means over the pictures.
        options: what it was called with besides its defaults.
        reference: where it was published.
        costly: hundreds of passes a picture.
        baseline: knows nothing of the picture.
        error: why it cannot explain this model, or None.
    """

    name: str
    title: str
    pictures: int
    estimates: Mapping[str, Estimate]
    curves: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    options: str = ""
    reference: str = ""
    costly: bool = False
    baseline: bool = False
    error: str | None = None

    def value(self, measure: str) -> float | None:
        """Return a mean, or None where there is none."""
        return self.estimates[measure].value if measure in self.estimates else None


def standing(
    name: str,
    title: str,
    measured: Measured,
    labels: Int[np.ndarray, " n"],
    seconds: Sequence[float],
    *,
    key: jax.Array,
    **traits: Any,
) -> Standing:
    """Return a method's line: means over the classes, with bootstrap intervals.

    Args:
        name: of the method.
        title: for people.
        measured: its maps' measures.
        labels: (N,) the true classes; the means go by them.
        seconds: a picture, of each batch that was timed.
        key: of the bootstrap.
        **traits: other fields of `Standing`.

    Raises:
        ValueError: as `left_out_errors`.

    Example:
        >>> values = dict.fromkeys(["energy"], np.array([0.0, 1.0, 1.0]))
        >>> found = Measured(values, {}, np.eye(3))
        >>> line = standing("m", "M", found, np.zeros(3, int), [0.2, 0.4], key=jax.random.key(0))
        >>> [round(line.estimates[name].value, 2) for name in ("energy", "seconds")]
        [0.67, 0.3]
    """
    values = {**measured.values, "localization_error": left_out_errors(measured.overlaps)}
    classes = int(np.max(labels)) + 1
    estimates = {}
    for measure in MEASURES:
        if measure.name not in values:
            continue
        means = class_means(
            np.asarray(values[measure.name], np.float32),
            np.asarray(labels),
            num_classes=classes,
            key=key,
            resamples=RESAMPLES,
            confidence=CONFIDENCE,
        )
        bounds = (None if np.isnan(each) else float(each) for each in means.mean)
        estimates[measure.name] = Estimate(*bounds, count=int(np.asarray(means.counts).sum()))
    if len(seconds):
        estimates["seconds"] = _median(np.asarray(seconds, np.float64))
    curves = {
        name: tuple(float(each) for each in curve[~np.isnan(curve).any(1)].mean(0))
        for name, curve in measured.curves.items()
        if not np.isnan(curve).any(1).all()
    }
    return Standing(name, title, len(labels), estimates, curves, **traits)


def _median(seconds: np.ndarray) -> Estimate:
    """The median of some times, with a percentile interval of its bootstrap."""
    if len(seconds) == 1:
        return Estimate(float(seconds[0]), None, None, 1)
    random = np.random.Generator(np.random.PCG64(0))
    drawn = np.median(random.choice(seconds, (RESAMPLES, len(seconds))), axis=1)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(np.median(seconds)), float(low), float(high), len(seconds))


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """Every method on the same pictures.

    Attributes:
        data: what was explained, such as "an8flower/single_6c".
        model: the network.
        digest: of its parameters.
        seed: of everything random.
        accuracy: share of the pictures that the network gets right.
        tolerance: of the pointing game, in pixels.
        standings: the methods in the order of their IoU areas, then baselines, then what failed.
        facts: versions and device, for the page.

    Example:
        >>> line = Standing("m", "M", 6, {"energy": Estimate(0.5, 0.4, 0.6, 6)})
        >>> board = Leaderboard("flowers", "net", "abc", 0, 1.0, 7.5, (line,))
        >>> Leaderboard.from_json(board.to_json()) == board
        True
    """

    data: str
    model: str
    digest: str
    seed: int
    accuracy: float
    tolerance: float
    standings: tuple[Standing, ...]
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def best(self, measure: Measure) -> float | None:
        """Return the best value of a measure as it is shown; baselines do not compete."""
        values = [
            float(shown(measure, value))
            for line in self.standings
            if not line.baseline and (value := line.value(measure.name)) is not None
        ]
        return (max if measure.higher else min)(values, default=None)

    def to_markdown(self) -> str:
        """Return the table, with what is to be known about it below."""
        heads = ["Method", *(f"{m.title} {'↑' if m.higher else '↓'}" for m in MEASURES), "Pictures"]
        lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
        for line in self.standings:
            if line.error is not None:
                continue
            title = _plain(line.title)
            cells = [f"*{title}*" if line.baseline else title]
            cells += [self._cell(measure, line) for measure in MEASURES]
            lines.append(_line([*cells, str(line.pictures)]))
        notes = (f"- {_plain(note)}" for note in self.notes())
        return "\n".join([*lines, "", *notes]) + "\n"

    def _cell(self, measure: Measure, line: Standing) -> str:
        estimate = line.estimates.get(measure.name)
        if estimate is None or estimate.value is None:
            return "–"
        text = shown(measure, estimate.value)
        if not line.baseline and float(text) == self.best(measure):
            text = f"**{text}**"
        if estimate.low is None or estimate.high is None:
            return text
        low, high = shown(measure, estimate.low), shown(measure, estimate.high)
        return f"{text} <sub>{low}–{high}</sub>"

    def notes(self) -> list[str]:
        """Return what is to be known about the figures, a sentence or two each."""
        quick = max((line.pictures for line in self.standings), default=0)
        shown_on = (
            f"Network {self.model}, right on {self.accuracy:.1%} of {quick} held-out pictures of "
            f"{self.data}; the true class is explained."
        )
        measured = (
            f"Means over the classes; small figures are {CONFIDENCE:.0%} bootstrap intervals. "
            f"Pointing forgives {self.tolerance:.3g} pixels. A box errs below an IoU of {ENOUGH:g} "
            "with the true one; its threshold is the best for all the other pictures. Insertion "
            f"and deletion have {STEPS} steps."
        )
        notes = [shown_on, measured]
        fewer = [line for line in self.standings if line.costly and line.pictures < quick]
        if fewer:
            notes.append(
                f"{', '.join(line.title for line in fewer)}: hundreds of passes a picture, and so "
                f"fewer pictures ({', '.join(sorted({str(f.pictures) for f in fewer}, key=int))})."
            )
        if any(
            name != "seconds" and each.value is not None and each.low is None
            for line in self.standings
            for name, each in line.estimates.items()
        ):
            notes.append("Figures of one picture a class have no interval: it tells no spread.")
        notes += [f"{line.title} is missing: {line.error}" for line in self.standings if line.error]
        return notes

    def to_json(self) -> str:
        """Return everything as JSON (strictly: what is undefined is null, never NaN)."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Leaderboard":
        """Return what `to_json` wrote.

        Raises:
            ValueError: no JSON, or not of a leaderboard.
        """
        content = content_of(text, FORMAT)
        try:
            lines = tuple(_standing(line) for line in content.pop("standings"))
            return cls(standings=lines, **content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the fields of a leaderboard: {error}") from error


def ranked(standings: Sequence[Standing]) -> tuple[Standing, ...]:
    """Return lines by IoU area, the best first; then baselines, then what failed.

    Example:
        >>> areas = {"a": 0.1, "b": 0.2}
        >>> found = {n: {"iou_area": Estimate(v, 0, 1, 6)} for n, v in areas.items()}
        >>> lines = [Standing(n, n, 6, estimates) for n, estimates in found.items()]
        >>> [line.name for line in ranked(lines)]
        ['b', 'a']
    """

    def place(line: Standing) -> tuple[bool, bool, float]:
        value = line.value("iou_area")
        return line.error is not None, line.baseline, math.inf if value is None else -value

    return tuple(sorted(standings, key=place))


def shown(measure: Measure, value: float) -> str:
    """Return a figure as it is shown: two digits after the point, or of a time two in all.

    Example:
        >>> shown(MEASURES[0], 0.4567), shown(MEASURES[-1], 0.04567), shown(MEASURES[-1], 12.3)
        ('0.46', '0.046', '12')
    """
    if measure.name != "seconds":
        return f"{value:.2f}"
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(digits, 0)}f}"


def _standing(content: dict[str, Any]) -> Standing:
    estimates = {name: Estimate(**each) for name, each in content.pop("estimates").items()}
    curves = {name: tuple(curve) for name, curve in content.pop("curves").items()}
    return Standing(estimates=estimates, curves=curves, **content)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Keep a name or a message from ending its line or becoming HTML."""
    return html.escape(" ".join(text.split()), quote=False)
