r"""Extremal perturbations: the part of an image, of a given area, that excites the class most.

Fong, Patrick and Vedaldi 2019, arXiv:1910.08485. Among the smooth masks $m$ that are one on a
share $a$ of the image and zero elsewhere, look for

$$m_a = \arg\max_m \; \Phi(m \otimes x) - \lambda R_a(m), \qquad
R_a(m) = \| \mathrm{vecsort}(m) - r_a \|^2 \tag{1, 2}$$

with $r_a$ that is one on the largest $a$ of the sorted values; $m \otimes x$ blurs where the mask
is small. The mask is the smooth maximum of a kernel that is moved over a coarse grid of parameters
(5).

The numbers are those of TorchRay, the authors' library: a parameter every seven pixels of 224; a
kernel that is one within half of $\sigma = 21$ pixels and falls as
$\exp(-2 (d/\sigma - \frac12)^2)$; a smooth maximum of coldness 20; blurs of up to 20 pixels in
eight levels, interpolated; $\lambda$ of 300 on the *mean* square, which grows by 0.35 % a step;
gradient descent with momentum and dampening 0.9; a mirrored image at every other step. Its area is
measured on a mask that is one $\sigma$ wider than the image on every side, so that up to
$(260/224)^2 = 1.35$ times $a$ of the image may be covered: `covered` says how much is.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxplain.methods.descent import Tensors, gaussian_blur, through
from jaxplain.methods.method import explainer
from jaxplain.model import Model
from jaxplain.scores import Score, score_fn
from jaxplain.trace.layers import capture, logits, split

Variant = Literal["preserve", "delete", "dual"]

_COLDNESS = 20.0
_MOMENTUM = 0.9
# Equal values of a mask differ by this much from rounding in the exponentials of (5).
_TIE = 5e-6


class ExtremalPerturbation(NamedTuple):
    """Masks of several areas.

    Attributes:
        heatmap: (B, H, W) the sum of the masks, smoothed if asked for.
        masks: (B, A, H, W) the mask of each area, in 0..1.
        covered: (B, A) the mean of each mask.
        history: (B, steps) the loss before every step, summed over the areas.
    """

    heatmap: Float[Array, "b h w"]
    masks: Float[Array, "b a h w"]
    covered: Float[Array, "b a"]
    history: Float[Array, "b s"]


class ExtremalChannels(NamedTuple):
    """The channels of a layer that excite the class most.

    Attributes:
        masks: (B, A, K) the mask of each share of channels, in 0..1.
        history: (B, steps) the loss before every step, summed over the shares.
    """

    masks: Float[Array, "b a k"]
    history: Float[Array, "b s"]


class _Grid(NamedTuple):
    """Sizes of the mask along one axis, in parameters, in blocks of pixels, and the margin."""

    parameters: int
    padding: int
    blocks: int
    margin: int
    pixels: int


def _reach(cell: int, sigma: int) -> tuple[int, int]:
    """Return how many parameters a pixel sees on every side, and how many are added there.

    The latter is TorchRay's, or what it takes to have the whole image behind the margin.
    """
    reach = 1 + math.ceil(sigma / cell)
    margin = math.ceil(2 * sigma / cell) - math.ceil(sigma / cell)
    return reach, reach + max(margin, math.ceil((sigma + cell - 1) / (2 * cell)))


def _grid(size: int, cell: int, sigma: int) -> _Grid:
    reach, padding = _reach(cell, sigma)
    parameters = math.ceil(size / cell)
    return _Grid(parameters, padding, parameters + 2 * (padding - reach), sigma, size)


def _kernel(cell: int, sigma: int) -> np.ndarray:
    """Return the kernel (n, n, cell, cell): of every parameter that a pixel of a block sees."""
    reach, padding = _reach(cell, sigma)
    near = np.arange(2 * reach + 1)
    # Pixel a of a block, and the middle of its n-th parameter.
    away = np.arange(cell)[None, :] - sigma - cell * (near[:, None] - padding)
    distance = np.sqrt(away[:, None, :, None] ** 2 + away[None, :, None, :] ** 2)
    return np.exp(-2 * np.maximum(distance / sigma - 0.5, 0) ** 2).astype(np.float32)


def _smooth_masks(parameters: jax.Array, grids: tuple[_Grid, _Grid], cell: int) -> jax.Array:
    """Return the masks (A, H', W'), margins included, of parameters (A, h, w): (5)."""
    kernel = jnp.asarray(_kernel(cell, grids[0].margin), parameters.dtype)
    near = kernel.shape[0]
    rows, columns = grids[0].blocks, grids[1].blocks
    padded = jnp.pad(parameters, ((0, 0), *((g.padding, g.padding) for g in grids)))
    seen = jnp.stack([padded[:, down : down + rows] for down in range(near)], 1)
    seen = jnp.stack([seen[..., right : right + columns] for right in range(near)], 2)
    seen = seen.reshape(-1, near * near, rows, columns)
    v = seen[..., None, None] * kernel.reshape(1, near * near, 1, 1, cell, cell)
    weight = jnp.exp(_COLDNESS * (v - 1))  # parameters are at most 1
    m = (weight * v).sum(1) / weight.sum(1)
    m = m.transpose(0, 1, 3, 2, 4).reshape(-1, rows * cell, columns * cell)
    return m[:, : rows * cell - cell + 1, : columns * cell - cell + 1]


def _cropped(m: jax.Array, grids: tuple[_Grid, _Grid]) -> jax.Array:
    """Return the masks without their margins."""
    (top, height), (left, width) = ((g.margin, g.pixels) for g in grids)
    return m[:, top : top + height, left : left + width]


def _area_loss(m: jax.Array, areas: tuple[float, ...]) -> jax.Array:
    """Return R_a (2) of flat masks (A, N), as a mean square.

    Where values tie at the edge of the area, any of them may be inside. They share what room there
    is, so that no place is preferred before the score has spoken: whatever is inside is drawn
    further in, and what began as a coin's toss would stay.
    """
    count = m.shape[1]
    known = jax.lax.stop_gradient(m)
    order = jnp.sort(known, 1)

    def reference(values: jax.Array, ascending: jax.Array, area: float) -> jax.Array:
        """Return 1 at the largest values."""
        zeros = int(count * (1 - area))
        if zeros == count:
            return jnp.zeros_like(values)
        least = ascending[zeros]
        above = values > least + _TIE
        tied = ~above & (values >= least - _TIE)
        room = count - zeros - above.sum()
        return above + tied * (room / tied.sum()).astype(values.dtype)

    r = jnp.stack([reference(known[i], order[i], area) for i, area in enumerate(areas)])
    return ((m - r) ** 2).mean(1)


def _perturbed(pyramid: jax.Array, m: jax.Array) -> jax.Array:
    """Return images (A, H, W, C), between the levels (L, H, W, C) that masks (A, H, W) name."""
    levels = pyramid.shape[0]
    height = m * (levels - 1)
    below = jax.lax.stop_gradient(jnp.clip(jnp.floor(height), 0, levels - 1))
    part = height - below
    above = jnp.minimum(below + 1, levels - 1)
    shown = jnp.zeros((*m.shape, pyramid.shape[-1]), pyramid.dtype)
    for level in range(levels):
        share = jnp.where(below == level, 1 - part, 0) + jnp.where(above == level, part, 0)
        shown = shown + share[..., None] * pyramid[level][None]
    return shown


def _check(areas: Any, steps: int, variant: str) -> tuple[float, ...]:
    areas = (areas,) if isinstance(areas, float | int) else tuple(areas)
    if not areas or not all(0 < area < 1 for area in areas):
        raise ValueError(f"areas={areas}: shares of the image, between 0 and 1")
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1")
    if variant not in ("preserve", "delete", "dual"):
        raise ValueError(f"variant={variant!r}; expected 'preserve', 'delete' or 'dual'")
    return areas


def _reward(scores: jax.Array, variant: Variant, count: int) -> jax.Array:
    """Return the reward of each area from the scores of what is kept, of what is left, or both."""
    if variant == "dual":
        return scores[:count] - scores[count:]
    return scores if variant == "preserve" else -scores


def _shown(m: jax.Array, variant: Variant) -> jax.Array:
    """Return the masks of the images that the network sees."""
    if variant == "dual":
        return jnp.concatenate([m, 1 - m])
    return m if variant == "preserve" else 1 - m


def _momentum(rate: Any) -> Any:
    """Return gradient descent whose momentum begins with the whole of the first gradient."""
    import optax

    def init(value: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros_like(value), jnp.zeros((), bool)

    def update(slope: Any, memory: Any, value: Any = None) -> tuple[Any, Any]:
        mean, begun = memory
        mean = jnp.where(begun, _MOMENTUM * mean + (1 - _MOMENTUM) * slope, slope)
        return -rate * mean, (mean, jnp.ones((), bool))

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _missing(model: Model, images: jax.Array, targets: jax.Array, score: Score) -> jax.Array:
    """Return NaN for a class that does not exist, else zero: (B, 1, 1, 1)."""
    plain = score_fn(score, multilabel=model.multilabel)(logits(model, images), targets)
    return jnp.where(jnp.isnan(plain), jnp.nan, 0).astype(images.dtype)[:, None, None, None]


@explainer(
    "areas", "variant", "steps", "cell", "sigma", "levels", "blur", "flip", "smooth", "score"
)
def extremal_perturbation(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    areas: float | tuple[float, ...] = 0.1,
    variant: Variant = "preserve",
    steps: int = 800,
    learning_rate: float | Float[Array, ""] = 0.01,
    area_weight: float | Float[Array, ""] = 300.0,
    growth: float | Float[Array, ""] = 1.0035,
    cell: int | None = None,
    sigma: int | None = None,
    levels: int = 8,
    blur: float | None = None,
    flip: bool = True,
    smooth: float = 0.0,
    score: Score = "logit",
) -> ExtremalPerturbation:
    """Return the masks of given areas that excite each target most, and their sum.

    Fong et al. 2019, arXiv:1910.08485, equations (1), (2) and (5).

    All areas of all images are optimised side by side. TorchRay returns the mask before its last
    step: its result of n iterations is ours of n - 1.

    Args:
        model: any model.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        areas: share of the image, or several, each between 0 and 1.
        variant: "preserve" rewards what the mask keeps, "delete" the loss of it, "dual" both.
        steps: of gradient descent.
        learning_rate: of gradient descent.
        area_weight: λ.
        growth: of λ, a step.
        cell: pixels between parameters; None is 7 of 224, in proportion to the image.
        sigma: width of the kernel in pixels; None is three cells.
        levels: of blur, at least 2.
        blur: standard deviation of the strongest blur in pixels; None is 20 of 224, in proportion.
        flip: show the mirrored image at every other step.
        smooth: blur of the heat map, as a share of the image's shorter side; the paper takes 0.09
            where maxima are compared.
        score: what is rewarded, as in `gradient`.

    Returns:
        The heat map, the masks, what they cover, and the history.

    Raises:
        ValueError: an area that is not between 0 and 1; fewer than one step or two levels; a
            kernel wider than the image; an unknown variant.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.eye(28).reshape(1, 28, 28, 1), jnp.array([3])
        >>> found = jxp.extremal_perturbation(model, images, targets, areas=(0.1, 0.2), steps=2)
        >>> found.heatmap.shape, found.masks.shape
        ((1, 28, 28), (1, 2, 28, 28))
    """
    from jaxplain.solvers import descend

    shares = _check(areas, steps, variant)
    if levels < 2:
        raise ValueError(f"levels={levels}: at least 2")
    side = min(images.shape[1:3])
    cell = max(round(7 * side / 224), 1) if cell is None else cell
    sigma = 3 * cell if sigma is None else sigma
    if cell < 1 or sigma < 1 or 2 * sigma > side:
        raise ValueError(
            f"cell={cell}, sigma={sigma}: expected at least 1 pixel, and a kernel (of 2 sigma) "
            f"no wider than the image, whose shorter side is {side}"
        )
    strongest = 20 * side / 224 if blur is None else blur
    pyramids = jnp.stack(
        [
            gaussian_blur(images, strongest * (1 - level / (levels - 1)), zeros=True)
            for level in range(levels)
        ],
        1,
    )
    grids = (_grid(images.shape[1], cell, sigma), _grid(images.shape[2], cell, sigma))
    measure = score_fn(score, multilabel=model.multilabel)
    count = len(shares)

    def one(pyramid: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        def compose(parameters: jax.Array, step: jax.Array) -> jax.Array:
            m = _cropped(_smooth_masks(parameters, grids, cell), grids)
            shown = _perturbed(pyramid, _shown(m, variant))
            return jnp.where(step % 2 == 0, shown[:, :, ::-1], shown) if flip else shown

        def loss(found: Tensors, parameters: jax.Array, step: jax.Array) -> jax.Array:
            scores = measure(found["logits"], jnp.full(found["logits"].shape[0], target))
            m = _smooth_masks(parameters, grids, cell).reshape(count, -1)
            weight = area_weight * growth**step
            return (weight * _area_loss(m, shares) - _reward(scores, variant, count)).sum()

        found = descend(
            through(model, compose, loss, ["logits"]),
            jnp.ones((count, *(g.parameters for g in grids)), images.dtype),
            steps=steps,
            optimiser=_momentum(learning_rate),
            project=lambda parameters: jnp.clip(parameters, 0, 1),
            has_gradient=True,
        )
        masks = _cropped(_smooth_masks(found.solution.value, grids, cell), grids)
        return jnp.clip(masks, 0, 1), found.history

    masks, history = jax.vmap(one)(pyramids, targets)
    masks = masks + _missing(model, images, targets, score)
    heatmap = masks.sum(1)
    if smooth > 0:
        heatmap = gaussian_blur(heatmap[..., None], smooth * side)[..., 0]
    return ExtremalPerturbation(heatmap, masks, masks.mean((2, 3)), history)


@explainer("layer", "areas", "variant", "steps", "score")
def extremal_channels(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    layer: str,
    areas: float | tuple[float, ...] = 0.1,
    variant: Variant = "preserve",
    steps: int = 300,
    learning_rate: float | Float[Array, ""] = 0.01,
    area_weight: float | Float[Array, ""] = 300.0,
    growth: float | Float[Array, ""] = 1.0035,
    score: Score = "logit",
) -> ExtremalChannels:
    """Return the given shares of a layer's channels that excite each target most.

    Fong et al. 2019, arXiv:1910.08485, section 4: the mask multiplies the channels, and is not
    smooth. What comes before the layer runs once.

    Args:
        model: any model with layers.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        layer: whose channels are masked; nothing may lead round it.
        areas: share of the channels, or several, each between 0 and 1.
        variant: as in `extremal_perturbation`.
        steps: of gradient descent.
        learning_rate: of gradient descent.
        area_weight: λ.
        growth: of λ, a step.
        score: as in `gradient`.

    Returns:
        The masks and the history.

    Raises:
        ValueError: as `extremal_perturbation`; no such layer, or a path that leads round it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.eye(28).reshape(1, 28, 28, 1), jnp.array([3])
        >>> jxp.extremal_channels(model, images, targets, layer="pool2", steps=2).masks.shape
        (1, 1, 50)
    """
    from jaxplain.solvers import descend

    shares = _check(areas, steps, variant)
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    _, behind = split(model, layer, image_shape=shape)
    activations = capture(model, images, [layer])[layer]
    measure = score_fn(score, multilabel=model.multilabel)
    count, channels = len(shares), activations.shape[-1]

    def one(activation: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        def compose(m: jax.Array, step: jax.Array) -> jax.Array:
            shown = _shown(m, variant)
            return shown.reshape(-1, *(1,) * (activation.ndim - 1), channels) * activation[None]

        def loss(found: Tensors, m: jax.Array, step: jax.Array) -> jax.Array:
            scores = measure(found["logits"], jnp.full(found["logits"].shape[0], target))
            area = _area_loss(m, shares)
            return (area_weight * growth**step * area - _reward(scores, variant, count)).sum()

        found = descend(
            through(behind, compose, loss, ["logits"]),
            jnp.ones((count, channels), activation.dtype),
            steps=steps,
            optimiser=_momentum(learning_rate),
            project=lambda m: jnp.clip(m, 0, 1),
            has_gradient=True,
        )
        return found.solution.value, found.history

    masks, history = jax.vmap(one)(activations, targets)
    return ExtremalChannels(masks + _missing(model, images, targets, score)[..., 0], history)
