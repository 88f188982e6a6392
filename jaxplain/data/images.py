"""The user's own pictures: any file to RGB, as a person sees it.

Pillow reads them and not OpenCV, because it tells a picture's size without decoding it, keeps the
palette, the transparency and the EXIF orientation, and says what is wrong with a file.
"""

import os
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

MIN_SIDE = 8
"""Pixels. A smaller picture shows nothing to explain: it is a mistake, or a tracking pixel."""

MAX_PIXELS = 80_000_000
"""Width times height: 240 MB once decoded, and more than cameras make."""

# Raster formats alone. Pillow would hand others, such as EPS, to programs outside.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "TGA", "QOI")

# What Pillow's decoders raise on files that are cut off or corrupt.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)


def load_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Reads a picture: PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP, PPM, JPEG 2000, TGA or QOI.

    It comes upright (its EXIF orientation is applied), on white where it is transparent, and in RGB
    whatever it was: grey, palette, CMYK, black and white, or 16 bits a channel. Of an animation it
    is the first frame. Colour profiles are not applied.

    Args:
        path: the file.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        PermissionError: it may not be read.
        ValueError: it is empty, cut off or no picture; or it has less than 8 pixels on a side, or
            more than 80 million in all, which its header tells before anything is decoded.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder) / "clear.png"
        ...     Image.new("RGBA", (30, 20), (0, 0, 255, 0)).save(file)
        ...     picture = load_image(file)
        >>> picture.shape, picture[0, 0].tolist()
        ((20, 30, 3), [255, 255, 255])
    """
    path, name = Path(path), repr(os.fspath(path))
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"no such picture: {name}") from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{name} is a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name} is not a regular file")
    if status.st_size == 0:
        raise ValueError(f"{name} is empty (0 bytes)")
    with path.open("rb") as file, warnings.catch_warnings():
        # Doubts about metadata, and about sizes that are checked here.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            picture = Image.open(file, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"{name} is too large: it has more than {MAX_PIXELS:,} pixels"
            ) from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(
                f"{name} is not a picture, or is damaged; known formats: {', '.join(_FORMATS)}"
            ) from error
        except _BROKEN as error:
            raise ValueError(f"{name} has a damaged header: {error}") from error
        with picture:
            _check_size(name, *picture.size)
            try:
                picture.load()
                # In place, since a turned copy would no longer know its format.
                ImageOps.exif_transpose(picture, in_place=True)
                return np.array(_rgb(picture))
            except _BROKEN as error:
                raise ValueError(f"{name} cannot be decoded: {error}") from error


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"{name} is too small: {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE}"
        )
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} is too large: {width} x {height} pixels; at most {MAX_PIXELS:,} in all"
        )


def _rgb(picture: Image.Image) -> Image.Image:
    """Any picture as RGB, on white."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _SHORT):
        # Pillow's own conversion would cut off at 255 instead of scaling.
        grey = np.rint(np.asarray(picture, np.float32) / np.float32(257)).clip(0, 255)
        picture = Image.fromarray(grey.astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError("32-bit grey has no agreed black and white; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        colour = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return picture.convert("RGB")


_SHORT = ("PNG", "PPM")  # formats whose widest grey is 16 bits, even where Pillow says "I"
