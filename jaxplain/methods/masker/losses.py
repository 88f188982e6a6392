r"""What a masking network is trained to lower.

Dabkowski and Gal 2017, arXiv:1705.07857. Where a mask M is closed, a picture X shows something
else, A:

.. math:: \Phi(X, M) = X \odot M + A \odot (1 - M). \quad (1)

The mask of class c should be smooth and small, enough for the class, and missed by it:

.. math:: L(M) = \lambda_1 TV(M) + \lambda_2 AV(M) - \log f_c(\Phi(X, M))
    + \lambda_3 f_c(\Phi(X, 1 - M))^{\lambda_4} \quad (2)

.. math:: TV(M) = \sum_{ij} (M_{ij} - M_{i,j+1})^2 + \sum_{ij} (M_{ij} - M_{i+1,j})^2 \quad (3)

with AV the mean. The paper's λ are 10, 10⁻³, 5 and 0.3. Here TV is a mean, too, so that λ₁ does not
depend on the size of the picture, and λ₂ is larger: networks at hand keep the class however much of
the picture is shown, so that nothing but the area forbids a mask that is open everywhere.

A is, at random, the blurred picture or a colour near grey with noise. A class that the picture does
not show is asked for now and then: its mask should be empty, and the feature filter should say so.
That is one more term, the cross-entropy of :math:`p_s` in `network`, (6), weighed by λ₅; the
authors train the filter by it beforehand, here all is trained at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxplain.methods.descent import gaussian_blur

COLOUR, GRAIN = 0.08, 0.03
"""How far a plain colour is from grey, and the deviation of its noise: shares of black to white.

They are small, as the authors' are: a strong colour all around is evidence in itself.
"""


class Weights(NamedTuple):
    """The weights λ of the loss.

    Attributes:
        smooth: λ₁, of the mean total variation.
        area: λ₂, of the mean.
        destroy: λ₃.
        power: λ₄.
        presence: λ₅, of the feature filter's own answer.
    """

    smooth: float = 10.0
    area: float = 2.0
    destroy: float = 5.0
    power: float = 0.3
    presence: float = 1.0


DEFAULT = Weights()


class Terms(NamedTuple):
    """The terms of the loss, without their weights; (B,) each.

    Attributes:
        smooth: mean total variation of the mask.
        area: its mean.
        preserve: −log f_c of what the mask shows.
        destroy: f_c of what is left, to the power λ₄.
        presence: log odds that the picture shows the class, as the feature filter has it.
    """

    smooth: Float[Array, " b"]
    area: Float[Array, " b"]
    preserve: Float[Array, " b"]
    destroy: Float[Array, " b"]
    presence: Float[Array, " b"]


def total_variation(masks: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Return the mean square step between neighbours, down plus across: (3), as a mean.

    Example:
        >>> float(total_variation(jnp.array([[[0.0, 1.0], [0.0, 1.0]]]))[0])
        1.0
    """
    down, across = jnp.diff(masks, axis=1), jnp.diff(masks, axis=2)
    return (down**2).mean((1, 2)) + (across**2).mean((1, 2))


def under(
    images: Float[Array, "b h w c"], masks: Float[Array, "b h w"], other: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Return Φ, (1): the image where the mask is open, `other` where it is closed.

    Example:
        >>> mask = jnp.array([[[1.0, 0.0]]])
        >>> under(jnp.ones((1, 1, 2, 1)), mask, jnp.full((1, 1, 2, 1), 7.0))[0, 0, :, 0].tolist()
        [1.0, 7.0]
    """
    return images * masks[..., None] + other * (1 - masks[..., None])


def others(
    images: Float[Array, "b h w c"],
    key: Key[Array, ""],
    *,
    low: Float[Array, " c"],
    high: Float[Array, " c"],
    blurred: float,
    sigma: float,
) -> Float[Array, "b h w c"]:
    """Return A, what closed masks show: a blurred picture, or a colour near grey with noise.

    Args:
        images: (B, H, W, C) preprocessed floats.
        key: of the choice.
        low: (C,) the inputs of black.
        high: (C,) the inputs of white.
        blurred: the share of pictures that are blurred.
        sigma: of the blur, in pixels.

    Example:
        >>> black, white = jnp.zeros(3), jnp.ones(3)
        >>> images, key = jnp.ones((2, 8, 8, 3)), jax.random.key(0)
        >>> found = others(images, key, low=black, high=white, blurred=0.5, sigma=2.0)
        >>> found.shape
        (2, 8, 8, 3)
    """
    choose, colour, grain = jax.random.split(key, 3)
    count, *_, channels = images.shape
    low, high = (bound.astype(images.dtype)[None, None, None] for bound in (low, high))
    plain = jax.random.uniform(colour, (count, 1, 1, channels), images.dtype, -COLOUR, COLOUR)
    noisy = 0.5 + plain + GRAIN * jax.random.normal(grain, images.shape, images.dtype)
    noisy = low + (high - low) * noisy
    if not blurred:
        return noisy
    chosen = jax.random.bernoulli(choose, blurred, (count, 1, 1, 1))
    return jnp.where(chosen, gaussian_blur(images, sigma), noisy)


def terms(
    masks: Float[Array, "b h w"],
    presence: Float[Array, " b"],
    kept: Float[Array, " b"],
    left: Float[Array, " b"],
    power: float = DEFAULT.power,
) -> Terms:
    """Return the terms of the loss.

    Args:
        masks: (B, H, W) in 0..1.
        presence: (B,) log odds.
        kept: (B,) log f_c(Φ(X, M)).
        left: (B,) log f_c(Φ(X, 1 − M)).
        power: λ₄.

    Example:
        >>> half = jnp.log(jnp.array([0.5]))
        >>> found = terms(jnp.ones((1, 2, 2)), jnp.zeros(1), half, jnp.array([-jnp.inf]))
        >>> [round(float(term[0]), 3) for term in found]
        [0.0, 1.0, 0.693, 0.0, 0.0]
    """
    destroy = jnp.exp(power * left)
    return Terms(total_variation(masks), masks.mean((1, 2)), -kept, destroy, presence)


def masking_loss(
    found: Terms, shown: Bool[Array, " b"], weights: Weights = DEFAULT
) -> Float[Array, " b"]:
    """Return the loss (2) of each mask, and λ₅ times the cross-entropy of (6).

    Of a class that is not shown, only what the mask covers counts, and what the filter says.

    Args:
        found: the terms.
        shown: (B,) whether the picture shows the class.
        weights: the λ.

    Example:
        >>> one, sure = jnp.ones(2), jnp.array([50.0, -50.0])
        >>> found = Terms(one, one, one, one, sure)
        >>> masking_loss(found, jnp.array([True, False])).tolist()
        [18.0, 12.0]
    """
    covers = weights.smooth * found.smooth + weights.area * found.area
    answers = found.preserve + weights.destroy * found.destroy
    wrong = jax.nn.softplus(jnp.where(shown, -found.presence, found.presence))
    return covers + jnp.where(shown, answers, 0) + weights.presence * wrong
