"""From a uint8 picture to the floats that a network was trained on, and back for display.

What a network expects belongs to its weights, so `Preprocessing` is plain data: it is saved in
their file as JSON. The order of work is torchvision's `Resize`, `CenterCrop`, `ToTensor`,
`Normalize` (https://pytorch.org/vision/stable/transforms.html), and Pillow's antialiased filters do
the resizing, as they do there.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxplain.names import unknown

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
ORDERS = ("RGB", "BGR")
LONGEST = 8
"""Sides in this proportion, or less, are resized as a whole before the centre is cut out."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a uint8 picture becomes the input of a network.

    It is resized, cropped, and becomes `scale * (picture / 255 - mean) / std`. Hashable, and so a
    static part of a `Model`; two equal ones share compilations.

    Attributes:
        size: (height, width) of the network's input, in pixels.
        mean: mean of each channel in units of 0..1, in RGB order; one number for a network of grey
            pictures, else three.
        std: standard deviation of each channel, as `mean`.
        resize: length in pixels to which the shorter side is brought before the centre of `size` is
            cut out; None to bring the whole picture straight to `size`.
        keep_aspect: whether `resize` keeps the proportions of a picture; if not, each side of it is
            brought to the same multiple of that side of `size`, and squares become oblong.
        interpolation: "nearest", "bilinear" or "bicubic" (the latter two antialiased).
        order: "RGB" or "BGR": the order of the channels of the network's input.
        scale: a last factor; 255 for networks in Caffe's units.

    Raises:
        ValueError: a field that is none of the above.

    Example:
        >>> mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        >>> imagenet = Preprocessing((224, 224), mean, std, resize=256)
        >>> imagenet(np.zeros((600, 400, 3), np.uint8)).shape
        (224, 224, 3)
        >>> imagenet.region((600, 400))
        (125, 25, 350, 350)
        >>> Preprocessing.from_json(imagenet.to_json()) == imagenet
        True
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"
    order: str = "RGB"
    scale: float = 1.0
    keep_aspect: bool = True

    def __post_init__(self) -> None:
        for field, value in _checked(dataclasses.asdict(self)).items():
            object.__setattr__(self, field, value)

    @property
    def channels(self) -> int:
        """Channels of the network's input: 1 or 3."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the network's input."""
        return (*self.size, self.channels)

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Return the network's input of one picture.

        Args:
            picture: uint8 (h, w, 3) in RGB order, or (h, w) or (h, w, 1) grey; any size. A colour
                network sees a grey picture in equal channels; a grey network sees the luma of
                colours (ITU-R 601, as Pillow's "L").

        Returns:
            float32 (H, W, C).

        Raises:
            TypeError: the picture is not uint8.
            ValueError: it has another shape, or no pixels.
        """
        x = self.cut(picture).astype(np.float32) / np.float32(255)
        x = (
            (x - np.asarray(self.mean, np.float32))
            / np.asarray(self.std, np.float32)
            * np.float32(self.scale)
        )
        return np.ascontiguousarray(x[..., ::-1]) if self.order == "BGR" else x

    def cut(self, picture: np.ndarray) -> UInt8[np.ndarray, "H W C"]:
        """Return the part of a picture that the network sees, resized: the first half of the work.

        The values are torchvision's, bit for bit, with the same version of Pillow; where a side is
        more than `LONGEST` times the other, within one grey level.

        Args:
            picture: as in calling.

        Raises:
            TypeError, ValueError: as in calling.

        Example:
            >>> p = Preprocessing((2, 2), (0.0,), (1.0,), resize=4)
            >>> p.cut(np.arange(0, 160, 10, np.uint8).reshape(4, 4))[..., 0].tolist()
            [[50, 60], [90, 100]]
        """
        from PIL import Image

        picture = _picture(picture)
        image = Image.fromarray(picture).convert("L" if self.channels == 1 else "RGB")
        height, width = self.size
        sampling = Image.Resampling[self.interpolation.upper()]
        h, w = picture.shape[:2]
        if self.resize is None:
            image = image.resize((width, height), sampling)
        elif max(h, w) <= LONGEST * min(h, w) or not self.keep_aspect:
            whole, (top, left) = self._resized(h, w)
            image = image.resize((whole[1], whole[0]), sampling)
            image = image.crop((left, top, left + width, top + height))
        else:
            # A strip of 1 x 30000 pixels would become one of 256 x 7.7 million. The filter reads
            # beyond the box, so this is the same crop; but Pillow may round in another order.
            top, left, tall, wide = self._box(h, w)
            box = (left, top, left + wide, top + tall)
            image = image.resize((width, height), sampling, box=box)
        return np.asarray(image).reshape(self.input_shape)

    def batch(self, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Return the inputs of several pictures, float32 (B, H, W, C); they may differ in size.

        Example:
            >>> grey = Preprocessing((8, 8), (0.5,), (0.5,))
            >>> black, white = np.zeros((4, 5), np.uint8), np.full((9, 9, 3), 255, np.uint8)
            >>> grey.batch([black, white])[:, 0, 0, 0]
            array([-1.,  1.], dtype=float32)
        """
        if len(pictures) == 0:
            return np.zeros((0, *self.input_shape), np.float32)
        return np.stack([self(picture) for picture in pictures])

    def invert(self, images: Any) -> np.ndarray:
        """Return what inputs look like: (..., H, W, C) floats to float32 in 0..1, RGB, clipped.

        Raises:
            ValueError: the last axis is not `channels` long.

        Example:
            >>> p = Preprocessing((2, 2), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), order="BGR")
            >>> red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
            >>> p.invert(p(red))[0, 0]
            array([1., 0., 0.], dtype=float32)
        """
        x = np.asarray(images, np.float32)
        if x.ndim < 3 or x.shape[-1] != self.channels:
            raise ValueError(
                f"images have shape {x.shape}; expected (..., height, width, {self.channels})"
            )
        x = x[..., ::-1] if self.order == "BGR" else x
        return np.clip(
            x / np.float32(self.scale) * np.asarray(self.std, np.float32)
            + np.asarray(self.mean, np.float32),
            0,
            1,
        )

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the inputs of black and of white, float32 (C,) each; pictures lie between them.

        Example:
            >>> Preprocessing((8, 8), (0.5,), (0.25,)).bounds()
            (array([-2.], dtype=float32), array([2.], dtype=float32))
        """
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        low, high = (
            np.float32(self.scale) * (ink - mean) / std for ink in (np.float32(0), np.float32(1))
        )
        step = -1 if self.order == "BGR" else 1
        return low[::step], high[::step]

    def region(self, picture_hw: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the part of a picture that the network sees, where a heat map belongs.

        Args:
            picture_hw: (height, width) of the picture.

        Returns:
            (top, left, height, width) in the picture's pixels, rounded to whole ones, never empty.
        """
        (h, w), (top, left, height, width) = picture_hw, self._box(*picture_hw)
        y0, x0 = min(round(top), h - 1), min(round(left), w - 1)
        y1, x1 = max(round(top + height), y0 + 1), max(round(left + width), x0 + 1)
        return y0, x0, min(y1, h) - y0, min(x1, w) - x0

    def _box(self, h: int, w: int) -> tuple[float, float, float, float]:
        """The region unrounded: where the crop of the resized picture lies in the picture."""
        if self.resize is None:
            return 0.0, 0.0, float(h), float(w)
        resized, corner = self._resized(h, w)
        scale = (h / resized[0], w / resized[1])
        top, left = corner[0] * scale[0], corner[1] * scale[1]
        # Products of rounded numbers may pass the edge by one unit in the last place, which Pillow
        # refuses.
        return (
            top,
            left,
            min(self.size[0] * scale[0], h - top),
            min(self.size[1] * scale[1], w - left),
        )

    def _resized(self, h: int, w: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size of the resized picture, and where the crop begins in it."""
        assert self.resize is not None
        # torchvision truncates the longer side and rounds the corner, halves to even.
        sides = (h, w) if self.keep_aspect else self.size
        short = min(sides)
        tall, wide = (self.resize if n == short else int(self.resize * n / short) for n in sides)
        return (tall, wide), (round((tall - self.size[0]) / 2), round((wide - self.size[1]) / 2))

    def to_json(self) -> str:
        """Return this as JSON, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """Return what `to_json` wrote.

        Raises:
            ValueError: not JSON, missing or unknown fields, or values that are not as documented.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"preprocessing is not JSON: {error}") from error
        if not isinstance(fields, Mapping):
            raise ValueError(f"preprocessing is a JSON {type(fields).__name__}; expected an object")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ValueError(unknown("preprocessing field", name, known))
        missing = [name for name in ("size", "mean", "std") if name not in fields]
        if missing:
            raise ValueError(f"preprocessing lacks {', '.join(missing)}")
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        return cls(**_checked({**defaults, **fields}))


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with their exact types, or raise naming the first that is wrong."""
    size = _numbers("size", fields["size"], lengths=(2,))
    if any(n < 1 or n != int(n) for n in size):
        raise ValueError(
            f"size is {fields['size']!r}; expected (height, width), whole numbers from 1"
        )
    mean = _numbers("mean", fields["mean"], lengths=(1, 3))
    std = _numbers("std", fields["std"], lengths=(len(mean),))
    (scale,) = _numbers("scale", (fields["scale"],), lengths=(1,))
    for field, values in (("std", std), ("scale", (scale,))):
        if min(values) <= 0:
            raise ValueError(f"{field} is {fields[field]!r}; expected above zero")
    resize = fields["resize"]
    if resize is not None:
        (resize,) = _numbers("resize", (resize,), lengths=(1,))
        if resize != int(resize) or resize < max(size):
            raise ValueError(
                f"resize is {fields['resize']!r}; expected None or a whole number of at least "
                f"{int(max(size))}, the longer side of size"
            )
    if not isinstance(fields["keep_aspect"], bool):
        raise ValueError(f"keep_aspect is {fields['keep_aspect']!r}; expected True or False")
    for field, known in (("interpolation", INTERPOLATIONS), ("order", ORDERS)):
        if fields[field] not in known:
            raise ValueError(unknown(field, str(fields[field]), known))
    if fields["order"] == "BGR" and len(mean) == 1:
        raise ValueError(
            "order is 'BGR', but one mean means grey pictures; expected 'RGB' or three means"
        )
    return {
        **fields,
        "size": (int(size[0]), int(size[1])),
        "mean": mean,
        "std": std,
        "scale": scale,
        "resize": None if resize is None else int(resize),
    }


def _numbers(field: str, values: Any, *, lengths: tuple[int, ...]) -> tuple[float, ...]:
    """Return `values` as finite floats of one of the `lengths`, or raise naming the field."""
    expected = f"expected {' or '.join(map(str, lengths))} finite number{'s' * (lengths != (1,))}"
    if not isinstance(values, list | tuple) or len(values) not in lengths:
        raise ValueError(f"{field} is {values!r}; {expected}")
    for value in values:
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"{field} holds {value!r}; {expected}")
    return tuple(float(value) for value in values)


def _picture(picture: np.ndarray) -> np.ndarray:
    """Return the picture as (h, w) or (h, w, 3), or raise saying what is wrong with it."""
    picture = np.asarray(picture)
    if picture.dtype != np.uint8:
        raise TypeError(f"picture has dtype {picture.dtype}; expected uint8")
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise ValueError(
            f"picture has shape {picture.shape}; expected (height, width, 3) or (height, width)"
        )
    if 0 in picture.shape:
        raise ValueError(f"picture has shape {picture.shape}: no pixels")
    return np.ascontiguousarray(picture)
