r"""Superpixels: images cut into regions, on the host, by scikit-image and OpenCV.

A segmentation is an int32 array (H, W) of labels 0 … n - 1, every one of which occurs. `slic`,
`quickshift` and `grid` cut an image once; `nested` cuts it at the two scales of MINT (Cui, Wang and
Wang, "Multi-scale Interpretation Model for Convolutional Neural Networks", section II.A):

1. a class-discriminative map of a deep layer is the seed of GrabCut, whose foreground is one coarse
   superpixel (`grab_cut`);
2. SLIC cuts the background into the other coarse superpixels, eq. (1);
3. Quickshift cuts each coarse superpixel by itself into fine ones, eq. (2), so that each of these
   lies in exactly one coarse superpixel (`quickshift`).

An image of which Quickshift makes fewer than four superpixels (a small or a plain one) is cut into
a grid instead, of 8 × 8 or as few as leave 4 pixels to a side.

Slivers are merged into the neighbour with which they share the longest border, fine ones within
their coarse one. Where several classes have coarse superpixels of their own, these are first moved
a little so that they cross in no slivers (`crossings`). Everything is deterministic: the same image
gives the same labels.

Images are arrays (H, W, 3) or (H, W, 1): uint8, or floats in 0..1, RGB. `picture` makes one of a
network's input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxplain.model import Model
from jaxplain.names import unknown
from jaxplain.superpixels.crossings import settle
from jaxplain.superpixels.cuts import BACKGROUND, SEED, grab_cut, grid, quickshift, slic
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

METHODS: dict[str, Callable[[Any], Labels]] = {
    "quickshift": quickshift,
    "slic": slic,
    "grid": lambda image: grid(image.shape[:2]),
}
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

    By the model's preprocessing; without one, the range of the values is stretched to 0..1. Of
    channels that are no colours, neither one nor three, it is the mean.

    Args:
        image: (H, W, C) floats.
        model: whose input it is.

    Example:
        >>> picture(np.array([[[-1.0], [3.0]]]))[0, :, 0]
        array([0., 1.], dtype=float32)
        >>> picture(np.ones((2, 2, 5))).shape
        (2, 2, 1)
    """
    values = np.asarray(image, np.float32)
    if values.shape[-1] not in (1, 3):
        values = values.mean(-1, keepdims=True)
    elif model is not None and model.preprocessing is not None:
        return model.preprocessing.invert(values)
    low, high = values.min(), values.max()
    return (values - low) / (high - low if high > low else 1)


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
            each has coarse superpixels of its own, and the fine ones, which lie inside one of every
            class, serve all classes.
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
        most_fine: likewise for fine superpixels, each within its coarse one. If the coarse ones of
            the classes, or the specks of a foreground, part the image into more pieces than this,
            the smallest pieces change their coarse superpixel, see `crossings`.

    Raises:
        ValueError: as `grab_cut` and `slic`, a share out of range, or fewer fine superpixels
            allowed than a class has coarse ones.

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
    found, joint = settle(found, pixels if len(found) > 1 else 0, most=most_fine)
    fine = quickshift(image, kernel_size=kernel_size, max_dist=max_dist, ratio=ratio, inside=joint)
    fine = merge_small(pieces(joint, _or_grid(fine)), pixels, most=most_fine, inside=joint)
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
    """Return the superpixels of a network's inputs; see the module.

    An image of which Quickshift or SLIC makes fewer than four is cut into a grid instead.

    Args:
        images: (B, H, W, C) floats.
        method: "quickshift" (with LIME's parameters), "slic" (about 50), or "grid".
        model: whose input they are, see `picture`.
        most: merge the smallest until no more than this are left.

    Raises:
        ValueError: no such method.

    Example:
        >>> segment(np.zeros((2, 16, 8, 3), np.float32)).max((1, 2))
        array([7, 7], dtype=int32)
    """
    check_method(method)
    size = np.shape(images)[1:3]
    found = []
    for image in np.asarray(images):
        cut = METHODS[method](picture(image, model)) if method != "grid" else np.zeros(size, int)
        found.append(merge_small(_or_grid(cut), 0, most=most))
    return np.stack(found)


def _or_grid(labels: np.ndarray) -> Labels:
    """The labels, or a grid if there are fewer than four; see the module."""
    if labels.max() >= 3:
        return labels
    height, width = labels.shape
    rows, columns = (min(8, max(side // 4, 2), side) for side in labels.shape)
    return grid((height, width), rows=rows, columns=columns)
