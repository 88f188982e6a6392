r"""Boxes from heat maps: threshold, the part that counts, the tightest box around it.

Two protocols are in use:

- CHIP (arXiv:1902.02497, §IV-C) and Grad-CAM: pixels of at least a fraction of the map's maximum,
  and of those the largest connected component;
- Fong and Vedaldi (arXiv:1704.03296, §5.3) and Guided Feature Inversion: pixels of at least α times
  the map's mean, all of them.

A box is (top, left, bottom, right) in pixels, bottom and right exclusive, so that its area counts
pixels: what others call inclusive coordinates "plus one".
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Real

Unit = Literal["max", "mean"]
"""What a threshold is a multiple of: the maximum or the mean of a map's positive part."""

Part = Literal["largest", "all"]
"""Which of the pixels that pass the threshold a box goes around: the largest connected component,
or all."""


def heatmap_boxes(
    heatmaps: Float[np.ndarray, "..."],
    thresholds: Sequence[float] | np.ndarray,
    *,
    relative_to: Unit = "max",
    part: Part = "largest",
) -> Int[np.ndarray, "n t 4"]:
    """Return the box of each heat map at each threshold.

    Only positive values count: negative ones are evidence against the class. Where nothing passes
    the threshold, the box is the whole image.

    Args:
        heatmaps: (N, H, W) floats.
        thresholds: (T,), multiples of what `relative_to` says.
        relative_to: "max" or "mean" of each map's positive part.
        part: "largest" takes the largest connected component (pixels that touch at a side or a
            corner; of equally large ones that which reaches furthest up, then left), "all" takes
            all pixels.

    Returns:
        (N, T, 4).

    Raises:
        TypeError: heat maps that are not floats.
        ValueError: another shape, a map with NaN or infinity, no threshold or a negative one, or an
            unknown option.

    Example:
        >>> heatmap = np.zeros((1, 6, 6), np.float32)
        >>> heatmap[0, 1:3, 2:5], heatmap[0, 5, 0] = 1.0, 0.9
        >>> heatmap_boxes(heatmap, [0.5]).tolist()
        [[[1, 2, 3, 5]]]
        >>> heatmap_boxes(heatmap, [0.5], part="all").tolist()
        [[[1, 0, 6, 5]]]
    """
    maps = np.asarray(heatmaps)
    levels = np.asarray(thresholds, np.float64)
    if not np.issubdtype(maps.dtype, np.floating):
        raise TypeError(f"heatmaps are of type {maps.dtype}, expected floats")
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"heatmaps have shape {maps.shape}, expected (images, height, width)")
    if levels.ndim != 1 or not levels.size or not (levels >= 0).all():
        raise ValueError(f"thresholds are {levels.tolist()}, expected at least one, none negative")
    if relative_to not in ("max", "mean"):
        raise ValueError(f"relative_to={relative_to!r}; expected 'max' or 'mean'")
    if part not in ("largest", "all"):
        raise ValueError(f"part={part!r}; expected 'largest' or 'all'")
    broken = ~np.isfinite(maps).all((1, 2))
    if broken.any():
        raise ValueError(f"heatmaps[{int(broken.argmax())}] holds NaN or infinity")
    positive = np.maximum(maps, 0)
    units = positive.max((1, 2)) if relative_to == "max" else positive.mean((1, 2))
    boxes = np.empty((len(maps), levels.size, 4), np.int32)
    around = largest_component_box if part == "largest" else tight_box
    for image, (values, unit) in enumerate(zip(positive, units, strict=True)):
        for number, level in enumerate(levels):
            # In the map's own precision: a fraction of 1 must select the maximum.
            boxes[image, number] = around(
                (values >= values.dtype.type(level) * unit) & (values > 0)
            )
    return boxes


def largest_component_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Return the tightest box around a mask's largest connected component.

    Around an empty mask it is the whole image.

    Args:
        mask: (H, W) booleans.

    Example:
        >>> largest_component_box(np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0]], bool))
        (0, 0, 3, 2)
    """
    # Components in C++, of all sizes in one pass; a solution on the device took twenty times as
    # long.
    import cv2

    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if len(stats) == 1:
        return 0, 0, *mask.shape
    left, top, width, height, area = stats[1:].T  # the first is the background
    best = np.lexsort((left, top, -area))[0]
    return (
        int(top[best]),
        int(left[best]),
        int(top[best] + height[best]),
        int(left[best] + width[best]),
    )


def tight_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Return the tightest box around a mask; around an empty one, the whole image.

    Args:
        mask: (H, W) booleans.

    Example:
        >>> mask = np.zeros((5, 6), bool)
        >>> tight_box(mask)
        (0, 0, 5, 6)
        >>> mask[1:3, 2] = True
        >>> tight_box(mask)
        (1, 2, 3, 3)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, *mask.shape
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def box_iou(a: Real[np.ndarray, "... 4"], b: Real[np.ndarray, "... 4"]) -> Float[np.ndarray, "..."]:
    """Return area of overlap over area of union of boxes: CHIP eq. (17).

    Args:
        a: (..., 4), boxes (top, left, bottom, right).
        b: (..., 4), broadcastable against `a`.

    Returns:
        (...) float64, from 0 to 1; 0 for boxes without area.

    Example:
        >>> box_iou(np.array([0, 0, 4, 4]), np.array([2, 0, 6, 4])).round(4).item()
        0.3333
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = np.maximum(sides, 0).prod(-1)
    union = _area(a) + _area(b) - overlap
    return np.asarray(overlap / np.where(union > 0, union, 1))


def _area(box: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(box[..., 2:] - box[..., :2], 0).prod(-1))
