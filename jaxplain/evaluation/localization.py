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

The threshold is a choice that decides much: it is searched for on other images
(`jaxplain.evaluation.thresholds`).
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxplain.evaluation.boxes import Part, Unit, heatmap_boxes
from jaxplain.evaluation.results import Estimate
from jaxplain.evaluation.thresholds import (
    ENOUGH,
    BoxRule,
    Tuned,
    best_iou,
    true_boxes,
    tune,
)


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
    truth = true_boxes(boxes, len(maps))
    found = heatmap_boxes(
        maps.reshape(-1, *maps.shape[2:]),
        [rule.threshold],
        relative_to=rule.relative_to,
        part=rule.part,
    ).reshape(*guesses.shape, 4)
    iou = np.stack([best_iou(b, t) for b, t in zip(found, truth, strict=True)])
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
    relative_to: Unit = "max",
    part: Part = "largest",
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
    truth = true_boxes(boxes, len(maps))
    tuned = tune(maps[:tuning], truth[:tuning], relative_to=relative_to, part=part)
    judged = labels[tuning:]
    known = localize(maps[tuning:, None], judged[:, None], judged, truth[tuning:], tuned.rule)
    guesses = np.argsort(-logits[tuning:], axis=1, kind="stable")[:, :top]
    return tuned, localization_errors(known.iou[:, 0], guesses, judged)


def localization_errors(
    overlap: Float[np.ndarray, " n"],
    guesses: Int[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"],
) -> Localization:
    """Return the errors of K guesses an image, from the box of the true class alone.

    Args:
        overlap: (N,) IoU of the true class's box, at the threshold that was chosen.
        guesses: (N, K) classes, the likeliest first, all different within an image.
        labels: (N,) true classes.

    Example:
        >>> guesses = np.array([[1, 2], [1, 2]])
        >>> found = localization_errors(np.array([0.6, 0.3]), guesses, np.array([2, 1]))
        >>> found.localization_error.tolist(), found.classification_error.tolist()
        ([1.0, 0.5], [0.5, 0.0])
    """
    named = guesses == labels[:, None]
    hits = np.logical_or.accumulate(named & (overlap >= ENOUGH)[:, None], 1)
    right = np.logical_or.accumulate(named, 1)
    iou = np.where(named, overlap[:, None], np.nan)
    return Localization(1 - hits.mean(0), 1 - right.mean(0), hits, iou)


def error_interval(errors: Bool[np.ndarray, " n"], *, confidence: float = 0.95) -> Estimate:
    """Return the share of errors, with Wilson's interval (J. Am. Stat. Assoc. 1927).

    Args:
        errors: (N,) one an image.
        confidence: coverage aimed at.

    Raises:
        ValueError: no image, or a confidence outside (0, 1).

    Example:
        >>> found = error_interval(np.arange(100) < 30)
        >>> found.value, round(found.low, 3), round(found.high, 3)
        (0.3, 0.219, 0.396)
    """
    if not len(errors) or not 0 < confidence < 1:
        raise ValueError(
            f"{len(errors)} errors at a confidence of {confidence}; expected one at least, and a "
            "confidence between 0 and 1"
        )
    count, share = len(errors), float(np.mean(errors))
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    shrink = 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / shrink
    reach = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / shrink
    return Estimate(share, max(0.0, middle - reach), min(1.0, middle + reach), count)


def localize_methods(
    explain: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]],
    images: np.ndarray,
    logits: Float[np.ndarray, "n c"],
    labels: Int[np.ndarray, " n"],
    boxes: Sequence[Any] | np.ndarray,
    *,
    tuning: int,
    top: int = 5,
    relative_to: Unit = "max",
    part: Part = "largest",
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
