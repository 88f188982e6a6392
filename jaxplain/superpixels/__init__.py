r"""Superpixels: images cut into regions, on the host, by scikit-image and OpenCV.

A segmentation is an int32 array (H, W) of labels 0 … n - 1, every one of which occurs. `slic`,
`quickshift` and `grid` cut an image once; `nested` cuts it at the two scales of MINT (Cui, Wang and
Wang, "Multi-scale Interpretation Model for Convolutional Neural Networks", section II.A):

1. a class-discriminative map of a deep layer is the seed of GrabCut, whose foreground is one coarse
   superpixel (`grab_cut`);
2. SLIC cuts the background into the other coarse superpixels, eq. (1);
3. Quickshift cuts the image into small superpixels, and those that cross a coarse border are cut
   there, so that each lies in exactly one coarse superpixel, eq. (2). (The paper runs Quickshift
   inside each coarse one; that would see the border as an edge of the picture.)

Slivers are merged into the neighbour with which they share the longest border. Everything is
deterministic: the same image gives the same labels.

Images are arrays (H, W, 3) or (H, W, 1): uint8, or floats in 0..1, RGB. `picture` makes one of a
network's input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxplain.model import Model
from jaxplain.names import unknown
from jaxplain.superpixels.labels import (
    Labels,
    bucket,
    check_segments,
    contiguous,
    membership,
    merge_small,
    pieces,
)

__all__ = [
    "BACKGROUND",
    "METHODS",
    "SEED",
    "Labels",
    "Nested",
    "bucket",
    "check_method",
    "check_segments",
    "contiguous",
    "grab_cut",
    "grid",
    "membership",
    "merge_small",
    "nested",
    "picture",
    "quickshift",
    "segment",
    "slic",
]

SEED = 0.5
"""Of the largest value of a map: where it is at least as large, GrabCut starts from foreground."""

BACKGROUND = 0.1
"""Likewise: where the map is smaller, GrabCut takes the pixel for background and never doubts."""


METHODS: dict[str, Callable[[Any], Labels]]
"""Ways to cut an image once, by name."""


class Nested(NamedTuple):
    """Superpixels at two scales.

    Attributes:
        coarse: (H, W) labels 0 … p - 1; the foreground is 0 where there is one. (T, H, W) for
            several classes.
        fine: (H, W) labels 0 … q - 1, each inside one coarse superpixel.
        fallback: why there is no foreground of GrabCut's, or "".
    """

    coarse: Int[np.ndarray, "*t h w"]
    fine: Labels
    fallback: str = ""


def picture(image: Any, model: Model | None = None) -> Float[np.ndarray, "h w c"]:
    """Return what a network's input looks like, in 0..1.

    By the model's preprocessing; without one, the range of the values is stretched to 0..1.

    Args:
        image: (H, W, C) floats.
        model: whose input it is.

    Example:
        >>> picture(np.array([[[-1.0], [3.0]]]))[0, :, 0]
        array([0., 1.], dtype=float32)
    """
    values = np.asarray(image, np.float32)
    if model is not None and model.preprocessing is not None:
        return model.preprocessing.invert(values)
    low, high = values.min(), values.max()
    return (values - low) / (high - low if high > low else 1)


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
) -> Labels:
    """Return Quickshift superpixels (Vedaldi and Soatto 2008), by default with LIME's parameters.

    Args:
        image: (H, W, 3) or (H, W, 1), see the module.
        kernel_size: width of the density's kernel; larger gives fewer superpixels.
        max_dist: the farthest that a pixel may look for its parent.
        ratio: 0..1, how much colour counts beside place.

    Raises:
        ValueError: a wrong image, or parameters out of range.

    Example:
        >>> quickshift(np.random.default_rng(0).random((8, 8, 3))).min()
        np.int32(0)
    """
    from skimage.segmentation import quickshift as shift

    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}; expected 0 to 1")
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


def nested(
    image: Any,
    heatmap: Any,
    *,
    background: int = 10,
    compactness: float | int = 10.0,
    kernel_size: float | int = 4,
    max_dist: float | int = 200,
    ratio: float | int = 0.2,
    smallest: float | int = 0.001,
    most_coarse: int | None = None,
    most_fine: int | None = None,
) -> Nested:
    """Return MINT's superpixels at two scales; see the module.

    Args:
        image: (H, W, 3) or (H, W, 1), see the module.
        heatmap: (H, W) class-discriminative map, the seed of GrabCut. Or (T, H, W), one a class:
            each has coarse superpixels of its own, and the fine ones, which are cut at the borders
            of all of them, serve every class.
        background: about how many coarse superpixels SLIC makes of the background. (The paper does
            not say; this is our choice, and so are the next two.)
        compactness: of SLIC.
        smallest: superpixels with fewer pixels than this share of the image are merged into a
            neighbour, fine ones within their coarse one.
        kernel_size: of Quickshift; this and the next two are LIME's.
        max_dist: of Quickshift.
        ratio: of Quickshift.
        most_coarse: merge the smallest coarse superpixels of the background until no more than this
            are left, for each class.
        most_fine: likewise for fine superpixels, each within its coarse one.

    Raises:
        ValueError: as `grab_cut` and `slic`, a share out of range, or fewer fine superpixels
            allowed than there are coarse ones.

    Example:
        >>> image = np.random.default_rng(0).random((16, 16, 3))
        >>> image[4:12, 4:12] /= 8
        >>> heat = np.zeros((16, 16))
        >>> heat[5:11, 5:11] = 1
        >>> found = nested(image, heat, background=4)
        >>> np.unique(found.coarse[5:11, 5:11])
        array([0], dtype=int32)
        >>> membership(found.coarse, found.fine).sum(1).min()
        np.float32(1.0)
    """
    if not 0 <= smallest < 1:
        raise ValueError(f"smallest={smallest}; expected a share of the image, 0 ≤ smallest < 1")
    heatmaps = np.asarray(heatmap)
    pixels = smallest * np.shape(image)[0] * np.shape(image)[1]
    found, reasons = [], []
    for one in heatmaps if heatmaps.ndim == 3 else heatmaps[None]:
        foreground, why = grab_cut(image, one)
        rest = slic(image, segments=background, compactness=compactness, mask=~foreground)
        labels = np.where(foreground, -1, rest)
        found.append(merge_small(labels, pixels, most=most_coarse, inside=foreground))
        reasons.append(why)
    joint = found[0].astype(np.int64)
    for labels in found[1:]:
        joint = contiguous(joint * (int(labels.max()) + 1) + labels).astype(np.int64)
    fine = quickshift(image, kernel_size=kernel_size, max_dist=max_dist, ratio=ratio)
    fine = merge_small(pieces(joint, fine), pixels, most=most_fine, inside=joint)
    coarse = np.stack(found) if heatmaps.ndim == 3 else found[0]
    return Nested(coarse, fine, "; ".join(dict.fromkeys(why for why in reasons if why)))


def check_method(method: str) -> None:
    """Raise ValueError for a way to cut that there is not; the nearest are named."""
    if method not in METHODS:
        raise ValueError(unknown("way to cut superpixels", method, METHODS))


def segment(
    images: Any,
    method: str = "quickshift",
    *,
    model: Model | None = None,
    most: int | None = None,
) -> Int[np.ndarray, "b h w"]:
    """Return the superpixels of a network's inputs.

    An image of which Quickshift or SLIC makes fewer than four (a small or a plain one) is cut into
    a grid of 8 × 8 instead, or of its pixels if there are fewer.

    Args:
        images: (B, H, W, C) floats.
        method: "quickshift" (with LIME's parameters), "slic" (about 50), or "grid" (8 × 8).
        model: whose input they are, see `picture`.
        most: merge the smallest until no more than this are left.

    Raises:
        ValueError: no such method.

    Example:
        >>> segment(np.zeros((2, 8, 4, 3), np.float32)).max((1, 2))
        array([31, 31], dtype=int32)
    """
    check_method(method)
    size = np.shape(images)[1:3]
    found = []
    for image in np.asarray(images):
        cut = METHODS[method](picture(image, model)) if method != "grid" else np.zeros(size, int)
        if cut.max() < 3:
            cut = grid(size, rows=min(8, size[0]), columns=min(8, size[1]))
        found.append(merge_small(cut, 0, most=most))
    return np.stack(found)


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


METHODS = {"quickshift": quickshift, "slic": slic, "grid": lambda image: grid(image.shape[:2])}
