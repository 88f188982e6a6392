r"""Box occlusion: how soon a class loses an image's confidence when the map says what to cover.

Oramas et al. 2019, "Visual Explanation by Interpretation", §4.2, after Zeiler and Fergus 2014:
patches are placed at positions drawn in proportion to the heat map, more and more of them until a
share of the image (30 %) is covered, and the class's probability is measured on the way. The size
and colour of the patches are not given; here they are a sixteenth of the image and the mean colour.

A patch drawn again covers nothing new, so that the order in which positions are *first* drawn is
all that matters. That is the order of :math:`\log h + G` with Gumbel noise G (Yellott 1977), drawn
for all positions at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxplain.evaluation.normalize import widen
from jaxplain.methods.method import check_inputs
from jaxplain.model import Model

LEVELS = tuple(step / 20 for step in range(1, 7))
"""5, 10 … 30 % of the image."""


class BoxOcclusion(NamedTuple):
    """Confidence while patches cover more and more of the images.

    Attributes:
        levels: (S,) shares of the image that were covered.
        before: (N,) the target's probability in the whole image.
        after: (N, S) the same at each level.
    """

    levels: Float[np.ndarray, " s"]
    before: Float[np.ndarray, " n"]
    after: Float[np.ndarray, "n s"]

    @property
    def falls(self) -> Float[np.ndarray, " n"]:
        """The fall of the probability, the mean over the levels."""
        return self.before - self.after.mean(1)


def occluded(
    heatmap: Float[Array, "h w"],
    key: jax.Array,
    *,
    patch: int,
    levels: Sequence[float] = LEVELS,
) -> Bool[Array, "s h w"]:
    """Return what patches cover when each share of an image is reached.

    Patches are added whole, so that a level is reached exactly or exceeded by less than a patch.

    Args:
        heatmap: (H, W); negative values count as zero. Where nothing is left of the map, or it is
            zero everywhere, positions are equally likely.
        key: of the draws.
        patch: side in pixels; patches at the border are cut off.
        levels: shares of the image, above 0 and up to 1.

    Example:
        >>> covered = occluded(jnp.eye(8), jax.random.key(0), patch=1, levels=(0.125, 0.5))
        >>> bool((covered[0] == jnp.eye(8, dtype=bool)).all()), int(covered[1].sum())
        (True, 32)
    """
    weights = jnp.maximum(widen(heatmap), 0)
    # Zero has its place behind all others, at random.
    score = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), -1e6)
    score += jax.random.gumbel(key, weights.shape, weights.dtype)
    order = jnp.argsort(-score, axis=None)
    turn = jnp.zeros(weights.size, jnp.int32).at[order].set(jnp.arange(weights.size))
    before = (patch - 1) // 2
    covered_at = lax.reduce_window(
        turn.reshape(weights.shape),
        jnp.array(weights.size, jnp.int32),
        lax.min,
        (patch, patch),
        (1, 1),
        [(before, patch - 1 - before)] * 2,
    )
    times = jnp.sort(covered_at, axis=None)
    needed = [max(1, int(np.ceil(level * weights.size - 1e-6))) for level in levels]
    last = times[jnp.array(needed) - 1]
    return covered_at[None] <= last[:, None, None]


def box_occlusion(
    model: Model,
    images: Float[Array, "n h w c"] | Float[np.ndarray, "n h w c"],
    targets: Int[Array, " n"] | Int[np.ndarray, " n"],
    heatmaps: Float[Array, "m y x"] | Float[np.ndarray, "m y x"],
    *,
    key: jax.Array,
    patch: int | None = None,
    levels: Sequence[float] = LEVELS,
    fill: float = 0.0,
    batch_size: int = 32,
) -> BoxOcclusion:
    """Cover images where their maps are strong, and measure how far the targets' confidence falls.

    The same key draws alike for other maps, so that falls can be compared image by image.

    Args:
        model: any model.
        images: (N, H, W, C) preprocessed floats.
        targets: (N,) classes.
        heatmaps: (N, H, W); negative values count as zero.
        key: of the positions.
        patch: side of the patches in pixels; None is a sixteenth of the smaller side.
        levels: shares of the image at which to measure, increasing, above 0 and up to 1.
        fill: the patches' value in preprocessed units; 0 is the mean colour.
        batch_size: images run at once.

    Raises:
        ValueError: shapes that differ, maps that are not finite, or a number out of range.
        TypeError: images that are not floats, or targets that are not integers.

    Example:
        >>> bright = Model.from_function(lambda _, x: jnp.stack([x.mean((1, 2, 3))] * 2, 1))
        >>> images, maps = jnp.ones((2, 16, 16, 1)), jnp.ones((2, 16, 16))
        >>> found = box_occlusion(bright, images, jnp.array([0, 1]), maps, key=jax.random.key(0))
        >>> found.after.shape, found.falls.tolist()  # both classes alike: nothing is lost
        ((2, 6), [0.0, 0.0])
    """
    shares = np.asarray(levels, np.float64)
    if not len(shares) or (np.diff(shares) <= 0).any() or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(f"levels are {list(levels)}; expected shares above 0 and up to 1, rising")
    images, targets = check_inputs(model, images, targets)
    maps = np.asarray(heatmaps)
    if maps.shape != images.shape[:3]:
        raise ValueError(f"heatmaps have shape {maps.shape}; expected {images.shape[:3]}")
    if not np.isfinite(maps).all():
        raise ValueError("heatmaps hold NaN or infinity")
    side = max(1, min(maps.shape[1:]) // 16) if patch is None else patch
    for name, number in (("patch", side), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1")
    before, after = [], []
    for start in range(0, len(maps), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(maps) - 1)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(rows))
        whole, covered = _confidence(
            model,
            images[rows],
            targets[rows],
            jnp.asarray(maps[rows]),
            keys,
            fill,
            patch=side,
            levels=tuple(float(share) for share in shares),
        )
        before.append(np.asarray(whole)[: len(maps) - start])
        after.append(np.asarray(covered)[: len(maps) - start])
    return BoxOcclusion(shares, np.concatenate(before), np.concatenate(after))


@jax.jit(static_argnames=("patch", "levels"))
def _confidence(
    model: Model,
    images: jax.Array,
    targets: jax.Array,
    heatmaps: jax.Array,
    keys: jax.Array,
    fill: jax.Array,
    *,
    patch: int,
    levels: tuple[float, ...],
) -> tuple[jax.Array, jax.Array]:
    """Return the targets' probabilities (B,) and, at every level, (B, S)."""

    def of_targets(inputs: jax.Array) -> jax.Array:
        return jnp.take_along_axis(model.probabilities(inputs), targets[:, None], 1)[:, 0]

    masks = jax.vmap(lambda h, k: occluded(h, k, patch=patch, levels=levels))(heatmaps, keys)

    def at_level(mask: jax.Array) -> jax.Array:
        return of_targets(jnp.where(mask[..., None], jnp.asarray(fill, images.dtype), images))

    after = lax.map(at_level, jnp.moveaxis(masks, 1, 0))
    return of_targets(images), after.T
