"""Ways to cut an image once, and to tell its foreground; see `jaxplain.superpixels`."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxplain.superpixels.labels import Labels, contiguous
from jaxplain.superpixels.shift import shift_inside

SEED = 0.5
"""Of the largest value of a map: where it is at least as large, GrabCut starts from foreground."""

BACKGROUND = 0.1
"""Likewise: where the map is smaller, GrabCut takes the pixel for background and never doubts."""


def grid(size: tuple[int, int], *, rows: int = 8, columns: int = 8) -> Labels:
    """Return rectangles of nearly equal size.

    Args:
        size: (H, W).
        rows: rectangles on top of each other, at most H.
        columns: rectangles beside each other, at most W.

    Raises:
        ValueError: fewer than one rectangle, or less than a pixel for each.

    Example:
        >>> grid((2, 5), rows=1, columns=2)[0]
        array([0, 0, 0, 1, 1], dtype=int32)
    """
    for name, number, length in (("rows", rows, size[0]), ("columns", columns, size[1])):
        if not 1 <= number <= length:
            raise ValueError(f"{name}={number}; expected 1 to {length} for an image of {size}")
    down = np.arange(size[0]) * rows // size[0]
    right = np.arange(size[1]) * columns // size[1]
    return (down[:, None] * columns + right[None]).astype(np.int32)


def slic(
    image: Any, *, segments: int = 50, compactness: float | int = 10.0, mask: Any = None
) -> Labels:
    """Return SLIC superpixels (Achanta et al. 2012, doi:10.1109/TPAMI.2012.120).

    Args:
        image: (H, W, 3) or (H, W, 1), see the module.
        segments: about how many.
        compactness: how much nearness in the image counts against nearness in colour.
        mask: (H, W) booleans, where to cut; elsewhere the label is -1.

    Raises:
        ValueError: a wrong image, no segments, or a mask of another size.

    Example:
        >>> slic(np.random.default_rng(0).random((8, 8, 3)), segments=4).shape
        (8, 8)
    """
    from skimage.segmentation import slic as cluster

    colours = _colours(image)
    if segments < 1:
        raise ValueError(f"segments={segments}: at least 1")
    if mask is None:
        inside = np.ones(colours.shape[:2], bool)
        found = cluster(colours, segments, compactness, start_label=0, convert2lab=True)
    else:
        inside = _mask(mask, colours.shape[:2])
        if not inside.any():
            return np.full(inside.shape, -1, np.int32)
        found = cluster(
            colours, min(segments, int(inside.sum())), compactness, start_label=1, mask=inside
        )
    labels = np.full(inside.shape, -1, np.int32)
    labels[inside] = np.unique(found[inside], return_inverse=True)[1]
    return labels


def quickshift(
    image: Any,
    *,
    kernel_size: float | int = 4,
    max_dist: float | int = 200,
    ratio: float | int = 0.2,
    inside: Any = None,
) -> Labels:
    """Return Quickshift superpixels (Vedaldi and Soatto 2008), by default with LIME's parameters.

    Args:
        image: (H, W, 3) or (H, W, 1), see the module.
        kernel_size: width of the density's kernel, at least 1; larger gives fewer superpixels.
        max_dist: the farthest that a pixel may look for its parent.
        ratio: 0..1, how much colour counts beside place.
        inside: (H, W) integers, regions each of which is cut by itself.

    Raises:
        ValueError: a wrong image, regions of another size, or parameters out of range.

    Example:
        >>> quickshift(np.random.default_rng(0).random((8, 8, 3))).min()
        np.int32(0)
    """
    from skimage.segmentation import quickshift as shift

    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}; expected 0 to 1")
    if kernel_size < 1:
        raise ValueError(f"kernel_size={kernel_size}: at least 1")
    if inside is not None:
        colours, regions = _colours(image), np.asarray(inside)
        if regions.shape != colours.shape[:2]:
            raise ValueError(f"inside has shape {regions.shape}; the image is {colours.shape[:2]}")
        return shift_inside(
            colours, regions, kernel_size=kernel_size, max_dist=max_dist, ratio=ratio
        )
    # Its generator only breaks ties; 42 is what LIME and scikit-image seed it with.
    found = shift(_colours(image), ratio, kernel_size, max_dist, rng=42)  # type: ignore[arg-type]
    return contiguous(found)


def grab_cut(
    image: Any,
    heatmap: Any,
    *,
    seed: float | int = SEED,
    background: float | int = BACKGROUND,
    iterations: int = 5,
) -> tuple[Bool[np.ndarray, "h w"], str]:
    """Return the foreground that GrabCut (Rother et al. 2004) grows from the peak of a map.

    Pixels where the map reaches `seed` of its maximum are probably foreground, those below
    `background` of it are background, and those between are probably background.

    GrabCut has nothing to go by when the map is constant or nowhere positive, or the seed covers
    every pixel; it can fail on an image of one colour; and it may answer that all, or nothing, is
    foreground. In the first case there is no foreground, otherwise it is the seed. Either is told.

    Args:
        image: (H, W, 3) or (H, W, 1), see the module.
        heatmap: (H, W) finite numbers; negative ones count as zero.
        seed: in 0..1, above `background`.
        background: in 0..1.
        iterations: of GrabCut.

    Returns:
        (H, W) booleans, and why they are not GrabCut's, or "".

    Raises:
        ValueError: a wrong image, a map of another size or not finite, or thresholds out of order.

    Example:
        >>> foreground, why = grab_cut(np.full((8, 8, 3), 0.5), np.zeros((8, 8)))
        >>> foreground.any(), why
        (np.False_, 'the map has no peak')
    """
    import cv2

    colours = np.round(_colours(image) * 255).astype(np.uint8)
    values = _heatmap(heatmap, colours.shape[:2])
    if not 0 <= background < seed <= 1:
        raise ValueError(
            f"seed={seed} and background={background}; expected 0 ≤ background < seed ≤ 1"
        )
    peak = values.max()
    if peak <= 0 or values.min() == peak:
        return np.zeros(values.shape, bool), "the map has no peak"
    start = values >= seed * peak
    if start.all():
        return np.zeros(values.shape, bool), "the map is high everywhere"
    if (colours == colours[0, 0]).all():
        return start, "the image has one colour"
    state = np.where(start, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    state[values < background * peak] = cv2.GC_BGD
    cv2.setRNGSeed(0)  # of the k-means that starts the mixtures of colours
    models = np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(colours[..., ::-1])
    try:
        cv2.grabCut(bgr, state, None, *models, iterations, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    except cv2.error as error:
        return start, f"GrabCut failed: {error.err}"
    foreground = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    if not foreground.any() or foreground.all():
        return start, f"GrabCut took {'everything' if foreground.any() else 'nothing'}"
    return foreground, ""


def _colours(image: Any) -> Float[np.ndarray, "h w 3"]:
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] not in (1, 3) or array.size == 0:
        raise ValueError(f"image has shape {array.shape}; expected (height, width, 3 or 1)")
    values = array.astype(np.float64) / 255 if array.dtype == np.uint8 else array.astype(np.float64)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"image holds values from {values.min():.3g} to {values.max():.3g}; expected uint8, or "
            "floats in 0..1 (see superpixels.picture)"
        )
    return np.ascontiguousarray(np.broadcast_to(values, (*array.shape[:2], 3)))


def _heatmap(heatmap: Any, size: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(heatmap, np.float64)
    if values.shape != size:
        raise ValueError(f"heatmap has shape {values.shape}; the image is {size}")
    if not np.isfinite(values).all():
        raise ValueError(f"heatmap holds {int((~np.isfinite(values)).sum())} non-finite values")
    return np.maximum(values, 0)


def _mask(mask: Any, size: tuple[int, ...]) -> np.ndarray:
    inside = np.asarray(mask)
    if inside.shape != size or inside.dtype != bool:
        raise ValueError(f"mask is {inside.dtype} {inside.shape}; expected booleans {size}")
    return inside
