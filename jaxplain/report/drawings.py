"""Pictures and maps as data URIs, each stored once.

The maps laid over a picture are transparent PNG of 48 colours: the page can fade them, and lay them
over the picture in grey or in colour, without a second copy.
"""

import base64
import io
from typing import Any

import numpy as np

from jaxplain import plot

SHADES = 48
"""Colours of a map in the page: more cannot be told apart, and cost bytes."""

LARGEST_PICTURE = 384
"""Longer side, in pixels, of a picture in the page."""


def picture_uri(picture: np.ndarray) -> str:
    """Return a picture, reduced to `LARGEST_PICTURE`, as WebP; small ones without loss.

    Raises:
        TypeError: it is not uint8, or has no such shape.
    """
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE), Image.Resampling.LANCZOS)
    return _encoded(image, "WEBP", quality=88, method=4, lossless=max(image.size) < 64)


def map_uri(heatmap: np.ndarray, *, signed: bool) -> str:
    """Return a map as a transparent PNG of `SHADES` colours.

    Raises:
        ValueError: it is not (H, W), or not finite.
    """
    from PIL import Image

    values = plot.levels(heatmap, signed=signed)
    # An odd number of shades for a signed map: zero has its own, and is wholly transparent.
    shades = SHADES + 1 if signed else SHADES
    unit = (values + 1) / 2 if signed else values
    image = Image.fromarray(np.round(unit * (shades - 1)).astype(np.uint8), mode="P")
    image.putpalette(plot.palette(signed=signed, size=shades).tobytes())
    alpha = plot.opacity(np.linspace(-1 if signed else 0, 1, shades))
    return _encoded(
        image, "PNG", optimize=False, transparency=np.round(255 * alpha).astype(np.uint8).tobytes()
    )


def shade_uri(mask: np.ndarray) -> str:
    """Return darkness outside the mask: over the picture, it leaves the evidence in the light."""
    from PIL import Image

    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette([12, 12, 16, 0, 0, 0])
    return _encoded(image, "PNG", transparency=bytes([205, 0]))


def outline_uri(mask: np.ndarray) -> str:
    """Return the edge of the mask, white with a dark rim, so that it shows on everything."""
    from PIL import Image, ImageFilter

    factor = max(1, round(LARGEST_PICTURE / max(mask.shape)))
    size = (factor * mask.shape[1], factor * mask.shape[0])
    smooth = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
    solid = smooth.point([0] * 128 + [255] * 128)
    inner = np.asarray(solid) != np.asarray(solid.filter(ImageFilter.MaxFilter(5)))
    outer = np.asarray(solid.filter(ImageFilter.MinFilter(3))) != np.asarray(
        solid.filter(ImageFilter.MaxFilter(7))
    )
    image = Image.fromarray(np.where(inner, 2, outer).astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 0, 0, 0, 255, 255, 255])
    return _encoded(image, "PNG", optimize=True, transparency=bytes([0, 150, 255]))


def bar_uri(*, signed: bool) -> str:
    """Return the colour bar, one pixel high."""
    from PIL import Image

    pixels = plot.colour_bar(signed=signed, length=128, thickness=1)
    return _encoded(Image.fromarray(pixels), "PNG")


def _encoded(image: Any, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
