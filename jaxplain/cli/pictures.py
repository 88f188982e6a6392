"""The user's pictures: what the network sees of each, and how that is said."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxplain.cli.console import progress
from jaxplain.report import LARGEST_PICTURE, Whole

if TYPE_CHECKING:
    from jaxplain.model import Model
    from jaxplain.preprocessing import Preprocessing


@dataclass(frozen=True)
class Pictures:
    """The user's pictures, read.

    Attributes:
        names: what to call them: their file names, with the folder where two are equal.
        shown: the part of each that the network sees, uint8, no larger than the report shows.
        images: (N, H, W, C) inputs of the network.
        entered: how each became its input, in words.
        wholes: each with what the network does not see; None where it sees all.
    """

    names: Sequence[str]
    shown: Sequence[np.ndarray]
    images: np.ndarray
    entered: Sequence[str]
    wholes: Sequence[Whole | None]


def read_pictures(paths: Sequence[Path], model: "Model") -> Pictures:
    """Read every picture, keeping of each only what the network and the report need.

    Raises:
        ValueError, OSError: a file that is not a picture, or a model that does not say how to read
            one.
    """
    from jaxplain.data.images import load_image

    if model.preprocessing is None:
        raise ValueError(f"model {model.name!r} has no preprocessing; it cannot read picture files")
    images, shown, entered, wholes = [], [], [], []
    with progress(len(paths)) as advance:
        for path in paths:
            picture = load_image(path)
            images.append(model.preprocessing(picture))
            seen, whole = views(picture, model.preprocessing)
            shown.append(seen)
            wholes.append(whole)
            entered.append(fitted(model.preprocessing, (picture.shape[0], picture.shape[1])))
            advance(f"reading {path.name}")
    plain = [path.name for path in paths]
    names = [path.name if plain.count(path.name) == 1 else str(path) for path in paths]
    return Pictures(names, shown, np.stack(images), entered, wholes)


def views(picture: np.ndarray, preprocessing: "Preprocessing") -> tuple[np.ndarray, "Whole | None"]:
    """Return what the network sees of a picture, and all of it if that is more; both reduced."""
    from PIL import Image

    def reduced(image: Image.Image) -> np.ndarray:
        image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
        return np.asarray(image)

    top, left, height, width = preprocessing.region((picture.shape[0], picture.shape[1]))
    seen = Image.fromarray(picture[top : top + height, left : left + width])
    if preprocessing.channels == 1:
        seen = seen.convert("L")
    if (height, width) == picture.shape[:2]:
        return reduced(seen), None
    whole = reduced(Image.fromarray(picture))
    down, across = whole.shape[0] / picture.shape[0], whole.shape[1] / picture.shape[1]
    region = (top * down, left * across, height * down, width * across)
    return reduced(seen), Whole(whole, region)


def fitted(preprocessing: "Preprocessing", picture_hw: tuple[int, int]) -> str:
    """Say how a picture is brought to the size of the network's input; nothing if it has that size.

    Example:
        >>> from jaxplain.preprocessing import Preprocessing
        >>> fitted(Preprocessing((112, 112), (0.5,), (0.25,)), (600, 400))
        'all of its 400 × 600 pixels, squashed to 112 × 112; drawn here unsquashed'
        >>> fitted(Preprocessing((224, 224), (0.5,), (0.25,), resize=256), (600, 400))
        'the middle 350 × 350 of its 400 × 600 pixels, brought to 224 × 224'
    """
    (h, w), (_, _, height, width) = picture_hw, preprocessing.region(picture_hw)
    rows, columns = preprocessing.size
    size = f"{columns} × {rows}"
    if (height, width) != (h, w):
        return f"the middle {width} × {height} of its {w} × {h} pixels, brought to {size}"
    if (h, w) == (rows, columns):
        return ""
    # A pixel more or less on a side is nothing to speak of.
    if abs(h * columns - w * rows) <= max(rows, columns):
        return f"all of its {w} × {h} pixels, brought to {size}"
    return f"all of its {w} × {h} pixels, squashed to {size}; drawn here unsquashed"
