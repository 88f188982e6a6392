"""Methods that only run the network: occlusion.

They need no derivative, so they work on any black box that JAX can run.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxplain.methods.method import explainer
from jaxplain.methods.perturbed import in_chunks
from jaxplain.model import Model
from jaxplain.scores import Score, score_fn
from jaxplain.trace.layers import logits

Pair = int | tuple[int, int]


def _pair(value: Pair, name: str, limit: tuple[int, int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1 or pair[0] > limit[0] or pair[1] > limit[1]:
        raise ValueError(f"{name}={value}; expected one or two numbers between 1 and {limit}")
    return pair  # type: ignore[return-value]


@explainer("window", "stride", "chunk", "score", gradient=False)
def occlusion(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    window: Pair | None = None,
    stride: Pair | None = None,
    baseline: Any = 0.0,
    chunk: int = 32,
    score: Score = "logit",
) -> Float[Array, "b h w"]:
    """Return how much the target's score falls when a window slides over the image.

    Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2.

    A pixel's value is the mean fall over the windows that cover it. The last window of a row or
    column is cut off at the border. Windows are made on the device, `chunk` of them a step, so
    memory does not grow with their number.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        window: side, or (height, width), in pixels; None is an eighth of the image.
        stride: step, or (down, right), in pixels; None is half the window.
        baseline: what is put in: a number or an array that broadcasts to `images`.
        chunk: windows per step; each is a forward run of the whole batch.
        score: as in `gradient`.

    Returns:
        (B, H, W), in score; positive where covering lowers it.

    Raises:
        ValueError: a window or stride outside the image, a stride larger than the window (pixels
            would go unseen), or a chunk below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> jxp.occlusion(model, jnp.ones((1, 28, 28, 1)), jnp.array([3]), window=7).shape
        (1, 28, 28)
    """
    height, width = images.shape[1:3]
    window = (max(height // 8, 1), max(width // 8, 1)) if window is None else window
    wh, ww = _pair(window, "window", (height, width))
    stride = (max(wh // 2, 1), max(ww // 2, 1)) if stride is None else stride
    sh, sw = _pair(stride, "stride", (height, width))
    if sh > wh or sw > ww:
        raise ValueError(
            f"stride {(sh, sw)} exceeds window {(wh, ww)}: some pixels would never be covered"
        )
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: at least 1")
    rows, columns = -(-(height - wh) // sh) + 1, -(-(width - ww) // sw) + 1
    count = rows * columns
    filling = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
    batch = images.shape[0]
    scores = score_fn(score, multilabel=model.multilabel)
    plain = scores(logits(model, images), targets)

    def covered(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the window as a pair of indicators, down (H,) and right (W,)."""
        top, left = number // columns * sh, number % columns * sw
        down, right = jnp.arange(height) - top, jnp.arange(width) - left
        return (down >= 0) & (down < wh), (right >= 0) & (right < ww)

    def fall(numbers: jax.Array) -> jax.Array:
        """Return sum over windows of the fall of the score, spread over each window: (B, H, W)."""
        down, right = jax.vmap(covered)(numbers)
        inside = (down[:, :, None] & right[:, None, :])[:, None, :, :, None]  # (n, 1, H, W, 1)
        shown = jnp.where(inside, filling[None], images[None]).reshape(-1, *images.shape[1:])
        values = scores(logits(model, shown), jnp.tile(targets, numbers.shape[0])).reshape(
            -1, batch
        )
        difference = plain[None] - values
        return jnp.einsum(
            "nb,nh,nw->bhw",
            difference,
            down.astype(images.dtype),
            right.astype(images.dtype),
            precision="highest",
        )

    zero = images[..., 0] * 0
    total = in_chunks(lambda sum_, numbers: sum_ + fall(numbers), zero, count, chunk=chunk)
    down, _ = jax.vmap(covered)(jnp.arange(rows) * columns)
    _, right = jax.vmap(covered)(jnp.arange(columns))
    times = down.sum(0)[:, None] * right.sum(0)[None, :]
    return total / times[None].astype(images.dtype)
