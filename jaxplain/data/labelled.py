"""Pictures with labels, to train on: in memory, in files, or in a data set on disk."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from jaxplain.data import SPLITS

VALIDATION, TEST = 0.15, 0.2
"""The shares of a data set that has no splits of its own."""

YES, NO, UNCOUNTED = 1, 0, -1
"""What a label of several can be: the class is there, is not, or counts for nothing."""


@runtime_checkable
class PictureSource(Protocol):
    """Pictures by number: an array (n, h, w, c) uint8 is one, and so are files on disk."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int, /) -> np.ndarray:
        """One picture, uint8 (h, w) or (h, w, c); they may differ in size."""
        ...


class Pictures(NamedTuple):
    """Pictures with their classes.

    Attributes:
        images: the pictures.
        labels: (n,) ints from 0, a class each; or (n, classes) int8 where a picture may have
            several or none: 1 where the class is there, 0 where it is not, -1 where it shall not
            count (objects that people could hardly tell).
    """

    images: PictureSource
    labels: Int[np.ndarray, "n *classes"]


class Data(NamedTuple):
    """What a network is trained on.

    Attributes:
        train: pictures that it learns from.
        validation: pictures that decide when to stop and which weights to keep.
        test: pictures that nothing depends on.
        class_names: one a class.
    """

    train: Pictures
    validation: Pictures
    test: Pictures
    class_names: tuple[str, ...]


class Chosen:
    """Some of the pictures of a source, in the order given."""

    def __init__(self, source: PictureSource, rows: Int[np.ndarray, " n"]):
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return self._source[int(self._rows[index])]

    def checksum(self, start: int) -> int:
        """Return `start` continued over what the pictures are."""
        return zlib.crc32(self._rows.astype(np.int64).data, checksum(self._source, start))


def checksum(source: PictureSource, start: int = 0) -> int:
    """Return a checksum of pictures that changes when one of them does.

    Sources with a method `checksum` know a quicker way than to decode all pictures.

    Example:
        >>> pictures = np.zeros((3, 8, 8, 3), np.uint8)
        >>> before = checksum(pictures)
        >>> pictures[2, 0, 0, 0] = 1
        >>> before == checksum(pictures)
        False
    """
    quick = getattr(source, "checksum", None)
    if quick is not None:
        return quick(start)
    for index in range(len(source)):
        start = zlib.crc32(np.ascontiguousarray(source[index]).data, start)
    return start


def several(labels: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "n classes"]:
    """Return labels of one class each as labels of several.

    Example:
        >>> several(np.array([1, 0]), 3).tolist()
        [[0, 1, 0], [1, 0, 0]]
    """
    return np.where(np.arange(classes)[None] == labels[:, None], YES, NO).astype(np.int8)


def single(
    labels: Int[np.ndarray, "n classes"], names: Sequence[str] = ()
) -> Int[np.ndarray, " n"]:
    """Return labels of several classes as labels of one each.

    Args:
        labels: 1, 0 or -1.
        names: of the pictures, for the error.

    Raises:
        ValueError: a picture has no class, or more than one.

    Example:
        >>> single(np.array([[0, 1, 0], [1, 0, -1]])).tolist()
        [1, 0]
    """
    counts = (labels == YES).sum(1)
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        first = names[wrong[0]] if len(names) else f"picture {wrong[0]}"
        raise ValueError(
            f"{len(wrong)} of {len(labels)} pictures have not exactly one class ({first} has "
            f"{counts[wrong[0]]}); a head for several classes takes them: multilabel"
        )
    return (labels == YES).argmax(1).astype(np.int32)


def split_rows(
    labels: Int[np.ndarray, "n *classes"],
    *,
    validation: float = VALIDATION,
    test: float = TEST,
    seed: int = 0,
) -> dict[str, Int[np.ndarray, " rows"]]:
    """Share pictures out, the same way every time: each class is in every split if it can be.

    Pictures of several classes go by the rarest of them.

    Args:
        labels: as in `Pictures`.
        validation: share of the pictures to choose by.
        test: share of them held out.
        seed: another shares out otherwise.

    Returns:
        {"train": rows, "validation": rows, "test": rows}, sorted. Of three pictures of a class or
        more, each split that has a share gets at least one; fewer are trained on.

    Example:
        >>> rows = split_rows(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]))
        >>> [rows[split].tolist() for split in ("train", "validation", "test")]
        [[0, 1, 3, 5, 7, 8], [4, 6], [2, 9]]
    """
    groups = labels
    if labels.ndim == 2:
        counts = (labels == YES).sum(0)
        rarest = np.where(labels == YES, counts[None], len(labels) + 1).argmin(1)
        groups = np.where((labels == YES).any(1), rarest, labels.shape[1])
    random = np.random.Generator(np.random.PCG64(seed))
    chosen: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for group in np.unique(groups):
        order = random.permutation(np.flatnonzero(groups == group))
        enough = len(order) >= 3
        held = [
            enough and share and max(1, round(share * len(order))) for share in (test, validation)
        ]
        cuts = np.cumsum(np.array(held, np.int64))
        for split, rows in zip(("test", "validation", "train"), np.split(order, cuts), strict=True):
            chosen[split].append(rows)
    return {split: np.sort(np.concatenate(rows)) for split, rows in chosen.items()}
