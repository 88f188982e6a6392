"""Coarse superpixels of several classes, moved a little so that they cross in few pieces.

Fine superpixels that serve several classes lie inside one coarse superpixel of each, so there are
at least as many as the connected pieces into which the coarse ones of all classes together part the
image. Where two classes cut along nearly the same line, these pieces are slivers. `settle` merges
the smallest pieces into the neighbour of the longest common border; a piece that is merged lies, in
every class, where that neighbour lies.
"""

from collections.abc import Sequence

import numpy as np

from jaxplain.superpixels.labels import Labels, absorb, contiguous, pieces


def settle(
    coarse: Sequence[Labels], smallest: float | int, *, most: int | None = None
) -> tuple[list[Labels], Labels]:
    """Return the coarse superpixels of each class, and the regions that lie in one of each.

    No coarse superpixel has more connected parts than before. Small ones may go, but label 0, that
    of the foreground, goes last of all.

    Args:
        coarse: (H, W) labels from 0, for each class.
        smallest: pixels that a connected piece of the regions must have to stay.
        most: go on with the smallest pieces until no more than this are left.

    Raises:
        ValueError: a class has more coarse superpixels than `most`.

    Example:
        >>> one, other = np.array([[0, 0, 0, 1, 1, 1]]), np.array([[0, 0, 0, 0, 1, 1]])
        >>> (moved, same), regions = settle([one, other], 2)
        >>> moved
        array([[0, 0, 0, 0, 1, 1]], dtype=int32)
        >>> bool((same == other).all()), int(regions.max()) + 1
        (True, 2)
    """
    largest = max(int(labels.max()) + 1 for labels in coarse)
    if most is not None and most < largest:
        raise ValueError(f"most={most}; there are {largest} coarse superpixels to fill")
    regions = contiguous(coarse[0])
    for labels in coarse[1:]:
        regions = contiguous(regions.astype(np.int64) * (int(labels.max()) + 1) + labels)
    open_ = np.zeros_like(regions)
    parts = pieces(regions, open_)
    first = np.unique(parts, return_index=True)[1]
    homes = [labels.ravel()[first] for labels in coarse]  # of each piece, in each class
    foregrounds = [set(np.flatnonzero(home == 0).tolist()) for home in homes]
    ends = absorb(parts, open_, smallest, most=most, keep=foregrounds)
    if (ends == np.arange(len(ends))).all():
        return [contiguous(labels) for labels in coarse], regions
    moved = [
        contiguous(_whole(home[ends][parts], labels))
        for home, labels in zip(homes, coarse, strict=True)
    ]
    return moved, contiguous(ends[parts])


def _whole(labels: Labels, before: Labels) -> Labels:
    """Give the parts that a superpixel has beyond those it had `before` to their neighbours."""
    open_ = np.zeros(labels.shape, np.int32)
    parts = pieces(labels, open_)
    home = labels.ravel()[np.unique(parts, return_index=True)[1]]
    once = pieces(before, open_)
    had = np.bincount(before.ravel()[np.unique(once, return_index=True)[1]])
    areas = np.bincount(parts.ravel())
    keep: list[set[int]] = []
    for label in np.unique(home):
        of_label = np.flatnonzero(home == label)
        largest = of_label[np.argsort(-areas[of_label], kind="stable")[: had[label]]]
        keep += [{part} for part in largest.tolist()]
    return home[absorb(parts, open_, np.inf, keep=keep)][parts]
