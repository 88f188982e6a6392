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
gradient descent with momentum and dampening 0.9; a mirrored image at every other step.

Two things of it are for large images only (`border="zero"`). Its area is measured on a mask that is
one $\sigma$ wider than the image on every side, so that up to $(260/224)^2 = 1.35$ times $a$ of the
image may be covered: `covered` says how much is. And there are no parameters behind the border.
The smooth maximum is a mean in which the kernel's skirt has a part, and less of a part where some
of the skirt is missing: of equal parameters, the largest values are those along the border, and
before the score has spoken, the area has chosen them. In an image of 28 pixels, whose parameters
are a pixel apart, the outermost pixels are a tenth of it, and a mask of that area becomes the frame
of the picture. With `border="mirror"`, parameters go on behind the border as in a mirror, so that
no place is ahead, and the area is that of the image, filled up to whole cells.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxplain.methods.descent import Tensors, gaussian_blur, through, undefined
from jaxplain.methods.method import explainer
from jaxplain.methods.smooth_masks import cropped, grid_of, smooth_masks
from jaxplain.model import Model
from jaxplain.scores import Score, score_fn
from jaxplain.trace.layers import capture, split

Variant = Literal["preserve", "delete", "dual"]
Border = Literal["mirror", "zero"]

_CELL = 7
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


def _ranked(values: jax.Array, below: Any) -> jax.Array:
    """Return the value (N,) that has `below` others before it, without sorting.

    Its bits are found one after the other: those of floats that are not negative have their order.
    """
    size = values.dtype.itemsize
    bits = lax.bitcast_convert_type(values, {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[size])

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = low + (high - low) // 2
        far = (bits <= middle).sum() > below
        return jnp.where(far, low, middle + 1), jnp.where(far, middle, high)

    infinity = lax.bitcast_convert_type(jnp.asarray(jnp.inf, values.dtype), bits.dtype)
    ends = (jnp.zeros_like(infinity), infinity)
    least = lax.fori_loop(0, 8 * size - 1, halve, ends)[1]
    return lax.bitcast_convert_type(least, values.dtype)


def _area_loss(m: jax.Array, areas: tuple[float, ...], ranks: jax.Array | None = None) -> jax.Array:
    """Return R_a (2) of flat masks (A, N), as a mean square.

    Where values tie at the edge of the area, any of them may be inside. They share what room there
    is, so that no place is preferred before the score has spoken: whatever is inside is drawn
    further in, and what began as a coin's toss would stay. With ranks (A, N), those of the highest
    are inside.
    """
    count = m.shape[1]
    known = lax.stop_gradient(m)

    def reference(values: jax.Array, rank: jax.Array | None, area: float) -> jax.Array:
        """Return 1 at the largest values."""
        zeros = int(count * (1 - area))
        if zeros == count:
            return jnp.zeros_like(values)
        least = _ranked(values, zeros)
        above = values > least + _TIE
        tied = ~above & (values >= least - _TIE)
        room = count - zeros - above.sum()
        if rank is not None:
            # Ranks are not negative, and what is not tied lies below all of them.
            rank = jnp.where(tied, rank + 1, 0)
            least = _ranked(rank, count - room)
            above, tied = above | (rank > least), rank == least
            room = count - zeros - above.sum()
        return above + tied * (room / tied.sum()).astype(values.dtype)

    given = [None] * len(areas) if ranks is None else list(ranks)
    r = jnp.stack([reference(*each) for each in zip(known, given, areas, strict=True)])
    return ((m - r) ** 2).mean(1)


def _perturbed(pyramid: jax.Array, m: jax.Array) -> jax.Array:
    """Return images (A, H, W, C), between the levels (L, H, W, C) that masks (A, H, W) name."""
    levels = pyramid.shape[0]
    height = m * (levels - 1)
    below = lax.stop_gradient(jnp.clip(jnp.floor(height), 0, levels - 2))
    part = height - below
    shown = jnp.zeros((*m.shape, pyramid.shape[-1]), pyramid.dtype)
    for level in range(levels):
        share = jnp.where(below == level, 1 - part, 0) + jnp.where(below + 1 == level, part, 0)
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


@explainer(
    "areas",
    "variant",
    "steps",
    "cell",
    "sigma",
    "border",
    "levels",
    "blur",
    "flip",
    "smooth",
    "score",
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
    border: Border | None = None,
    levels: int | None = None,
    blur: float | None = None,
    flip: bool = True,
    smooth: float = 0.0,
    score: Score = "logit",
    precedence: Float[Array, "a y x"] | None = None,
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
        border: what is behind it: "zero", as in TorchRay, or a "mirror", so that no place starts
            ahead of others; None is "zero" for cells of seven pixels or more.
        levels: of blur, at least 2; None is 8, or as many as differ by a pixel: less changes
            nothing of an image, so that a mask near one would feel nothing of the score.
        blur: standard deviation of the strongest blur in pixels; None is 20 of 224, in proportion.
        flip: show the mirrored image at every other step.
        smooth: blur of the heat map, as a share of the image's shorter side; the paper takes 0.09
            where maxima are compared.
        score: what is rewarded, as in `gradient`.
        precedence: (A, H', W') which of the places that tie at the edge of an area are inside:
            those of the larger numbers, which are not negative; None lets them share the room. The
            mask is flat at first, so that this is the whole of the first step. It has the size of
            the mask whose area is measured: with a border of "zero", wider than the image by sigma
            on every side.

    Returns:
        The heat map, the masks, what they cover, and the history.

    Raises:
        ValueError: an area that is not between 0 and 1; fewer than one step or two levels; a
            kernel wider than the image; an unknown variant or border; a precedence of another size.

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
    if levels is not None and levels < 2:
        raise ValueError(f"levels={levels}: at least 2")
    side = min(images.shape[1:3])
    cell = max(round(_CELL * side / 224), 1) if cell is None else cell
    sigma = 3 * cell if sigma is None else sigma
    if cell < 1 or sigma < 1 or 2 * sigma > side:
        raise ValueError(
            f"cell={cell}, sigma={sigma}: expected at least 1 pixel, and a kernel (of 2 sigma) "
            f"no wider than the image, whose shorter side is {side}"
        )
    border = ("zero" if cell >= _CELL else "mirror") if border is None else border
    if border not in ("mirror", "zero"):
        raise ValueError(f"border={border!r}; expected 'mirror' or 'zero'")
    mirror = border == "mirror"
    strongest = 20 * side / 224 if blur is None else blur
    levels = max(min(1 + int(strongest), 8), 2) if levels is None else levels
    pyramids = jnp.stack(
        [
            gaussian_blur(images, strongest * (1 - level / (levels - 1)), zeros=True)
            for level in range(levels)
        ],
        1,
    )
    height, width = images.shape[1:3]
    # All places are alike only if whole cells fill the side.
    cells = cell if mirror else 1
    down, right = (-(-pixels // cells) * cells for pixels in (height, width))
    grids = (grid_of(down, cell, sigma), grid_of(right, cell, sigma))
    measure = score_fn(score, multilabel=model.multilabel)
    count = len(shares)

    def measured(parameters: jax.Array) -> jax.Array:
        """Return the masks whose area is measured (A, H', W')."""
        m = smooth_masks(parameters, grids, cell, mirror=mirror)
        return cropped(m, grids) if mirror else m

    whole = jax.eval_shape(measured, jnp.ones((count, *(g.parameters for g in grids)))).shape
    if precedence is not None and precedence.shape != whole:
        raise ValueError(f"precedence has shape {precedence.shape}; expected {whole}")
    ranks = None if precedence is None else precedence.reshape(count, -1)

    def seen(m: jax.Array) -> jax.Array:
        """Return the part of measured masks that lies in the image."""
        return m[:, :height, :width] if mirror else cropped(m, grids)

    def one(pyramid: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        def compose(m: jax.Array, step: jax.Array) -> jax.Array:
            shown = _perturbed(pyramid, _shown(seen(m), variant))
            return jnp.where(step % 2 == 0, shown[:, :, ::-1], shown) if flip else shown

        def loss(found: Tensors, m: jax.Array, step: jax.Array) -> jax.Array:
            scores = measure(found["logits"], jnp.full(found["logits"].shape[0], target))
            area = _area_loss(m.reshape(count, -1), shares, ranks)
            return (area_weight * growth**step * area - _reward(scores, variant, count)).sum()

        through_mask = through(model, compose, loss, ["logits"])

        def objective(parameters: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            # The way back through the smooth maximum is long: it is gone once, for both terms.
            m, pull = jax.vjp(measured, parameters)
            value, slope = through_mask(m, step)
            return value, pull(slope)[0]

        found = descend(
            objective,
            jnp.ones((count, *(g.parameters for g in grids)), images.dtype),
            steps=steps,
            optimiser=_momentum(learning_rate),
            project=lambda parameters: jnp.clip(parameters, 0, 1),
            has_gradient=True,
        )
        return jnp.clip(seen(measured(found.solution.value)), 0, 1), found.history

    masks, history = jax.vmap(one)(pyramids, targets)
    masks = masks + undefined(history)[:, None, None, None]
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
    return ExtremalChannels(masks + undefined(history)[:, None, None], history)
