"""Labels of superpixels: numbered, counted, merged, and one segmentation inside another."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Labels = Int[np.ndarray, "h w"]


def membership(coarse: Any, fine: Any) -> Float[np.ndarray, "q p"]:
    """Return T, eq. (14): 1 where a fine superpixel (row) lies in a coarse one (column).

    Raises:
        ValueError: maps of different sizes, or a fine superpixel that lies in several coarse ones.

    Example:
        >>> membership(np.array([[0, 0, 1]]), np.array([[0, 1, 2]]))
        array([[1., 0.],
               [1., 0.],
               [0., 1.]], dtype=float32)
    """
    coarse, fine = np.asarray(coarse), np.asarray(fine)
    if coarse.shape != fine.shape:
        raise ValueError(f"coarse has shape {coarse.shape}, fine {fine.shape}; expected the same")
    found = np.zeros((int(fine.max()) + 1, int(coarse.max()) + 1), np.float32)
    found[fine.ravel(), coarse.ravel()] = 1
    several = np.flatnonzero(found.sum(1) > 1)
    if several.size:
        raise ValueError(
            f"fine superpixel {several[0]} lies in coarse superpixels "
            f"{np.flatnonzero(found[several[0]]).tolist()}; expected one"
        )
    return found


def contiguous(labels: Any) -> Labels:
    """Return the labels numbered 0 … n - 1, in their order.

    Example:
        >>> contiguous(np.array([[7, 7, -1]]))
        array([[1, 1, 0]], dtype=int32)
    """
    array = np.asarray(labels)
    return np.unique(array, return_inverse=True)[1].reshape(array.shape).astype(np.int32)


def merge_small(
    labels: Any, smallest: float | int, *, most: int | None = None, inside: Any = None
) -> Labels:
    """Return the labels with slivers merged into the neighbour of the longest common border.

    The smallest goes first. One without a neighbour that it may join stays.

    Args:
        labels: (H, W).
        smallest: pixels that a superpixel must have to stay.
        most: go on with the smallest ones until no more than this are left.
        inside: (H, W) coarser labels, whose borders are not crossed.

    Raises:
        ValueError: `inside` of another size, or more coarse labels than `most`.

    Example:
        >>> merge_small(np.array([[0, 0, 0, 1, 2, 2]]), 2)
        array([[0, 0, 0, 0, 1, 1]], dtype=int32)
    """
    labels = contiguous(labels)
    walls = np.zeros_like(labels) if inside is None else contiguous(inside)
    if walls.shape != labels.shape:
        raise ValueError(f"inside has shape {walls.shape}; the labels {labels.shape}")
    if most is not None and most <= walls.max():
        raise ValueError(f"most={most}; there are {walls.max() + 1} coarse superpixels to fill")
    return contiguous(absorb(labels, walls, smallest, most=most)[labels])


def absorb(
    labels: Labels,
    walls: Labels,
    smallest: float | int,
    *,
    most: int | None = None,
    keep: Sequence[set[int]] = (),
) -> Int[np.ndarray, " n"]:
    """Return the superpixel that each ends in when `merge_small` has merged them.

    Args:
        labels: (H, W), 0 … n - 1.
        walls: (H, W), see `inside` there.
        smallest: pixels that a superpixel must have to stay.
        most: go on with the smallest ones until no more than this are left.
        keep: groups of superpixels. The last one left of a group stays however small, and goes for
            the sake of `most` only after all others.

    Example:
        >>> row = np.array([[0, 0, 0, 1, 2, 2]], np.int32)
        >>> absorb(row, np.zeros_like(row), 2)
        array([0, 0, 2])
        >>> absorb(row, np.zeros_like(row), 3, keep=[{1}])
        array([0, 1, 1])
    """
    area = dict(enumerate(np.bincount(labels.ravel()).tolist()))
    borders = _borders(labels, walls)
    parent = np.arange(len(area))
    groups = [set(group) for group in keep]
    stuck: set[int] = set()
    while True:
        movable = [label for label in area if label not in stuck]
        if not movable:
            break
        last = {label for group in groups if len(group) == 1 for label in group}
        small = min(movable, key=lambda label: (label in last, area[label], label))
        large = area[small] >= smallest or small in last
        if large and (most is None or len(area) <= most):
            break
        near = borders.pop(small, {})
        if not near:
            stuck.add(small)
            continue
        into = max(near, key=lambda label: (near[label], -label))
        parent[parent == small] = into
        area[into] += area.pop(small)
        for group in groups:
            group.discard(small)
        for other, length in near.items():
            del borders[other][small]
            if other != into:
                borders[other][into] = borders[other].get(into, 0) + length
                borders[into][other] = borders[into].get(other, 0) + length
    return parent


def check_segments(segments: Any, size: Sequence[int]) -> Int[np.ndarray, "b h w"]:
    """Return the superpixels of B images, or raise naming what is wrong with them.

    Labels that do not occur are allowed; they cost time and weigh nothing.

    Args:
        segments: (B, H, W) integers from 0, or (H, W) for all images.
        size: (B, H, W).

    Raises:
        TypeError: not integers.
        ValueError: another size, or negative labels.

    Example:
        >>> check_segments(np.zeros((4, 4), int), (2, 4, 4)).shape
        (2, 4, 4)
    """
    array, size = np.asarray(segments), tuple(size)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"segments have dtype {array.dtype}; expected integers")
    if array.shape not in (size, size[1:]):
        raise ValueError(
            f"segments have shape {array.shape}; expected {size}, or {size[1:]} for all images"
        )
    if array.size and array.min() < 0:
        raise ValueError(f"segments hold the label {array.min()}; expected labels from 0")
    return np.broadcast_to(array.astype(np.int32), size)


def bucket(count: int) -> int:
    """Return the next larger size of a few, so that compiled code is shared among images.

    Example:
        >>> [bucket(n) for n in (3, 16, 17, 40, 130)]
        [32, 32, 32, 48, 192]
    """
    size = 32
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def pieces(coarse: Any, fine: Labels) -> Labels:
    """Return the connected parts of the intersections of both.

    Example:
        >>> pieces(np.array([[0, 0, 1]], np.int32), np.array([[0, 1, 1]], np.int32))
        array([[0, 1, 2]], dtype=int32)
    """
    from skimage.measure import label

    both = contiguous(np.asarray(coarse, np.int64) * (int(fine.max()) + 1) + fine)
    return contiguous(label(both, background=-1, connectivity=1))


def _borders(labels: Labels, walls: Labels) -> dict[int, dict[int, int]]:
    """How many pixel sides each two neighbours share, walls excepted."""
    found: dict[int, dict[int, int]] = {int(n): {} for n in range(int(labels.max()) + 1)}
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        meets = (labels[one] != labels[other]) & (walls[one] == walls[other])
        pairs = np.stack([labels[one][meets], labels[other][meets]])
        kinds, lengths = np.unique(np.sort(pairs, 0), axis=1, return_counts=True)
        for (a, b), length in zip(kinds.T.tolist(), lengths.tolist(), strict=True):
            found[a][b] = found[b][a] = found[a].get(b, 0) + length
    return found
