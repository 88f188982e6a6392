"""Insertion and deletion: how the class fares while pixels appear, or vanish, in the map's order.

Petsiuk et al. 2018, "RISE", arXiv:1806.07421, §4.3. Deletion takes pixels away from the image, the
highest of the map first, and replaces them by zeros; insertion gives them back to a blurred image
in the same order. After every step the class's probability is measured. A good map has a small
area under the deletion curve and a large one under the insertion curve.

No evidence is needed, only the network; any black box will do. A map's scale does not matter, only
the order of its pixels; of equal ones, the first in reading order goes first.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxplain.evaluation.mask_iou import area_under
from jaxplain.evaluation.normalize import widen
from jaxplain.methods.descent import gaussian_blur
from jaxplain.methods.method import check_inputs
from jaxplain.methods.perturbed import perturbed_logits
from jaxplain.model import Model
from jaxplain.scores import Score, score_fn


class PerturbationCurves(NamedTuple):
    """The class's score while pixels are deleted and inserted.

    Attributes:
        shares: (T,) of the pixels that were changed, from 0 to 1.
        deletion: (N, T) the score when that share is gone.
        insertion: (N, T) the score when that share is there.
        deletion_area: (N,) the area under `deletion`; small is good.
        insertion_area: (N,) the area under `insertion`; large is good.
    """

    shares: Float[np.ndarray, " t"]
    deletion: Float[Array, "n t"]
    insertion: Float[Array, "n t"]
    deletion_area: Float[Array, " n"]
    insertion_area: Float[Array, " n"]


def insertion_deletion(
    model: Model,
    images: Float[Array | np.ndarray, "n h w c"],
    targets: Int[Array | np.ndarray, " n"],
    heatmaps: Float[Array | np.ndarray, "n h w"],
    *,
    steps: int = 50,
    deleted: Any = 0.0,
    empty: Any = None,
    blur: float | None = None,
    chunk: int = 8,
    score: Score = "probability",
) -> PerturbationCurves:
    """Measure how maps order the pixels, by the network's own answers.

    Args:
        model: any model.
        images: (N, H, W, C) preprocessed floats; all go through the network together, so hand over
            a batch.
        targets: (N,) classes.
        heatmaps: (N, H, W) floats.
        steps: of equal shares; the curves have one point more.
        deleted: what a deleted pixel becomes: a number or an array that broadcasts to `images`.
        empty: what insertion starts from, likewise; None is the blurred image.
        blur: standard deviation of that blur in pixels; None is 5 of 224, in proportion.
        chunk: steps whose images go through the network together.
        score: what is measured, as in `jaxplain.gradient`.

    Returns:
        Both curves and their areas; NaN for a map with a NaN.

    Raises:
        TypeError, ValueError: images, targets or maps are not what is expected; fewer than one
            step; a chunk below 1; a negative blur.

    Example:
        >>> model = Model.from_function(lambda _, x: x.sum((1, 2)))
        >>> image = jnp.zeros((1, 2, 2, 1)).at[0, 0, 1].set(4.0)
        >>> found = insertion_deletion(
        ...     model, image, jnp.array([0]), image[..., 0], steps=4, empty=0.0, score="logit"
        ... )
        >>> found.deletion[0].tolist(), found.insertion[0].tolist()
        ([4.0, 0.0, 0.0, 0.0, 0.0], [0.0, 4.0, 4.0, 4.0, 4.0])
        >>> found.deletion_area.item(), found.insertion_area.item()
        (0.5, 3.5)
    """
    images, targets = check_inputs(model, images, targets)
    maps = jnp.asarray(heatmaps)
    if not jnp.issubdtype(maps.dtype, jnp.floating):
        raise TypeError(f"heatmaps are of type {maps.dtype}, expected floats")
    if maps.shape != images.shape[:3]:
        raise ValueError(f"heatmaps have shape {maps.shape}, expected {images.shape[:3]}")
    if steps < 1 or chunk < 1:
        raise ValueError(f"steps={steps}, chunk={chunk}: at least 1")
    if empty is None:
        sigma = 5 * min(images.shape[1:3]) / 224 if blur is None else blur
        empty = gaussian_blur(images, sigma)
    deleted, empty = (
        jnp.broadcast_to(jnp.asarray(value, images.dtype), images.shape)
        for value in (deleted, empty)
    )
    pixels = maps.shape[1] * maps.shape[2]
    counts = np.round(np.linspace(0, pixels, steps + 1)).astype(np.int32)
    deletion, insertion = _curves(
        model, images, targets, maps, jnp.asarray(counts), deleted, empty, chunk=chunk, score=score
    )
    shares = counts / pixels
    return PerturbationCurves(
        shares, deletion, insertion, area_under(deletion, shares), area_under(insertion, shares)
    )


def _curves_of(
    model: Model,
    images: jax.Array,
    targets: jax.Array,
    heatmaps: jax.Array,
    counts: jax.Array,
    deleted: jax.Array,
    empty: jax.Array,
    *,
    chunk: int,
    score: Score,
) -> tuple[jax.Array, jax.Array]:
    measure = score_fn(score, multilabel=model.multilabel)
    flat = widen(heatmaps).reshape(len(heatmaps), -1)
    order = jnp.argsort(-flat, 1)  # stable
    turn = jax.vmap(lambda o: jnp.zeros(o.size, jnp.int32).at[o].set(jnp.arange(o.size)))(order)
    turn = turn.reshape(heatmaps.shape)

    def at(count: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = (turn < count).astype(images.dtype)[None]
        without = measure(perturbed_logits(model, images, 1 - first, deleted)[0], targets)
        within = measure(perturbed_logits(model, images, first, empty)[0], targets)
        return without, within

    without, within = lax.map(at, counts, batch_size=min(chunk, len(counts)))
    broken = jnp.where(jnp.isnan(flat).any(1), jnp.nan, 0)[:, None].astype(without.dtype)
    return without.T + broken, within.T + broken


_curves = jax.jit(_curves_of, static_argnames=("chunk", "score"))
