"""At which threshold a heat map becomes the box that fits: found on images kept for it.

All that localisation errors are made of is how well a map's box fits at each threshold of a grid,
`box_overlaps`: a few numbers an image, which can be kept where maps cannot.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxplain.evaluation.boxes import Part, Unit, box_iou, heatmap_boxes

FRACTIONS = tuple(step / 20 for step in range(1, 20))
"""Grid for thresholds relative to the maximum: 0.05, 0.1 … 0.95 (CHIP states none)."""

MULTIPLES = tuple(step / 2 for step in range(21))
"""Grid for thresholds relative to the mean: 0, 0.5 … 10 (Fong and Vedaldi's)."""

GRIDS: Mapping[Unit, tuple[float, ...]] = {"max": FRACTIONS, "mean": MULTIPLES}
"""By what thresholds are relative to."""

ENOUGH = 0.5
"""IoU from which on a box has found the object."""


class BoxRule(NamedTuple):
    """How a map becomes a box.

    Attributes:
        threshold: multiple of what `relative_to` says.
        relative_to: "max" or "mean".
        part: "largest" connected component or "all" pixels.
    """

    threshold: float
    relative_to: Unit = "max"
    part: Part = "largest"


class Tuned(NamedTuple):
    """The outcome of a search for the threshold.

    Attributes:
        rule: with the threshold of the smallest error; of several, the middle one.
        thresholds: (T,) the grid.
        errors: (T,) share of images whose box misses, at each.
    """

    rule: BoxRule
    thresholds: Float[np.ndarray, " t"]
    errors: Float[np.ndarray, " t"]


def tune(
    heatmaps: Float[np.ndarray, "n h w"],
    boxes: Sequence[Any] | np.ndarray,
    *,
    relative_to: Unit = "max",
    part: Part = "largest",
    thresholds: Sequence[float] | np.ndarray | None = None,
) -> Tuned:
    """Search for the threshold whose boxes miss least often, with the class known.

    Use images that are not those of the final figures.

    Args:
        heatmaps: (N, H, W) maps of the true class.
        boxes: for each image its annotated boxes, (M, 4) or (4,).
        relative_to: as in `heatmap_boxes`.
        part: as in `heatmap_boxes`.
        thresholds: (T,) the grid; None is `FRACTIONS` or `MULTIPLES`.

    Raises:
        ValueError: as `heatmap_boxes`; maps and boxes that do not belong together.

    Example:
        >>> heatmap = np.zeros((1, 8, 8), np.float32)
        >>> heatmap[0, 2:6, 2:6], heatmap[0, 1, 1] = 1.0, 0.3
        >>> found = tune(heatmap, [[2, 2, 6, 6]], part="all")
        >>> found.rule, float(found.errors.min())
        (BoxRule(threshold=0.5, relative_to='max', part='all'), 0.0)
    """
    if relative_to not in GRIDS:
        raise ValueError(f"relative_to={relative_to!r}; expected {' or '.join(map(repr, GRIDS))}")
    grid = GRIDS[relative_to] if thresholds is None else thresholds
    found = box_overlaps(heatmaps, boxes, grid, relative_to=relative_to, part=part)
    return choose_threshold(found, grid, relative_to=relative_to, part=part)


def box_overlaps(
    heatmaps: Float[np.ndarray, "n h w"],
    boxes: Sequence[Any] | np.ndarray,
    thresholds: Sequence[float] | np.ndarray,
    *,
    relative_to: Unit = "max",
    part: Part = "largest",
) -> Float[np.ndarray, "n t"]:
    """Return how well each map's box fits at each threshold: all that the errors are made of.

    Args:
        heatmaps: (N, H, W) maps of the true class.
        boxes: for each image its annotated boxes, (M, 4) or (4,).
        thresholds: (T,) the grid.
        relative_to: as in `heatmap_boxes`.
        part: as in `heatmap_boxes`.

    Returns:
        (N, T) IoU with the box that is met best.

    Raises:
        ValueError: as `tune`.

    Example:
        >>> heatmap = np.zeros((1, 8, 8), np.float32)
        >>> heatmap[0, 2:6, 2:6], heatmap[0, 2, 2:] = 0.5, 1.0
        >>> box_overlaps(heatmap, [[2, 2, 6, 6]], [0.4, 0.9]).round(3).tolist()
        [[0.667, 0.222]]
    """
    truth = true_boxes(boxes, len(heatmaps))
    found = heatmap_boxes(heatmaps, thresholds, relative_to=relative_to, part=part)
    return np.stack([best_iou(b, t) for b, t in zip(found, truth, strict=True)])


def choose_threshold(
    overlaps: Float[np.ndarray, "n t"],
    thresholds: Sequence[float] | np.ndarray,
    *,
    relative_to: Unit = "max",
    part: Part = "largest",
) -> Tuned:
    """Choose the threshold whose boxes miss least often.

    Args:
        overlaps: (N, T) what `box_overlaps` returned.
        thresholds: (T,) of which grid.
        relative_to: as it was given.
        part: as it was given.

    Example:
        >>> choose_threshold(np.array([[0.4, 0.6, 0.7]]), [0.1, 0.2, 0.3]).rule.threshold
        0.3
    """
    errors = (overlaps < ENOUGH).mean(0)
    # The middle of the best: a threshold at the edge of them is the least to be relied upon.
    chosen = np.flatnonzero(errors == errors.min())
    middle = chosen[len(chosen) // 2]
    return Tuned(
        BoxRule(float(thresholds[middle]), relative_to, part),
        np.asarray(thresholds, np.float64),
        errors,
    )


def true_boxes(boxes: Sequence[Any] | np.ndarray, count: int) -> list[np.ndarray]:
    """Return (M, 4) boxes for each image.

    Raises:
        ValueError: not as many as images, an image without boxes, a box without area.
    """
    truth = [np.atleast_2d(np.asarray(found)) for found in boxes]
    if len(truth) != count:
        raise ValueError(f"boxes are given for {len(truth)} images, expected {count}")
    for number, found in enumerate(truth):
        if found.ndim != 2 or found.shape[1] != 4 or not len(found):
            raise ValueError(f"boxes[{number}] has shape {found.shape}, expected (boxes, 4)")
        if (found[:, 2:] <= found[:, :2]).any():
            raise ValueError(
                f"boxes[{number}] holds {found.tolist()}, expected (top, left, bottom, right) with "
                "bottom below top and right beyond left"
            )
    return truth


def best_iou(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the IoU of each box (K, 4) with that of the true ones (M, 4) which it meets best."""
    return box_iou(boxes[:, None], truth[None]).max(1)
