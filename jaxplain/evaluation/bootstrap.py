r"""Means per class and over classes, with bootstrap confidence intervals.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 14. Resampling is
stratified: every class is drawn from itself, with its own number of images, so an interval says how
far the figure would move with other images of the same classes. The mean over classes weighs every
class alike, whatever its number of images.

The bias-corrected and accelerated interval (BCa, the default) takes the resampled means at the
levels

$$ \Phi\Big(z_0 + \frac{z_0 + z_\alpha}{1 - a (z_0 + z_\alpha)}\Big), \qquad
   a = \frac{\sum_i l_i^3}{6\,(\sum_i l_i^2)^{3/2}}, \qquad l_i = \frac{x_i - \bar
   x_{c(i)}}{n_{c(i)}}, $$

where $\Phi(z_0)$ is the share of resampled means below the mean itself (ties by half) and $l_i$ the
influence of value i on the mean over classes. It follows the skew of hit rates near 0 or 1, which
the percentile interval ($z_0 = a = 0$) ignores.

Where every value is 1, or every value 0, all resamples are alike. The bounds are then those of n
hits of n, or of none, by Clopper and Pearson (Biometrika 1934): $(\alpha/2)^{1/n}$ to 1, or 0 to
$1 - (\alpha/2)^{1/n}$. They hold for any measure between 0 and 1, and are taken if all values are.
Otherwise there are no bounds where no class has two values: resampling would only repeat them.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Int

# Values drawn at once: bounds the memory, whatever the numbers of images and of resamples.
DRAWN_AT_ONCE = 1 << 20


class Interval(NamedTuple):
    """An estimate between its confidence bounds; scalars, or one entry a class.

    Attributes:
        value: the estimate.
        low: lower bound.
        high: upper bound.
    """

    value: Array
    low: Array
    high: Array


class ClassMeans(NamedTuple):
    """Means of a measure, per class and over classes.

    Attributes:
        mean: the mean over the classes that have a value; scalars. NaN bounds where no class has
            two values, unless all are 0 or all 1.
        per_class: one entry a class, each (C,); NaN for a class without a value, and NaN bounds for
            one with a single value, whose spread nobody can know (it adds none to the interval of
            `mean`).
        counts: defined values a class, (C,).
    """

    mean: Interval
    per_class: Interval
    counts: Int[Array, " c"]


def class_means(
    values: Float[Array | np.ndarray, " n"],
    labels: Int[Array | np.ndarray, " n"],
    *,
    num_classes: int,
    key: jax.Array,
    resamples: int = 2000,
    confidence: float = 0.95,
    kind: Literal["bca", "percentile"] = "bca",
) -> ClassMeans:
    """Average values per class and over classes, with stratified bootstrap intervals.

    NaN marks an undefined value and is left out; `counts` says how many remained.

    Args:
        values: (N,), one an image.
        labels: (N,), the class of each image, 0 … num_classes − 1.
        num_classes: C.
        key: of `jax.random`; the same key gives the same bounds.
        resamples: bootstrap samples.
        confidence: coverage aimed at, between 0 and 1.
        kind: "bca" or "percentile".

    Returns:
        Intervals of the mean over classes and of each class's mean.

    Raises:
        ValueError: a label outside the classes, fewer than 2 resamples, a confidence outside (0, 1)
            or an unknown kind.

    Example:
        >>> hits, labels = jnp.array([1.0, 1.0, 0.0, 0.0, 0.0]), jnp.array([0, 0, 0, 0, 1])
        >>> result = class_means(hits, labels, num_classes=2, key=jax.random.key(0))
        >>> result.per_class.value.tolist(), result.mean.value.tolist()
        ([0.5, 0.0], 0.25)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected 1 or more")
    if resamples < 2:
        raise ValueError(f"resamples is {resamples}, expected 2 or more")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a number between 0 and 1")
    if kind not in ("bca", "percentile"):
        raise ValueError(f"kind is {kind!r}, expected 'bca' or 'percentile'")
    if not isinstance(labels, Tracer):
        outside = np.setdiff1d(np.asarray(labels), np.arange(num_classes))
        if outside.size:
            raise ValueError(
                f"labels hold {outside.tolist()[:5]}, expected classes 0 to {num_classes - 1}"
            )
    return _class_means(
        jnp.asarray(values),
        jnp.asarray(labels, jnp.int32),
        key,
        confidence,
        num_classes,
        resamples,
        kind == "bca",
    )


@functools.partial(jax.jit, static_argnames=("num_classes", "resamples", "accelerated"))
def _class_means(
    values: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    confidence: float | jax.Array,
    num_classes: int,
    resamples: int,
    accelerated: bool,
) -> ClassMeans:
    # Sorted by class, undefined values last in each: class c owns the places starts[c] … starts[c]
    # + counts[c] − 1. Their number is data, not shape, so one compilation serves measures with
    # different gaps.
    undefined = jnp.isnan(values)
    order = jnp.lexsort((undefined, labels))
    values, labels, undefined = values[order], labels[order], undefined[order]
    per_class = functools.partial(jax.ops.segment_sum, segment_ids=labels, num_segments=num_classes)
    counts = per_class((~undefined).astype(jnp.int32))
    sizes = per_class(jnp.ones_like(labels))
    starts = jnp.cumsum(sizes) - sizes

    def means(drawn: jax.Array) -> jax.Array:
        """Of (N, R) values, the means of each class and, last, over the classes: (C + 1, R)."""
        each = per_class(jnp.where(undefined[:, None], 0, drawn)) / counts[:, None]
        total = jnp.sum(jnp.where(counts[:, None] > 0, each, 0), 0, keepdims=True)
        return jnp.concatenate([each, total / jnp.sum(counts > 0)])

    def place(key: jax.Array) -> jax.Array:
        # Rounding could reach the count itself, hence the minimum; its bias is below count / 2²³.
        place = jax.random.uniform(key, values.shape) * counts[labels]
        return starts[labels] + jnp.minimum(place.astype(jnp.int32), counts[labels] - 1)

    def resample(keys: jax.Array) -> jax.Array:
        # Resamples are the last axis: on a CPU, sums by class are then of rows, not of numbers.
        return means(values[jax.vmap(place, 0, 1)(keys)])

    at_once = max(1, min(resamples, DRAWN_AT_ONCE // max(values.size, 1)))
    rounds = -(-resamples // at_once)
    numbers = jnp.arange(rounds * at_once) % resamples
    keys = jax.random.split(key, resamples)[numbers].reshape(rounds, at_once)
    drawn = lax.map(resample, keys).transpose(0, 2, 1).reshape(rounds * at_once, -1)[:resamples]
    value = means(values[:, None])[:, 0]
    levels = jnp.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if accelerated:
        influence = jnp.where(undefined, 0, (values - value[labels]) / counts[labels])
        squares = jnp.append(per_class(influence**2), jnp.sum(influence**2))
        cubes = jnp.append(per_class(influence**3), jnp.sum(influence**3))
        acceleration = cubes / jnp.where(squares > 0, 6 * squares**1.5, 1)
        below = jnp.mean(drawn < value[None], 0) + jnp.mean(drawn == value[None], 0) / 2
        # Kept off 0 and 1, where the correction would be infinite.
        margin = 0.5 / resamples
        correction = ndtri(jnp.clip(below, margin, 1 - margin))
        shifted = correction[None] + ndtri(levels)[:, None]
        levels = ndtr(correction[None] + shifted / (1 - acceleration[None] * shifted))
    else:
        levels = jnp.broadcast_to(levels[:, None], (2, value.size))
    bounds = jax.vmap(jnp.quantile, (1, 1), 1)(drawn, levels)
    defined = jnp.append(counts, jnp.sum(counts))
    possible = ((1 - confidence) / 2) ** (1 / jnp.maximum(defined, 1))
    bounded = ((values >= 0) & (values <= 1) | undefined).all()
    alike = bounded & (drawn.min(0) == drawn.max(0))
    bounds = bounds.at[0].set(jnp.where(alike & (value == 1), possible, bounds[0]))
    bounds = bounds.at[1].set(jnp.where(alike & (value == 0), 1 - possible, bounds[1]))
    extreme = (alike & ((value == 0) | (value == 1)))[-1]
    spread = jnp.append(counts > 1, (counts > 1).any() | extreme)
    bounds = jnp.where(spread[None], bounds, jnp.nan)
    whole, single = ((value[at], bounds[0, at], bounds[1, at]) for at in (-1, slice(num_classes)))
    return ClassMeans(Interval(*whole), Interval(*single), counts)
