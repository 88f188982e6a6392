"""Robustness: attacked images, and how far two maps agree on the order of the pixels.

Du et al. 2018, arXiv:1804.00506, §4.1.3, attack an image by the fast gradient sign method and
explain its true class on what comes out. How little a map should move when an image does is what
rank correlation says (Ghorbani et al. 2017, arXiv:1710.10547, §3).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxplain.evaluation.normalize import constant, finite, widen
from jaxplain.methods.gradients import gradient
from jaxplain.methods.method import check_inputs
from jaxplain.model import Model


def fast_gradient_sign(
    model: Model,
    images: Float[Array | np.ndarray, "n h w c"],
    targets: Int[Array | np.ndarray, " n"],
    epsilon: float,
) -> Float[Array, "n h w c"]:
    r"""Return images moved by epsilon in each pixel, so that the network doubts the targets.

    $x - \epsilon \, \mathrm{sign}(\partial \log f_c / \partial x)$: Goodfellow et al. 2015,
    arXiv:1412.6572, equation in §4.

    Args:
        model: any model with derivatives.
        images: (N, H, W, C) preprocessed floats; epsilon is in their units.
        targets: (N,) the true classes.
        epsilon: how far; 0 changes nothing.

    Raises:
        TypeError, ValueError: images or targets are not what is expected; a negative epsilon.

    Example:
        >>> model = Model.from_function(lambda w, x: x.mean((1, 2)) @ w, jnp.eye(2))
        >>> moved = fast_gradient_sign(model, jnp.ones((1, 2, 2, 2)), jnp.array([0]), 0.5)
        >>> moved[0, 0, 0].tolist()
        [0.5, 1.5]
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon={epsilon}: 0 or more")
    images, targets = check_inputs(model, images, targets)
    return images - epsilon * jnp.sign(gradient(model, images, targets, score="log_probability"))


def rank_correlation(
    first: Float[Array | np.ndarray, "n h w"], second: Float[Array | np.ndarray, "n h w"]
) -> Float[Array, " n"]:
    """Return Spearman's rank correlation of pairs of maps; equal values share their mean rank.

    Args:
        first: (N, H, W) floats.
        second: (N, H, W) floats.

    Returns:
        (N,) from -1 to 1; NaN where a map is constant, or holds a NaN or an infinity.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> ramp = jnp.arange(6.0).reshape(1, 2, 3)
        >>> rank_correlation(ramp, ramp**3).tolist(), rank_correlation(ramp, -ramp).tolist()
        ([1.0], [-1.0])
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(
            f"maps have shapes {first.shape} and {second.shape}, expected the same (n, h, w)"
        )
    return _rank_correlation(first, second)


@jax.jit
def _rank_correlation(first: jax.Array, second: jax.Array) -> jax.Array:
    def ranks(heatmap: jax.Array) -> jax.Array:
        values = widen(heatmap).ravel()
        ordered = jnp.sort(values)
        below = jnp.searchsorted(ordered, values, side="left")
        upto = jnp.searchsorted(ordered, values, side="right")
        # From -1 to 1, so that sums of squares stay small.
        return (below + upto) / values.size - 1

    def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = ranks(a), ranks(b)
        a, b = a - a.mean(), b - b.mean()
        product = jnp.sqrt((a**2).sum() * (b**2).sum())
        return (a * b).sum() / jnp.where(product > 0, product, 1)

    found = jax.vmap(correlation)(first, second)
    defined = finite(first) & finite(second) & ~constant(first) & ~constant(second)
    return jnp.where(defined, jnp.clip(found, -1, 1), jnp.nan)
