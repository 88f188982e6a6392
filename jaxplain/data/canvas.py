"""A painter's canvas that knows exactly where the marked shapes are visible.

Shapes are drawn `OVERSAMPLE` times larger than asked for, without smoothing, and averaged down. The
colour of a pixel and the coverage of the marked shapes come from the same samples, which is what makes a
mask exact: it holds the pixels of which marked shapes fill at least half.

Coordinates are fractions of the picture's side: x to the right, y downwards, (0, 0) the outer corner of
the upper left pixel. Colours are red, green and blue in 0..255.
"""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np

OVERSAMPLE = 4
_SHIFT = 6  # fractional bits of the coordinates handed to OpenCV
_PLAIN, _MARKED = 128, 255

Colour = tuple[float, float, float]


class Layer(NamedTuple):
    """What a canvas amounts to at the picture's own resolution S.

    Attributes:
        colour: (S, S, 3) float32 in 0..255, already multiplied by `alpha`.
        alpha: (S, S, 1) float32 in 0..1, the part of a pixel that any shape covers.
        marked: (S, S) float32 in 0..1, the part of a pixel in which a marked shape is on top.
    """

    colour: np.ndarray
    alpha: np.ndarray
    marked: np.ndarray


class Canvas:
    """Opaque shapes over nothing; later shapes hide earlier ones, marked or not."""

    def __init__(self, size: int):
        """Starts empty, for a picture of `size` x `size` pixels."""
        self._side = size * OVERSAMPLE
        # Colour and kind in one array, so that one call paints both and they cannot disagree.
        self._pixels = np.zeros((self._side, self._side, 4), np.uint8)

    def polygon(self, points: np.ndarray, colour: Colour, *, marked: bool = False) -> None:
        """Fills the polygon with corners `points` (P, 2)."""
        corners = np.rint((points * self._side - 0.5) * (1 << _SHIFT)).astype(np.int32)
        kind = _MARKED if marked else _PLAIN
        cv2.fillPoly(self._pixels, [corners], (*colour, kind), lineType=cv2.LINE_8, shift=_SHIFT)

    def layer(self) -> Layer:
        """The canvas, averaged down to the picture's size."""
        size = (self._side // OVERSAMPLE,) * 2
        kind = np.ascontiguousarray(self._pixels[..., 3])

        def share(least: int) -> np.ndarray:
            _, inside = cv2.threshold(kind, least - 1, 255, cv2.THRESH_BINARY)
            return _shrink(inside, size) / np.float32(255)

        colour = _shrink(self._pixels, size)[..., :3]
        return Layer(colour, share(_PLAIN)[..., None], share(_MARKED))


def _shrink(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The exact mean of each block of samples, as float32."""
    return cv2.resize(pixels.astype(np.float32), size, interpolation=cv2.INTER_AREA)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from its hue in degrees and saturation and value in 0..1.

    Example:
        >>> hsv(120, 1.0, 1.0)
        (0.0, 255.0, 0.0)
    """
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return 255 * red, 255 * green, 255 * blue


def shade(colour: Colour, factor: float) -> Colour:
    """The same surface with less light (`factor` < 1), or with more, where it turns paler.

    Example:
        >>> shade((200.0, 100.0, 0.0), 0.5)
        (100.0, 50.0, 0.0)
        >>> shade((200.0, 100.0, 0.0), 1.2)
        (211.0, 131.0, 51.0)
    """
    if factor <= 1:
        red, green, blue = (channel * factor for channel in colour)
    else:
        red, green, blue = (channel + (255 - channel) * min(factor - 1, 1) for channel in colour)
    return red, green, blue
