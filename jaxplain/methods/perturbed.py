"""Thousands of perturbed copies of images through a network, in constant memory.

What methods share that only run the network: the loop over numbered samples, and the logits of
images whose pixels are partly replaced. Copies are made on the device, inside the loop, and only
`chunk` of them exist at a time. A black box is called by the loop, with a chunk at once.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxplain.model import Model
from jaxplain.trace.layers import logits

Carry = TypeVar("Carry")


def in_chunks(
    step: Callable[[Carry, jax.Array], Carry],
    carry: Carry,
    count: int,
    *,
    chunk: int,
    start: int | jax.Array = 0,
) -> Carry:
    """Fold `step(carry, numbers)` over the samples start … start + count - 1.

    Chunks are of equal size, at most `chunk`, and none is filled up with samples that do not count;
    what is left is one smaller step.

    Args:
        step: takes the carry and the numbers (n,) of some samples.
        carry: any pytree.
        count: how many samples, at least 1.
        chunk: samples a step, at least 1.
        start: number of the first sample.

    Raises:
        ValueError: a count or chunk below 1.

    Example:
        >>> in_chunks(lambda total, n: total + n.sum(), jnp.array(0), 10, chunk=4).item()
        45
    """
    if count < 1:
        raise ValueError(f"count={count}: at least 1")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: at least 1")
    chunk = min(chunk, count)
    # A size that leaves no rest saves compiling the step twice; otherwise, sizes as near to each
    # other as they can be.
    even = [size for size in range(chunk, chunk // 2, -1) if count % size == 0]
    size = even[0] if even else -(-count // -(-count // chunk))
    rounds = count // size

    def one(before: tuple[Carry, Any], _: None) -> tuple[tuple[Carry, Any], None]:
        # Numbers are counted, not listed: a list of them all would be memory that grows.
        inner, first = before
        return (step(inner, first + jnp.arange(size)), first + size), None

    (carry, _), _ = lax.scan(one, (carry, jnp.asarray(start)), length=rounds)
    if rounds * size < count:
        carry = step(carry, start + jnp.arange(rounds * size, count))
    return carry


def blend(
    images: Float[Array, "b h w c"],
    masks: Float[Array, "n #b h w"],
    filling: Any = 0.0,
) -> Float[Array, "n b h w c"]:
    """Return copies of images that keep what a mask lets through and hold `filling` elsewhere.

    Where the mask is exactly 1 or 0, the result is exactly the image or the filling.

    Args:
        images: (B, H, W, C).
        masks: (n, B, H, W), or (n, 1, H, W) for masks that all images share; in 0..1.
        filling: a number or an array that broadcasts to `images`.

    Example:
        >>> masks = jnp.array([1.0, 0.25]).reshape(1, 1, 1, 2)
        >>> blend(jnp.ones((1, 1, 2, 1)), masks, 5.0)[0, 0, 0, :, 0].tolist()
        [1.0, 4.0]
    """
    filling = jnp.broadcast_to(jnp.asarray(filling, images.dtype), images.shape)
    kept = masks[..., None]
    return kept * images[None] + (1 - kept) * filling[None]


def perturbed_logits(
    model: Model,
    images: Float[Array, "b h w c"],
    masks: Float[Array, "n #b h w"],
    filling: Any = 0.0,
) -> Float[Array, "n b k"]:
    """Return the logits of the `blend` of images, masks and filling: one forward run of n · B.

    Example:
        >>> import jaxplain as jxp
        >>> model, images = jxp.load_model("digits"), jnp.ones((2, 28, 28, 1))
        >>> perturbed_logits(model, images, jnp.zeros((3, 1, 28, 28))).shape
        (3, 2, 10)
    """
    shown = blend(images, masks, filling)
    found = logits(model, shown.reshape(-1, *images.shape[1:]))
    return found.reshape(*shown.shape[:2], -1)
