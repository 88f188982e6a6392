r"""Weakly supervised localisation: does the box around a heat map find the object?

The network was trained on class labels alone; its explanation of a class is turned into a box
(`jaxplain.evaluation.boxes`), and the box is compared with the annotated ones. Two protocols:

- ILSVRC (Russakovsky et al., arXiv:1409.0575, §4.2), as CHIP and Grad-CAM follow it: k guesses,
  each a class and a box. An image counts as an error unless one guess has the right class *and* an
  IoU of 0.5 or more with one of the boxes of that class. `classification_error` is the same for the
  classes alone, and is how low the localisation error can go.
- Known class (Fong and Vedaldi, arXiv:1704.03296; Guided Feature Inversion): the true class is
  explained, and only the box is judged. That is the first protocol with the true class as the only
  guess.

The threshold is a choice that decides much: it is searched for on other images (`tune`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxplain.evaluation.boxes import box_iou, heatmap_boxes

FRACTIONS = tuple(step / 20 for step in range(1, 20))
"""Grid for thresholds relative to the maximum: 0.05, 0.1 … 0.95 (CHIP states none)."""

MULTIPLES = tuple(step / 2 for step in range(21))
"""Grid for thresholds relative to the mean: 0, 0.5 … 10 (Fong and Vedaldi's)."""

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
    relative_to: str = "max"
    part: str = "largest"


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


class Localization(NamedTuple):
    """Errors of one method under the ILSVRC protocol.

    Attributes:
        localization_error: (K,) share of images in error when the first 1, 2 … K guesses count.
        classification_error: (K,) the same for the classes alone.
        hits: (N, K) whether each image's first 1, 2 … K guesses hold a right one, for intervals.
        iou: (N, K) of each guess's box with the best box of the true class; NaN for a guess of
            another class whose map nobody needed (`localize_true`).
    """

    localization_error: Float[np.ndarray, " k"]
    classification_error: Float[np.ndarray, " k"]
    hits: Bool[np.ndarray, "n k"]
    iou: Float[np.ndarray, "n k"]


def tune(
    heatmaps: Float[np.ndarray, "n h w"],
    boxes: Sequence[Any] | np.ndarray,
    *,
    relative_to: str = "max",
    part: str = "largest",
    thresholds: Sequence[float] | None = None,
) -> Tuned:
    """Search for the threshold whose boxes miss least often, with the class known.

    Use images that are not those of the final figures.

    Args:
        heatmaps: (N, H, W) maps of the true class.
        boxes: for each image its annotated boxes, (M, 4) or (4,).
        relative_to: as in `heatmap_boxes`.
        part: as in `heatmap_boxes`.
        thresholds: the grid; None is `FRACTIONS` or `MULTIPLES`.

    Raises:
        ValueError: as `heatmap_boxes`; maps and boxes that do not belong together.

    Example:
        >>> heatmap = np.zeros((1, 8, 8), np.float32)
        >>> heatmap[0, 2:6, 2:6], heatmap[0, 1, 1] = 1.0, 0.3
        >>> found = tune(heatmap, [[2, 2, 6, 6]], part="all")
        >>> found.rule, float(found.errors.min())
        (BoxRule(threshold=0.5, relative_to='max', part='all'), 0.0)
    """
    grid = thresholds or (FRACTIONS if relative_to == "max" else MULTIPLES)
    truth = _truth(boxes, len(heatmaps))
    found = heatmap_boxes(heatmaps, grid, relative_to=relative_to, part=part)  # type: ignore[arg-type]
    best = np.stack([_best_iou(b, t) for b, t in zip(found, truth, strict=True)])
    errors = (best < ENOUGH).mean(0)
    # The middle of the best: a threshold at the edge of them is the least to be relied upon.
    chosen = np.flatnonzero(errors == errors.min())
    middle = chosen[len(chosen) // 2]
    return Tuned(
        BoxRule(float(grid[middle]), relative_to, part), np.asarray(grid, np.float64), errors
    )


def localize(
    heatmaps: Float[np.ndarray, "..."],
    guesses: Int[np.ndarray, "..."],
    labels: Int[np.ndarray, "..."],
    boxes: Sequence[Any] | np.ndarray,
    rule: BoxRule,
) -> Localization:
    """Judge the boxes of K guessed classes an image, the likeliest first.

    With the true class as the only guess it is the protocol with the class known.

    Args:
        heatmaps: (N, K, H, W), the map of each guessed class.
        guesses: (N, K) classes, all different within an image.
        labels: (N,) true classes.
        boxes: for each image the annotated boxes of its true class, (M, 4) or (4,).
        rule: how a map becomes a box.

    Raises:
        ValueError: shapes that do not belong together, a class guessed twice, no image.

    Example:
        >>> heatmaps = np.zeros((1, 2, 8, 8), np.float32)
        >>> heatmaps[0, 0, :2, :2], heatmaps[0, 1, 4:, 4:] = 1.0, 1.0
        >>> truth = [[4, 4, 8, 8]]
        >>> found = localize(heatmaps, np.array([[7, 3]]), np.array([3]), truth, BoxRule(0.5))
        >>> found.localization_error.tolist(), found.iou.tolist()
        ([1.0, 0.0], [[0.0, 1.0]])
    """
    maps, guesses, labels = np.asarray(heatmaps), np.asarray(guesses), np.asarray(labels)
    if maps.ndim != 4 or not len(maps) or maps.shape[:2] != guesses.shape:
        raise ValueError(
            f"heatmaps have shape {maps.shape} and guesses {guesses.shape}; expected "
            "(images, guesses, height, width) and (images, guesses), at least one image"
        )
    if labels.shape != guesses.shape[:1]:
        raise ValueError(f"labels have shape {labels.shape}, expected {guesses.shape[:1]}")
    ordered = np.sort(guesses, 1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise ValueError("guesses name a class twice for one image")
    truth = _truth(boxes, len(maps))
    found = heatmap_boxes(
        maps.reshape(-1, *maps.shape[2:]),
        [rule.threshold],
        relative_to=rule.relative_to,  # type: ignore[arg-type]
        part=rule.part,  # type: ignore[arg-type]
    ).reshape(*guesses.shape, 4)
    iou = np.stack([_best_iou(b, t) for b, t in zip(found, truth, strict=True)])
    named = guesses == labels[:, None]
    hits = np.logical_or.accumulate(named & (iou >= ENOUGH), 1)
    known = np.logical_or.accumulate(named, 1)
    return Localization(1 - hits.mean(0), 1 - known.mean(0), hits, iou)


def localize_true(
    heatmaps: Float[np.ndarray, "n h w"],
    logits: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    boxes: Sequence[Any] | np.ndarray,
    *,
    tuning: int,
    top: int = 5,
    relative_to: str = "max",
    part: str = "largest",
) -> tuple[Tuned, Localization]:
    """Tune on the first images and judge the others, from maps of the true class alone.

    A guess of another class counts as an error whatever its box, so its map decides nothing: the
    errors are those of `localize` with the maps of all guesses, at a fraction of the cost.

    Args:
        heatmaps: (N, H, W) maps of the true class.
        logits: (N, classes) of the network, whose largest are the guesses.
        labels: (N,) true classes.
        boxes: for each image the boxes of its class.
        tuning: images for the search of the threshold; the others are judged.
        top: guesses an image.
        relative_to: as in `heatmap_boxes`.
        part: as in `heatmap_boxes`.

    Returns:
        The search and the errors.

    Raises:
        ValueError: no images to tune on or to judge, more guesses than classes, and as `localize`.

    Example:
        >>> maps = np.zeros((2, 8, 8), np.float32)
        >>> maps[:, 2:6, 2:6] = 1.0
        >>> truth = np.array([[2, 2, 6, 6], [0, 0, 2, 2]])
        >>> tuned, found = localize_true(maps, np.eye(2), np.arange(2), truth, tuning=1, top=1)
        >>> found.localization_error.tolist()
        [1.0]
    """
    maps, labels = np.asarray(heatmaps), np.asarray(labels)
    if not 0 < tuning < len(maps):
        raise ValueError(f"tuning={tuning}; expected from 1 to {len(maps) - 1} of the images")
    if not 1 <= top <= logits.shape[1]:
        raise ValueError(f"top={top}; expected from 1 to {logits.shape[1]}, the number of classes")
    truth = _truth(boxes, len(maps))
    tuned = tune(maps[:tuning], truth[:tuning], relative_to=relative_to, part=part)
    judged = labels[tuning:]
    known = localize(maps[tuning:, None], judged[:, None], judged, truth[tuning:], tuned.rule)
    guesses = np.argsort(-logits[tuning:], axis=1, kind="stable")[:, :top]
    named = guesses == judged[:, None]
    hits = np.logical_or.accumulate(named & known.hits, 1)
    right = np.logical_or.accumulate(named, 1)
    iou = np.where(named, known.iou, np.nan)
    return tuned, Localization(1 - hits.mean(0), 1 - right.mean(0), hits, iou)


def localize_methods(
    explain: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    images: np.ndarray,
    logits: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    boxes: Sequence[Any] | np.ndarray,
    *,
    tuning: int,
    top: int = 5,
    relative_to: str = "max",
    part: str = "largest",
) -> dict[str, tuple[Tuned, Localization]]:
    """Tune every method on the first images and judge it on the others, as `localize_true` does.

    Args:
        explain: method name -> function of (images (B, H, W, C), classes (B,)) that returns maps
            (B, H, W).
        images: (N, H, W, C) as the network takes them.
        logits: (N, classes) of the network, whose largest are the guesses.
        labels: (N,) true classes.
        boxes: for each image the boxes of its class.
        tuning: images for the search of the threshold; the others are judged.
        top: guesses an image.
        relative_to: as in `heatmap_boxes`.
        part: as in `heatmap_boxes`.

    Returns:
        Method name -> the search and the errors.

    Raises:
        ValueError: as `localize_true`.

    Example:
        >>> images = np.zeros((2, 8, 8, 1), np.float32)
        >>> images[:, 2:6, 2:6] = 1.0
        >>> brightness = lambda images, classes: images[..., 0]
        >>> truth = np.array([[2, 2, 6, 6], [0, 0, 2, 2]])
        >>> found = localize_methods(
        ...     {"brightness": brightness}, images, np.eye(2), np.arange(2), truth, tuning=1, top=1
        ... )
        >>> found["brightness"][1].localization_error.tolist()
        [1.0]
    """
    if not 0 < tuning < len(images):
        raise ValueError(f"tuning={tuning}; expected from 1 to {len(images) - 1} of the images")
    if not 1 <= top <= logits.shape[1]:
        raise ValueError(f"top={top}; expected from 1 to {logits.shape[1]}, the number of classes")
    return {
        name: localize_true(
            np.asarray(method(images, labels)),
            logits,
            labels,
            boxes,
            tuning=tuning,
            top=top,
            relative_to=relative_to,
            part=part,
        )
        for name, method in explain.items()
    }


def _truth(boxes: Sequence[Any] | np.ndarray, count: int) -> list[np.ndarray]:
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


def _best_iou(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the IoU of each box (K, 4) with that of the true ones (M, 4) which it meets best."""
    return box_iou(boxes[:, None], truth[None]).max(1)
