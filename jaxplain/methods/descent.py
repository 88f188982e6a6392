"""What the methods that optimise have in common: gradients through a network inside a loop, blurs.

A backward convolution inside `lax.scan` is slow on a CPU (see `jaxplain.trace.convolution`), so
the network is swept backwards by `Sweep`, and only what surrounds it is left to `jax.vjp`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxplain.model import Model
from jaxplain.trace.backward import Sweep
from jaxplain.trace.layers import INPUT
from jaxplain.trace.reverse import Seed
from jaxplain.trace.rules import NO_RULES

Tensors = dict[str, jax.Array]


def through(
    model: Model,
    compose: Callable[[Any, jax.Array], jax.Array],
    loss: Callable[[Tensors, Any, jax.Array], jax.Array],
    names: Sequence[str],
) -> Callable[[Any, jax.Array], tuple[jax.Array, Any]]:
    """Return an objective for `solvers.descend`, with its gradient (`has_gradient=True`).

    Args:
        model: any model.
        compose: (value, step) -> images (N, H, W, C) that the network sees.
        loss: ({name: tensor (N, ...)}, value, step) -> scalar.
        names: layers that the loss reads; "logits" is one of them.

    Returns:
        (value, step) -> (loss, its derivative by the value).

    Example:
        >>> model = Model.from_function(lambda w, x: x.mean((1, 2)) @ w, jnp.ones((1, 2)))
        >>> objective = through(
        ...     model,
        ...     lambda shade, step: jnp.full((1, 4, 4, 1), shade),
        ...     lambda found, shade, step: found["logits"].sum() - shade**2,
        ...     ["logits"],
        ... )
        >>> [float(number) for number in objective(jnp.array(3.0), jnp.array(0))]
        [-3.0, -4.0]
    """

    def evaluate(value: Any, step: jax.Array) -> tuple[jax.Array, Any]:
        images, pull = jax.vjp(lambda v: compose(v, step), value)
        sweep = Sweep(model, images)
        tensors = {
            name: sweep.logits if name == "logits" else sweep.activation(name) for name in names
        }
        found, (behind, own) = jax.value_and_grad(loss, argnums=(0, 1))(tensors, value, step)
        seeds = {name: Seed(cotangent=behind[name]) for name in names}
        arrived = sweep.pull(NO_RULES, seeds, [INPUT], strict=False)[INPUT].value
        (through_images,) = pull(arrived)
        return found, jax.tree.map(jnp.add, own, through_images)

    return evaluate


def undefined(history: Float[Array, "b s"]) -> Float[Array, " b"]:
    """Return NaN where not even the first step of a descent could be taken, and zero elsewhere.

    Nothing was found there: the class does not exist, or the network's answer is not finite.

    Example:
        >>> undefined(jnp.array([[1.0, 0.5], [jnp.inf, jnp.inf]])).tolist()
        [0.0, nan]
    """
    return jnp.where(jnp.isfinite(history[:, 0]), 0, jnp.nan).astype(history.dtype)


def gaussian_matrix(size: int, sigma: float, *, zeros: bool = False) -> Float[np.ndarray, "n n"]:
    """Return the matrix that blurs a line of pixels with a Gaussian, cut off at 4 sigma.

    Args:
        size: pixels of the line.
        sigma: standard deviation, in pixels; 0 leaves the line as it is.
        zeros: what lies outside of the line is zero; otherwise only what lies inside is averaged.

    Raises:
        ValueError: a negative or infinite sigma.

    Example:
        >>> float(gaussian_matrix(5, 2.0).sum(1).min()) > 0.999
        True
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma={sigma}: a blur's standard deviation is a number from 0")
    reach = math.ceil(4 * sigma)
    distance = np.arange(size)[:, None] - np.arange(size)[None, :]
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * max(sigma, 1e-12) ** 2))
    weights = np.exp(-(distance**2) / (2 * max(sigma, 1e-12) ** 2)) * (abs(distance) <= reach)
    total = kernel.sum() if zeros else weights.sum(1, keepdims=True)
    return (weights / total).astype(np.float32)


def gaussian_blur(
    images: Float[Array, "b h w c"], sigma: float, *, zeros: bool = False
) -> Float[Array, "b h w c"]:
    """Blur images with a Gaussian of `sigma` pixels; see `gaussian_matrix`.

    Example:
        >>> blurred = gaussian_blur(jnp.eye(8).reshape(1, 8, 8, 1), 1.0)
        >>> blurred.shape, round(float(blurred[0, 4, 4, 0]), 2)
        ((1, 8, 8, 1), 0.28)
    """
    down, right = (
        jnp.asarray(gaussian_matrix(size, sigma, zeros=zeros), images.dtype)
        for size in images.shape[1:3]
    )
    return jnp.einsum("yh,xw,bhwc->byxc", down, right, images, precision="highest")
