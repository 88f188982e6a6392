"""Real handwritten digits, shipped with the package.

1797 digits of 13 writers, scanned at 32 x 32 and counted in blocks of 4 x 4, which makes 8 x 8
values of 0 to 16. They lie in `digits.npz` (45 kB) rather than come from scikit-learn, so that
nobody need install a machine-learning library for one small array.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0: its test set, as it also comes
with scikit-learn (`load_digits`, BSD-3-Clause).

No evidence is known for them: which strokes make a digit is what an explanation should tell. A mask
of the ink would reward a method for showing the picture itself.
"""

from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jaxplain.data import SPLITS
from jaxplain.names import unknown

CLASS_NAMES = tuple("0123456789")

# The shares of every class, of 1797 digits in all.
_VALIDATION, _TEST = 0.15, 0.2


class Digits(NamedTuple):
    """Pictures of digits.

    Attributes:
        images: (n, H, W, 1) uint8, bright ink on black.
        labels: (n,) int32, the digits.
        numbers: (n,) int32, which of the 1797 each is.
    """

    images: UInt8[np.ndarray, "n h w 1"]
    labels: Int[np.ndarray, " n"]
    numbers: Int[np.ndarray, " n"]


def digits(split: str, *, size: int = 28) -> Digits:
    """The digits of one split, with a margin, enlarged by smooth (bicubic) interpolation.

    The split is fixed and stratified: a fifth of every class is for the test, three twentieths for
    validation. The writers are not known, so the same hand may be in several splits. The scans are
    cut close to the ink; a margin of one of their values makes 10 x 10 of them.

    Args:
        split: "train" (1169), "validation" (269) or "test" (359).
        size: height and width in pixels, 10 or more.

    Returns:
        images (n, size, size, 1) uint8, labels and numbers (n,) int32, in order of numbers.

    Raises:
        ValueError: there is no such split, or size is below 10.

    Example:
        >>> test = digits("test")
        >>> test.images.shape, test.labels[:5].tolist()
        ((359, 28, 28, 1), [5, 9, 2, 4, 6])
    """
    import cv2

    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    if size < 10:
        raise ValueError(f"size must be at least 10 pixels, got {size}")
    small, labels = _original()
    numbers = _members(split)
    ink = np.pad(small[numbers], ((0, 0), (1, 1), (1, 1))).astype(np.float32) * np.float32(255 / 16)
    large = np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_CUBIC) for one in ink])
    images = np.clip(np.rint(large), 0, 255).astype(np.uint8)
    return Digits(images[..., None], labels[numbers], numbers)


@cache
def _original() -> tuple[np.ndarray, np.ndarray]:
    """All digits (1797, 8, 8) uint8 in 0..16 and their labels (1797,) int32."""
    with (
        (resources.files("jaxplain.data") / "digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return arrays["images"], arrays["labels"].astype(np.int32)


@cache
def _members(split: str) -> np.ndarray:
    """The sorted numbers of a split's digits."""
    labels = _original()[1]
    random = np.random.Generator(np.random.PCG64(0))
    chosen = []
    for digit in range(len(CLASS_NAMES)):
        order = random.permutation(np.flatnonzero(labels == digit))
        test = round(_TEST * len(order))
        cuts = (test, test + round(_VALIDATION * len(order)))
        chosen.append(
            dict(zip(("test", "validation", "train"), np.split(order, cuts), strict=True))
        )
    return np.sort(np.concatenate([parts[split] for parts in chosen])).astype(np.int32)
