"""Quickshift inside each of several regions, none of which sees a pixel of another."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from jaxplain.superpixels.labels import Labels, contiguous


def shift_inside(
    colours: Float[np.ndarray, "h w 3"],
    regions: Int[np.ndarray, "h w"],
    *,
    kernel_size: float | int,
    max_dist: float | int,
    ratio: float | int,
) -> Labels:
    """Return the Quickshift superpixels (Vedaldi and Soatto 2008) of each region by itself.

    Each pixel is linked to the nearest one of higher density, in place and Lab colour; density and
    links count pixels of the same region alone, so that a region's border is to it what the edge of
    the picture is to scikit-image's Quickshift, which this equals where there is one region.

    Args:
        colours: RGB in 0..1.
        regions: labels.
        kernel_size: width of the density's kernel; pixels up to three times as far away count.
        max_dist: the farthest that a pixel may look for its parent.
        ratio: how much colour counts beside place.

    Example:
        >>> halves = np.array([[0, 0, 1, 1]] * 2)
        >>> shift_inside(np.zeros((2, 4, 3)), halves, kernel_size=4, max_dist=200, ratio=0.2)
        array([[0, 0, 1, 1],
               [0, 0, 1, 1]], dtype=int32)
    """
    from skimage.color import rgb2lab

    points = np.ascontiguousarray(np.moveaxis(rgb2lab(colours) * ratio, -1, 0))
    size = regions.shape
    reach = int(np.ceil(3 * kernel_size))

    def far(here: tuple, there: tuple, away: int) -> np.ndarray:
        """Squared distances of pixels from others; infinite from those of another region."""
        found = ((points[:, *here] - points[:, *there]) ** 2).sum(0) + away
        return np.where(regions[here] == regions[there], found, np.inf)

    density = np.ones(size)  # each pixel's own
    for here, there, away in _pairs(size, reach, each_once=True):
        near = np.exp(far(here, there, away) / (-2 * kernel_size**2))
        density[here] += near
        density[there] += near
    # Breaks ties, as scikit-image does.
    density += np.random.default_rng(42).normal(scale=1e-5, size=size)

    pixels = np.arange(density.size).reshape(size)
    parent, closest = pixels.copy(), np.full(size, np.inf)
    for here, there, away in _pairs(size, reach, each_once=False):
        apart = far(here, there, away)
        nearer = (density[there] > density[here]) & (apart < closest[here])
        closest[here] = np.where(nearer, apart, closest[here])
        parent[here] = np.where(nearer, pixels[there], parent[here])
    root = np.where(np.sqrt(closest) > max_dist, pixels, parent).ravel()
    while (root != root[root]).any():
        root = root[root]
    return contiguous(root.reshape(size))


def _pairs(
    size: tuple[int, ...], reach: int, *, each_once: bool
) -> Iterator[tuple[tuple, tuple, int]]:
    """Where pixels are, where their neighbours at an offset are, and how far: row by row."""
    for down in range(0 if each_once else -reach, reach + 1):
        for right in range(-reach, reach + 1):
            if (down, right) == (0, 0) or (each_once and down == 0 and right < 0):
                continue
            if abs(down) >= size[0] or abs(right) >= size[1]:
                continue
            here = tuple(
                slice(max(0, -step), min(length, length - step))
                for step, length in zip((down, right), size, strict=True)
            )
            there = tuple(
                slice(part.start + step, part.stop + step)
                for part, step in zip(here, (down, right), strict=True)
            )
            yield here, there, down**2 + right**2
