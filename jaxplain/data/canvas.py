"""A painter's canvas that knows exactly where the marked shapes are visible.

Shapes are drawn `OVERSAMPLE` times larger than asked for, without smoothing, and averaged down. The
colour of a pixel and the coverage of the marked shapes come from the same samples, which is what
makes a mask exact: it holds the pixels of which marked shapes fill at least half.

Coordinates are fractions of the picture's side: x to the right, y downwards, (0, 0) the outer
corner of the upper left pixel. Colours are red, green and blue in 0..255.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

OVERSAMPLE = 4

_SHIFT = 6  # fractional bits of the coordinates handed to OpenCV
_PLAIN, _MARKED = 128, 255
_FULL = 240  # divisible by the 16 samples of a pixel, so that averages of 0 and _FULL are exact

Colour = Sequence[float]


class Layer(NamedTuple):
    """What a canvas amounts to at the picture's own resolution S.

    Attributes:
        colour: (S, S, 3) uint8, already multiplied by `alpha`.
        alpha: (S, S) float32 in 0..1, the part of a pixel that any shape covers.
        marked: (S, S) float32 in 0..1, the part of a pixel in which a marked shape is on top.
    """

    colour: np.ndarray
    alpha: np.ndarray
    marked: np.ndarray


class Canvas:
    """Opaque shapes over nothing; later shapes hide earlier ones, marked or not."""

    def __init__(self, size: int):
        """Starts empty, for a picture of `size` x `size` pixels."""
        # Colour and kind in one array: one call paints both, so that they cannot disagree.
        self._pixels = np.zeros((size * OVERSAMPLE, size * OVERSAMPLE, 4), np.uint8)

    def polygons(self, points: np.ndarray, colours: np.ndarray, *, marked: bool = False) -> None:
        """Fills K polygons with corners `points` (K, P, 2) in `colours` (K, 3), in their order."""
        kind = float(_MARKED if marked else _PLAIN)
        corners = fixed_point(points, len(self._pixels))
        for polygon, colour in zip(corners, colours.tolist(), strict=True):
            cv2.fillPoly(self._pixels, [polygon], (*colour, kind), cv2.LINE_8, _SHIFT)

    def layer(self) -> Layer:
        """The canvas, averaged down to the picture's size."""
        kind = np.ascontiguousarray(self._pixels[..., 3])
        return Layer(
            colour=_shrink(self._pixels)[..., :3],
            alpha=_share(kind, _PLAIN),
            marked=_share(kind, _MARKED),
        )


def _share(kind: np.ndarray, least: int) -> np.ndarray:
    """The part of each pixel whose samples are of kind `least` or above."""
    _, inside = cv2.threshold(kind, least - 1, _FULL, cv2.THRESH_BINARY)
    return _shrink(inside) / np.float32(_FULL)


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """The mean of each block of samples, by two halvings: OpenCV is fastest at those."""
    for side in (len(pixels) // 2, len(pixels) // OVERSAMPLE):
        pixels = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return pixels


def fixed_point(points: np.ndarray, side: int) -> np.ndarray:
    """Points in fractions of `side` pixels as OpenCV's integers with `_SHIFT` fractional bits."""
    return np.rint((points * side - 0.5) * (1 << _SHIFT)).astype(np.int32)


def fill_smooth(picture: np.ndarray, points: np.ndarray, colours: np.ndarray) -> None:
    """Fills K polygons with corners `points` (K, P, 2) in `colours` (K, 3), with smooth edges.

    Args:
        picture: (S, S, 3) or (S, S) uint8, painted in place.
        points: fractions of S.
        colours: 0..255.
    """
    for polygon, colour in zip(fixed_point(points, len(picture)), colours.tolist(), strict=True):
        cv2.fillPoly(picture, [polygon], colour, cv2.LINE_AA, _SHIFT)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from its hue in degrees and saturation and value in 0..1.

    Example:
        >>> hsv(120.0, 1.0, 1.0)
        (0.0, 255.0, 0.0)
    """
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def shades(colour: Colour | np.ndarray, light: Sequence[float] | np.ndarray) -> np.ndarray:
    """A surface in K strengths of light: darker below 1, and paler above.

    Args:
        colour: of the surface, or of K surfaces (K, 3).
        light: K strengths.

    Returns:
        (K, 3) float64 in 0..255.

    Example:
        >>> shades((200.0, 100.0, 0.0), (0.5, 1.2)).round().tolist()
        [[100.0, 50.0, 0.0], [211.0, 131.0, 51.0]]
    """
    strength = np.asarray(light, float)[:, None]
    dimmed = np.minimum(strength, 1) * np.asarray(colour)
    return dimmed + np.clip(strength - 1, 0, 1) * (255 - dimmed)
