r"""RISE: which places does the network like to see, whatever else is shown.

Petsiuk, Das and Saenko 2018, arXiv:1806.07421. With random masks $M_i$ of mean $p$ and $f$ the
score of the class,

$$S(\lambda) = \frac{1}{N p} \sum_{i=1}^N f(x \odot M_i) \, M_i(\lambda) \tag{6}$$

is the mean score over the masks that show pixel $\lambda$. A mask is a coarse grid of zeros and
ones, enlarged bilinearly to one cell more than the image, from which a part of the image's size is
cut out at random (section 3.2). Its mean is $p$ at every pixel, the borders included.

Only the network is run, so any black box will do. Masks are made on the device, some at a time, so
that memory does not grow with their number. Each is a function of the key and its number alone.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxplain.methods.method import explainer
from jaxplain.methods.perturbed import in_chunks, perturbed_logits
from jaxplain.model import Model
from jaxplain.scores import Score, score_fn


class Rise(NamedTuple):
    """A sampled map.

    Attributes:
        heatmap: (B, H, W) the estimate of (6).
        stderr: (B, H, W) its standard error.
        samples: (B,) how many masks each image was seen through.
    """

    heatmap: Float[Array, "b h w"]
    stderr: Float[Array, "b h w"]
    samples: Int[Array, " b"]


class _Moments(NamedTuple):
    """Number (B,), mean and sum of squared deviations (B, H, W) of what was seen so far."""

    number: jax.Array
    mean: jax.Array
    squares: jax.Array


def rise_masks(
    key: Key[Array, ""],
    numbers: Int[Array, " n"],
    size: tuple[int, int],
    *,
    grid: int = 7,
    probability: float = 0.5,
    antithetic: bool = False,
) -> Float[Array, "n s h w"]:
    """Return the masks of some numbers.

    Args:
        key: `jax.random.key`.
        numbers: (n,), from 0.
        size: (H, W).
        grid: cells along a side.
        probability: that a cell is one.
        antithetic: with each mask, the one whose cells come from 1 - u instead of u, for u uniform
            in 0..1: at a probability of one half, its complement.

    Returns:
        (n, 1, H, W), or (n, 2, H, W) if antithetic; in 0..1.

    Example:
        >>> masks = rise_masks(jax.random.key(0), jnp.arange(2000), (8, 8), grid=2)
        >>> masks.shape, bool((abs(masks.mean((0, 1)) - 0.5) < 0.05).all())
        ((2000, 1, 8, 8), True)
    """

    def sampled(pixels: int, offset: jax.Array) -> jax.Array:
        """Return the matrix (pixels, grid) that enlarges a line of cells and cuts a part out."""
        cell = math.ceil(pixels / grid)
        place = (jnp.arange(pixels) + offset + 0.5) * (grid / ((grid + 1) * cell)) - 0.5
        near = jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(grid)[None]), 0)
        return near / near.sum(1, keepdims=True)

    def one(number: jax.Array) -> jax.Array:
        for_cells, for_rows, for_columns = jax.random.split(jax.random.fold_in(key, number), 3)
        uniform = jax.random.uniform(for_cells, (grid, grid))
        both = jnp.stack([uniform, 1 - uniform]) if antithetic else uniform[None]
        offsets = (
            jax.random.randint(k, (), 0, math.ceil(pixels / grid))
            for k, pixels in zip((for_rows, for_columns), size, strict=True)
        )
        down, right = (sampled(n, offset) for n, offset in zip(size, offsets, strict=True))
        cells = (both < probability).astype(down.dtype)
        return jnp.einsum("ya,sab,xb->syx", down, cells, right, precision="highest")

    return jax.vmap(one)(numbers)


def _merged(before: _Moments, values: jax.Array) -> _Moments:
    """Add observations (n, B, H, W) (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    n = values.shape[0]
    mean = values.mean(0)
    squares = ((values - mean[None]) ** 2).sum(0)
    total = before.number + n
    part = (n / total)[:, None, None]
    delta = mean - before.mean
    return _Moments(
        total,
        before.mean + delta * part,
        before.squares + squares + delta**2 * before.number[:, None, None] * part,
    )


@explainer(
    "samples", "grid", "probability", "antithetic", "tolerance", "chunk", "score", gradient=False
)
def rise(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    key: Key[Array, ""],
    samples: int = 4000,
    grid: int = 7,
    probability: float = 0.5,
    baseline: Any = 0.0,
    antithetic: bool = False,
    tolerance: float | None = None,
    chunk: int = 32,
    score: Score = "probability",
) -> Rise:
    """Return the mean score of each target over random masks that show each pixel.

    Petsiuk et al. 2018, arXiv:1806.07421, equation (6).

    The forward runs do not depend on the targets: under `jax.vmap` over several targets of the same
    images, there is one set of them.

    Args:
        model: any model, black boxes included.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        key: `jax.random.key`; the same key gives the same masks, at any `chunk` and for all images.
        samples: number of masks; with a tolerance, the most.
        grid: cells along a side of the image.
        probability: p, that a cell is shown.
        baseline: what is shown where the mask is zero: a number or an array that broadcasts to
            `images`.
        antithetic: draw masks in pairs of opposites. The score's constant part then cancels, and
            the same standard error takes fewer masks.
        tolerance: stop for an image as soon as the mean standard error over its pixels is below
            this share of its map's range; None draws all samples. Only without a tolerance can the
            result be differentiated.
        chunk: masks a step; each is a forward run of the whole batch.
        score: f, as in `gradient`.

    Returns:
        The map, its standard error, and the number of masks of each image.

    Raises:
        ValueError: fewer than two observations (masks, or pairs); an odd number of antithetic
            masks; a probability outside 0..1; a grid or chunk below 1; a tolerance that is not
            positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.eye(28).reshape(1, 28, 28, 1), jnp.array([3])
        >>> found = jxp.rise(model, images, targets, key=jax.random.key(0), samples=64)
        >>> found.heatmap.shape, found.samples.item()
        ((1, 28, 28), 64)
    """
    masks_each = 2 if antithetic else 1
    count = samples // masks_each
    if count < 2 or samples % masks_each:
        raise ValueError(
            f"samples={samples}: expected an even number from 4 for pairs of masks"
            if antithetic
            else f"samples={samples}: at least 2 are needed for a standard error"
        )
    if grid < 1 or chunk < 1:
        raise ValueError(f"grid={grid}, chunk={chunk}: at least 1")
    if not 0 < probability < 1:
        raise ValueError(f"probability={probability}: between 0 and 1")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: a positive share of the map's range")
    size = (int(images.shape[1]), int(images.shape[2]))
    measure = score_fn(score, multilabel=model.multilabel)
    filling = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)

    def observed(numbers: jax.Array) -> jax.Array:
        """Return f(x ⊙ M) M / p, the mean of each pair: (n, B, H, W)."""
        masks = rise_masks(
            key, numbers, size, grid=grid, probability=probability, antithetic=antithetic
        )
        masks = masks.astype(images.dtype)
        found = perturbed_logits(model, images, masks.reshape(-1, 1, *size), filling)
        scores = jax.vmap(lambda logits: measure(logits, targets))(found)
        scores = scores.reshape(-1, masks_each, images.shape[0])
        return jnp.einsum("nsb,nshw->nbhw", scores, masks, precision="highest") / (
            masks_each * probability
        )

    def step(before: _Moments, numbers: jax.Array) -> _Moments:
        return _merged(before, observed(numbers))

    def error(moments: _Moments) -> jax.Array:
        number = moments.number[:, None, None]
        # Its derivative is infinite where nothing varies, as at a mask that is always zero.
        varies = moments.squares > 0
        square = jnp.where(varies, moments.squares, 1) / (number * jnp.maximum(number - 1, 1))
        return jnp.where(varies, jnp.sqrt(square), 0 * moments.squares)

    # 0 · images, so that all of it lies on a mesh as the images do.
    zero = images[..., 0] * 0
    start = _Moments(zero[:, 0, 0], zero, zero)
    each = max(chunk // masks_each, 1)
    if tolerance is None:
        moments = in_chunks(step, start, count, chunk=each)
    else:
        moments = _until(step, error, start, count, min(each, count), tolerance)
    return Rise(moments.mean, error(moments), (moments.number * masks_each).astype(jnp.int32))


def _until(
    step: Any, error: Any, start: _Moments, count: int, each: int, tolerance: float
) -> _Moments:
    """Add chunks until every image's error is small, or until there are no more."""
    most = count // each

    def goes_on(moments: _Moments) -> jax.Array:
        span = moments.mean.max((1, 2)) - moments.mean.min((1, 2))
        return ~((moments.number > 1) & (error(moments).mean((1, 2)) <= tolerance * span))

    def body(carry: tuple[jax.Array, _Moments]) -> tuple[jax.Array, _Moments]:
        done, before = carry
        after = step(before, done * each + jnp.arange(each))
        running = goes_on(before)
        # An image that is done keeps what it has, so that it does not depend on the others.
        after = jax.tree.map(
            lambda new, old: jnp.where(running.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
            after,
            before,
        )
        return done + 1, after

    _, moments = lax.while_loop(
        lambda carry: (carry[0] < most) & goes_on(carry[1]).any(),
        body,
        (jnp.zeros((), jnp.int32), start),
    )
    return moments
