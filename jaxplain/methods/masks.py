r"""Meaningful perturbations: the smallest blur that hides the class, or the largest that keeps it.

Fong and Vedaldi 2017, arXiv:1704.03296. With $\Phi(x; m) = m x + (1 - m) (g * x)$, where $g$ is a
blur, the deletion game and the preservation game look for

$$m^* = \arg\min_m \; \lambda_1 \|1 - m\|_1 + \lambda_2 \sum_u \|\nabla m(u)\|_\beta^\beta
+ E_\tau f_c(\Phi(x(\cdot - \tau); m)) \tag{4, 5}$$

and the same with $\|m\|_1$ and $-f_c$. The mask is coarse, and enlarged and smoothed before it is
used; the image is moved by a few pixels $\tau$ under it. Descent is by Adam.

The numbers are those of the paper's section 4 and of its authors' program: 28 × 28 cells, smoothed
by 5 pixels of 224; a blur of 10; 300 steps of 0.1; $\lambda_1$ = 1e-4 and $\lambda_2$ = 1e-2 on
sums over the cells; $\beta$ = 3; moves of up to 4 pixels. The start is the smallest disc in the
middle whose blur takes 99 % of what the blur of everything takes from the score (or, to preserve,
the smallest that brings 99 % of it back).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxplain.methods.descent import (
    Tensors,
    gaussian_blur,
    gaussian_matrix,
    through,
    undefined,
)
from jaxplain.methods.method import explainer
from jaxplain.model import Model
from jaxplain.scores import Score, score_fn
from jaxplain.trace.layers import logits

Game = Literal["deletion", "preservation"]

_DISCS = 16
_ENOUGH = 0.99


class MeaningfulPerturbation(NamedTuple):
    """A mask, and the way to it.

    Attributes:
        heatmap: (B, H, W) in 0..1: how much of each pixel is blurred to hide the class, or shown
            to keep it.
        cells: (B, h, w) the coarse mask m, in 0..1.
        history: (B, steps) the loss before every step.
    """

    heatmap: Float[Array, "b y x"]
    cells: Float[Array, "b h w"]
    history: Float[Array, "b s"]


def total_variation(m: Float[Array, "h w"], beta: float) -> Float[Array, ""]:
    r"""Return $\sum_u \|\nabla m(u)\|_2^\beta$, with differences to the next row and column.

    Example:
        >>> float(total_variation(jnp.array([[0.0, 2.0], [0.0, 2.0]]), 3.0))
        8.0
    """
    down, right = m[1:, :-1] - m[:-1, :-1], m[:-1, 1:] - m[:-1, :-1]
    squares = down**2 + right**2
    # A power has no second derivative at zero.
    rising = squares > 0
    return jnp.where(rising, jnp.where(rising, squares, 1) ** (beta / 2), 0).sum()


@explainer("game", "steps", "cells", "beta", "jitter", "blur", "smooth", "initial", "score")
def meaningful_perturbation(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    key: Key[Array, ""],
    game: Game = "deletion",
    steps: int = 300,
    learning_rate: float | Float[Array, ""] = 0.1,
    area_weight: float | Float[Array, ""] = 1e-4,
    variation_weight: float | Float[Array, ""] = 1e-2,
    beta: float = 3.0,
    cells: int = 28,
    jitter: int | None = None,
    blur: float | None = None,
    smooth: float | None = None,
    initial: Literal["disc", "flat"] = "disc",
    score: Score = "probability",
) -> MeaningfulPerturbation:
    """Return the smallest smooth mask whose blur hides each target, or that keeps it.

    Fong and Vedaldi 2017, arXiv:1704.03296, equations (3) to (5).

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        key: `jax.random.key`, for the moves; all images move alike.
        game: "deletion" or "preservation".
        steps: of Adam.
        learning_rate: of Adam.
        area_weight: λ₁.
        variation_weight: λ₂.
        beta: β.
        cells: of the mask along a side, at most one a pixel.
        jitter: pixels by which the image moves; None is 4 of 224, in proportion to the image,
            and at least 1.
        blur: standard deviation of the blur in pixels; None is 10 of 224, in proportion.
        smooth: of the mask's own blur; None is 5 of 224, in proportion.
        initial: where the mask starts: a "disc" in the middle, or "flat", which hides (or shows)
            nothing.
        score: f_c, as in `gradient`.

    Returns:
        The map, the mask's cells and the history.

    Raises:
        ValueError: fewer than one step or two cells; a jitter that is negative or not smaller than
            the image; a negative blur; an unknown game or start.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.eye(28).reshape(1, 28, 28, 1), jnp.array([3])
        >>> key = jax.random.key(0)
        >>> jxp.meaningful_perturbation(model, images, targets, key=key, steps=2).heatmap.shape
        (1, 28, 28)
    """
    import optax

    from jaxplain.solvers import descend

    height, width = int(images.shape[1]), int(images.shape[2])
    side = min(height, width)
    if steps < 1 or cells < 2:
        raise ValueError(f"steps={steps}, cells={cells}: expected at least 1 step and 2 cells")
    jitter = max(round(4 * side / 224), 1) if jitter is None else jitter
    if not 0 <= jitter < side:
        raise ValueError(f"jitter={jitter}: expected 0 to {side - 1} pixels")
    if game not in ("deletion", "preservation"):
        raise ValueError(f"game={game!r}; expected 'deletion' or 'preservation'")
    if initial not in ("disc", "flat"):
        raise ValueError(f"initial={initial!r}; expected 'disc' or 'flat'")
    delete = game == "deletion"
    rows, columns = min(cells, height), min(cells, width)
    blurred = gaussian_blur(images, 10 * side / 224 if blur is None else blur)
    softness = 5 * side / 224 if smooth is None else smooth
    enlarge_down, enlarge_right = (
        jnp.matmul(
            jnp.asarray(gaussian_matrix(pixels, softness), images.dtype),
            jax.image.resize(jnp.eye(n, dtype=images.dtype), (pixels, n), "bilinear"),
            precision="highest",
        )
        for pixels, n in ((height, rows), (width, columns))
    )
    measure = score_fn(score, multilabel=model.multilabel)

    def enlarged(m: jax.Array) -> jax.Array:
        return jnp.einsum("yh,...hw,xw->...yx", enlarge_down, m, enlarge_right, precision="highest")

    def mixed(m: jax.Array, x: jax.Array, hidden: jax.Array) -> jax.Array:
        return m[..., None] * x + (1 - m[..., None]) * hidden

    start = jnp.ones((images.shape[0], rows, columns), images.dtype) * (1.0 if delete else 0.0)
    if initial == "disc":
        start = _discs(
            lambda m: measure(logits(model, mixed(enlarged(m)[None], images, blurred)), targets),
            rows,
            columns,
            delete=delete,
        ).astype(images.dtype)

    around = ((0, 0), *(((jitter + 1) // 2, jitter // 2),) * 2, (0, 0))
    padded, padded_blur = (jnp.pad(x, around, mode="edge") for x in (images, blurred))

    def one(
        x: jax.Array, hidden: jax.Array, m: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def compose(m: jax.Array, step: jax.Array) -> jax.Array:
            moved = jax.random.randint(jax.random.fold_in(key, step), (2,), 0, jitter + 1)
            tau = (moved[0], moved[1], jnp.zeros_like(moved[0]))
            size = (height, width, x.shape[-1])
            return mixed(
                enlarged(m), lax.dynamic_slice(x, tau, size), lax.dynamic_slice(hidden, tau, size)
            )[None]

        def loss(found: Tensors, m: jax.Array, step: jax.Array) -> jax.Array:
            f_c = measure(found["logits"], target[None])[0]
            # m is never outside 0..1, so that its norms are sums.
            area = (1 - m).sum() if delete else m.sum()
            smoothness = total_variation(m, beta)
            return (
                area_weight * area + variation_weight * smoothness + (f_c if delete else -f_c)
            )  # (4)

        found = descend(
            through(model, compose, loss, ["logits"]),
            m,
            steps=steps,
            # The root of the squares has no derivative at zero; this much under it gives it one.
            optimiser=optax.adam(learning_rate, eps_root=1e-16),
            project=lambda m: jnp.clip(m, 0, 1),
            has_gradient=True,
        )
        return found.solution.value, found.history

    m, history = jax.vmap(one)(padded, padded_blur, start, targets)
    m = m + undefined(history)[:, None, None]
    return MeaningfulPerturbation(enlarged(1 - m if delete else m), m, history)


def _discs(
    score: Callable[[jax.Array], jax.Array], rows: int, columns: int, *, delete: bool
) -> jax.Array:
    """Return the masks (B, h, w) of the smallest discs that are enough.

    Args:
        score: mask (h, w) -> scores (B,).
        rows: h.
        columns: w.
        delete: what lies in the disc is hidden, and not the rest.
    """
    y, x = ((jnp.arange(n) + 0.5) / n * 2 - 1 for n in (rows, columns))
    away = jnp.sqrt(y[:, None] ** 2 + x[None, :] ** 2)
    # From nothing to everything.
    radii = jnp.linspace(0, math.sqrt(2), _DISCS)
    inside = (away[None] < radii[:, None, None]).astype(jnp.float32)
    masks = 1 - inside if delete else inside
    scores = lax.map(score, masks)  # (discs, B)
    nothing, everything = scores[:1], scores[-1:]
    # Of the way from nothing to everything, so that a score that does not fall needs no disc.
    enough = (scores - nothing) / jnp.where(nothing == everything, 1, everything - nothing)
    smallest = jnp.argmax((enough >= _ENOUGH) | (nothing == everything), 0)
    return masks[smallest]
