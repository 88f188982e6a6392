r"""Gradients: gradient, saliency, input x gradient, SmoothGrad, integrated gradients.

With $S$ the score of the target as a function of the image $x$:

- gradient: $\partial S/\partial x$ (Simonyan et al. 2014, arXiv:1312.6034); saliency: $\max_c
  |\partial S/\partial x_c|$;
- input x gradient: $x \odot \partial S/\partial x$ (Shrikumar et al. 2016, arXiv:1605.01713);
- SmoothGrad: the mean of $\partial S/\partial x$ over noisy copies of $x$ (Smilkov et al. 2017,
  arXiv:1706.03825), its square (SmoothGrad-Squared, Hooker et al. 2019, arXiv:1806.10758) or its
  variance (VarGrad, Adebayo et al. 2018, arXiv:1810.03292);
- integrated gradients: $(x - x') \odot \int_0^1 \partial S/\partial x\,(x' + a(x - x'))\,da$
  (Sundararajan et al. 2017, arXiv:1703.01365), whose sum is $S(x) - S(x')$: what the quadrature
  misses of it is returned as `gap`.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxplain.methods.method import explainer
from jaxplain.model import Model
from jaxplain.scores import Score, score_fn
from jaxplain.trace.backward import Sweep
from jaxplain.trace.layers import logits


def _score(model: Model, images: jax.Array, targets: jax.Array, score: Score) -> jax.Array:
    return score_fn(score, multilabel=model.multilabel)(logits(model, images), targets)


def _gradient(model: Model, images: jax.Array, targets: jax.Array, score: Score) -> jax.Array:
    return Sweep(model, images).gradient(targets, score)


@explainer("score")
def gradient(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    score: Score = "logit",
) -> Float[Array, "b h w c"]:
    """Return the gradient of the target's score with respect to the image.

    Simonyan et al. 2014, arXiv:1312.6034.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        score: "logit", "probability", "log_probability", "contrast", or a function (logits,
            targets) -> (B,).

    Returns:
        (B, H, W, C), in score per unit of input.

    Raises:
        TypeError, ValueError: images, targets or score are not what is expected.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> jxp.gradient(model, jnp.ones((2, 28, 28, 1)), jnp.array([3, 5])).shape
        (2, 28, 28, 1)
    """
    return _gradient(model, images, targets, score)


@explainer("score")
def saliency(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    score: Score = "logit",
) -> Float[Array, "b h w"]:
    """Return the largest absolute gradient over the channels of each pixel.

    Simonyan et al. 2014, arXiv:1312.6034, section 3.1.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        score: as in `gradient`.

    Returns:
        (B, H, W), non-negative.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> jxp.saliency(jxp.load_model("digits"), jnp.ones((1, 28, 28, 1)), jnp.array([3])).shape
        (1, 28, 28)
    """
    return jnp.abs(_gradient(model, images, targets, score)).max(-1)


@explainer("score")
def input_x_gradient(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    score: Score = "logit",
) -> Float[Array, "b h w c"]:
    """Return image times gradient: every pixel's first-order contribution against a zero image.

    Shrikumar et al. 2016, arXiv:1605.01713.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        score: as in `gradient`.

    Returns:
        (B, H, W, C), in score.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> float(abs(jxp.input_x_gradient(model, jnp.zeros((1, 28, 28, 1)), jnp.array([3]))).max())
        0.0
    """
    return images * _gradient(model, images, targets, score)


class SmoothGrad(NamedTuple):
    """A sampled gradient map.

    Attributes:
        attribution: (B, H, W, C).
        stderr: (B, H, W, C) standard error of `attribution`.
    """

    attribution: Float[Array, "b h w c"]
    stderr: Float[Array, "b h w c"]


class _Moments(NamedTuple):
    """Mean and central power sums of what was seen so far."""

    number: jax.Array
    mean: jax.Array
    second: jax.Array
    third: jax.Array
    fourth: jax.Array


def _update(moments: _Moments, value: jax.Array) -> _Moments:
    """Add one observation (Pebay 2008, Sandia report SAND2008-6212, eqs. 1.1, 1.2, 1.5, 1.6)."""
    before, n = moments.number, moments.number + 1
    delta = value - moments.mean
    scaled = delta / n
    term = delta * scaled * before
    fourth = (
        term * scaled**2 * (n**2 - 3 * n + 3)
        + 6 * scaled**2 * moments.second
        - 4 * scaled * moments.third
    )
    third = term * scaled * (n - 2) - 3 * scaled * moments.second
    return _Moments(
        n,
        moments.mean + scaled,
        moments.second + term,
        moments.third + third,
        moments.fourth + fourth,
    )


@explainer("samples", "kind", "chunk", "score")
def smooth_grad(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    key: Key[Array, ""],
    samples: int = 50,
    noise: float | Float[Array, ""] = 0.15,
    kind: Literal["mean", "squared", "variance"] = "mean",
    chunk: int = 1,
    score: Score = "logit",
) -> SmoothGrad:
    r"""Return a statistic of the gradient over noisy copies of the image, with its standard error.

    Smilkov et al. 2017, arXiv:1706.03825.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        key: `jax.random.key`; the same key gives the same answer, at any `chunk` and for an image
            in any batch.
        samples: number of noisy copies, at least 2.
        noise: standard deviation of the noise, as a fraction of each image's max - min.
        kind: "mean" $E[g]$ (SmoothGrad), "squared" $E[g^2]$, or "variance" $E[(g - E g)^2]$
            (VarGrad).
        chunk: noisy copies of the whole batch per step; more is faster and takes more memory.
        score: as in `gradient`.

    Returns:
        The statistic and its standard error. That of the variance is $\sqrt{(m_4 - m_2^2)/n}$ for
        central moments $m$.

    Raises:
        ValueError: fewer than two samples, a chunk below 1, an unknown kind.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> found = jxp.smooth_grad(model, images, targets, key=jax.random.key(0), samples=4)
        >>> found.attribution.shape, found.stderr.shape
        ((1, 28, 28, 1), (1, 28, 28, 1))
    """
    if samples < 2:
        raise ValueError(f"samples={samples}: at least 2 are needed for a standard error")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: at least 1")
    if kind not in ("mean", "squared", "variance"):
        raise ValueError(f"kind={kind!r}; expected 'mean', 'squared' or 'variance'")
    spread = noise * (images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True))

    def one(sample: jax.Array) -> jax.Array:
        # All images share the noise pattern, so that an image's map does not depend on its batch.
        pattern = jax.random.normal(jax.random.fold_in(key, sample), images.shape[1:], images.dtype)
        found = _gradient(model, images + spread * pattern[None], targets, score)
        return found**2 if kind == "squared" else found

    def step(moments: _Moments, start: jax.Array) -> tuple[_Moments, None]:
        numbers = start + jnp.arange(chunk)

        def add(moments: _Moments, new: tuple[jax.Array, jax.Array]) -> tuple[_Moments, None]:
            number, value = new
            updated = _update(moments, value)
            return jax.tree.map(
                lambda a, b: jnp.where(number < samples, a, b), updated, moments
            ), None

        return lax.scan(add, moments, (numbers, jax.vmap(one)(numbers)))[0], None

    zero = images * 0
    start = _Moments(jnp.zeros((), images.dtype), zero, zero, zero, zero)
    moments, _ = lax.scan(step, start, jnp.arange(0, samples, chunk))
    n = moments.number
    variance = moments.second / (n - 1)
    if kind == "variance":
        return SmoothGrad(
            variance, jnp.sqrt(jnp.maximum(moments.fourth / n - (moments.second / n) ** 2, 0) / n)
        )
    return SmoothGrad(moments.mean, jnp.sqrt(variance / n))


class IntegratedGradients(NamedTuple):
    """An integrated gradient map.

    Attributes:
        attribution: (B, H, W, C), in score.
        gap: (B,) S(x) - S(x') minus the sum of `attribution`: what the quadrature misses.
    """

    attribution: Float[Array, "b h w c"]
    gap: Float[Array, " b"]


@explainer("steps", "rule", "chunk", "score")
def integrated_gradients(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    baseline: Any = 0.0,
    steps: int = 32,
    rule: Literal["trapezoid", "midpoint"] = "trapezoid",
    chunk: int = 1,
    score: Score = "logit",
) -> IntegratedGradients:
    """Return the integrated gradient along the straight line from a baseline to the image.

    Sundararajan et al. 2017, arXiv:1703.01365.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        baseline: where the line starts: a number or an array that broadcasts to `images`. Zero is
            the mean colour under the usual normalisation, and black without it.
        steps: intervals of the quadrature.
        rule: "trapezoid" (steps + 1 gradients) or "midpoint" (steps gradients).
        chunk: points of the line per step; more is faster and takes more memory.
        score: as in `gradient`.

    Returns:
        Attributions and the completeness gap.

    Raises:
        ValueError: steps or chunk below 1, an unknown rule.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> found = jxp.integrated_gradients(model, images, targets, steps=8)
        >>> found.attribution.shape, found.gap.shape
        ((1, 28, 28, 1), (1,))
    """
    if steps < 1 or chunk < 1:
        raise ValueError(f"steps={steps}, chunk={chunk}: at least 1")
    if rule not in ("trapezoid", "midpoint"):
        raise ValueError(f"rule={rule!r}; expected 'trapezoid' or 'midpoint'")
    start = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    count = steps + 1 if rule == "trapezoid" else steps
    rounds = -(-count // chunk)
    numbers = jnp.arange(rounds * chunk).reshape(rounds, chunk)
    if rule == "trapezoid":
        positions = numbers / steps
        weights = jnp.where((numbers == 0) | (numbers == steps), 0.5, 1.0) / steps
    else:
        positions, weights = (numbers + 0.5) / steps, jnp.full(numbers.shape, 1.0 / steps)
    weights = jnp.where(numbers < count, weights, 0.0).astype(images.dtype)
    # Points beyond the last stay on the line: their weight is zero, but a NaN there would not be.
    positions = jnp.minimum(positions, 1.0).astype(images.dtype)

    def step(total: jax.Array, points: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        found = jax.vmap(lambda a: _gradient(model, start + a * (images - start), targets, score))(
            points[0]
        )
        return total + jnp.einsum("n,n...->...", points[1], found), None

    total, _ = lax.scan(step, images * 0, (positions, weights))
    attribution = (images - start) * total
    change = _score(model, images, targets, score) - _score(model, start, targets, score)
    return IntegratedGradients(attribution, change - attribution.sum((1, 2, 3)))
