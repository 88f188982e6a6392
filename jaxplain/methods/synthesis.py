r"""Images made by descent: what a layer keeps of an image, and what a class or channel asks for.

*Feature inversion* (Mahendran and Vedaldi 2015, arXiv:1412.0035) looks for an image that a layer
$\Phi$ cannot tell from a given one, among those that look like images:

$$\min_x \; \frac{\|\Phi(x) - \Phi(x_0)\|^2}{\|\Phi(x_0)\|^2}
+ \frac{\lambda_\alpha}{H W B^\alpha} \|x\|_\alpha^\alpha
+ \frac{\lambda_V}{H W V^\beta} \sum_u \|\nabla x(u)\|_2^\beta \tag{2, 3}$$

The pixels' usual size $B$ and their usual change $V = B / 6.5$ make the weights independent of the
image's size and of its units (as in the authors' longer paper, arXiv:1512.02017). Descent is by
Adam, where they take momentum.

*Activation maximisation* (Erhan et al. 2009; Simonyan et al. 2014, arXiv:1312.6034) climbs towards
an image that excites a class, or a channel of a layer, most. Steps of the same mean length, moves
by a few pixels before every step, and a blur that fades away keep it from filling up with noise, as
in Audun Øygard's DeepDraw.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxplain.methods.descent import Tensors, through
from jaxplain.methods.masks import total_variation
from jaxplain.model import Model, check_differentiable, check_images
from jaxplain.scores import Score, check_targets, score_fn
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.layers import capture, logits, trace_model

_START = 0.1


class FeatureInversion(NamedTuple):
    """Images that a layer takes for others.

    Attributes:
        images: (B, H, W, C) what was found, in the network's units.
        error: (B,) the first term of (2): the share of the activation's square that is missed.
        history: (B, steps) the whole of (2) before every step.
    """

    images: Float[Array, "b h w c"]
    error: Float[Array, " b"]
    history: Float[Array, "b s"]


class ActivationMaximisation(NamedTuple):
    """Images that excite classes or channels.

    Attributes:
        images: (B, H, W, C) what was found, in the network's units.
        activation: (B,) of each class or channel at its image.
        history: (B, steps) the same before every step, as the moved image excites it.
    """

    images: Float[Array, "b h w c"]
    activation: Float[Array, " b"]
    history: Float[Array, "b s"]


def feature_inversion(
    model: Model,
    images: Float[Array, "b h w c"],
    *,
    layer: str,
    key: Key[Array, ""],
    steps: int = 400,
    learning_rate: float | Float[Array, ""] = 0.05,
    norm_weight: float | Float[Array, ""] = 1e-2,
    variation_weight: float | Float[Array, ""] = 1e-3,
    alpha: float = 6.0,
    beta: float = 2.0,
    magnitude: float = 1.4,
) -> FeatureInversion:
    """Return images that a layer cannot tell from the given ones.

    Mahendran and Vedaldi 2015, arXiv:1412.0035, equations (2) and (3).

    Args:
        model: any model with layers.
        images: (B, H, W, C) preprocessed floats.
        layer: Φ: any layer, or "logits".
        key: `jax.random.key`, of the noise to start from; all images start alike.
        steps: of Adam.
        learning_rate: of Adam, in the images' units.
        norm_weight: λ_α.
        variation_weight: λ_V; deep layers take ten to a hundred times as much (ours).
        alpha: α, at least 1.
        beta: β, at least 1.
        magnitude: B; 80 grey levels of photographs, whose standard deviation is about 58.

    Returns:
        The images, what the layer misses in them, and the history.

    Raises:
        ValueError: no such layer; fewer than one step; an exponent below 1; a magnitude that is
            not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model, images = jxp.load_model("digits"), jnp.eye(28).reshape(1, 28, 28, 1)
        >>> found = jxp.feature_inversion(
        ...     model, images, layer="pool1", key=jax.random.key(0), steps=2
        ... )
        >>> found.images.shape, found.history.shape
        ((1, 28, 28, 1), (1, 2))
    """
    check_differentiable(model, "feature_inversion")
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1")
    if alpha < 1 or beta < 1 or not magnitude > 0:
        raise ValueError(
            f"alpha={alpha}, beta={beta}, magnitude={magnitude}: expected exponents of at least 1 "
            "and a positive magnitude"
        )
    return _inverted(
        model, check_images(images, model), key, learning_rate, norm_weight, variation_weight,
        magnitude, layer=layer, steps=steps, alpha=alpha, beta=beta,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("layer", "steps", "alpha", "beta"))
def _inverted(
    model: Model,
    images: jax.Array,
    key: jax.Array,
    learning_rate: Any,
    norm_weight: Any,
    variation_weight: Any,
    magnitude: Any,
    *,
    layer: str,
    steps: int,
    alpha: float,
    beta: float,
) -> FeatureInversion:
    import optax

    from jaxplain.solvers import descend

    pixels = images.shape[1] * images.shape[2]
    known = capture(model, images, [layer])[layer]
    noise = _START * jax.random.normal(key, images.shape[1:], images.dtype)

    def missed(phi: jax.Array, kept: jax.Array) -> jax.Array:
        return ((phi - kept) ** 2).sum() / jnp.maximum((kept**2).sum(), jnp.finfo(kept.dtype).tiny)

    def one(kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(found: Tensors, x: jax.Array, step: jax.Array) -> jax.Array:
            size = (jnp.abs(x / magnitude) ** alpha).sum() / pixels
            change = jax.vmap(lambda colour: total_variation(colour, beta), 2)(
                x * (6.5 / magnitude)
            )
            error = missed(found[layer][0], kept)
            return error + norm_weight * size + variation_weight * change.sum() / pixels  # (2)

        found = descend(
            through(model, lambda x, step: x[None], loss, [layer]),
            noise,
            steps=steps,
            optimiser=optax.adam(learning_rate),
            has_gradient=True,
        )
        return found.solution.value, found.history

    made, history = jax.vmap(one)(known)
    error = jax.vmap(missed)(capture(model, made, [layer])[layer], known)
    return FeatureInversion(made, error, history)


def activation_maximisation(
    model: Model,
    targets: Int[Array, " b"],
    *,
    key: Key[Array, ""],
    layer: str | None = None,
    position: Literal["mean", "centre"] = "mean",
    initial: Float[Array, "b h w c"] | None = None,
    steps: int = 200,
    step_size: float | Float[Array, ""] = 0.03,
    jitter: int | None = None,
    blur: tuple[float, float] | None = None,
    score: Score = "logit",
) -> ActivationMaximisation:
    """Return images that excite classes, or channels of a layer, most.

    Args:
        model: any model that names its `input_shape`, if there is no `initial` image.
        targets: (B,) classes; with a layer, its channels.
        key: `jax.random.key`, of the noise to start from and of the moves; all images share them.
        layer: whose channels are excited; None for the classes.
        position: of a layer: its "mean" over all positions, or the one in the "centre".
        initial: (B, H, W, C) images to start from; None for noise about the mean colour.
        steps: how many.
        step_size: mean change of a number of the image by a step, in its units.
        jitter: pixels by which the image moves at most, round its borders; None is 16 of 224, in
            proportion to the image.
        blur: standard deviation in pixels of the blur after the first step and after the last; None
            is 2.5 and 0.5 of 224, in proportion.
        score: of a class, as in `gradient`.

    Returns:
        The images, their activations, and the history. Images stay among those that can be shown if
        the model has a `preprocessing`.

    Raises:
        ValueError: no such layer, class or channel; no size of the image; fewer than one step; a
            jitter not smaller than the image; a negative blur.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model, key = jxp.load_model("digits"), jax.random.key(0)
        >>> found = jxp.activation_maximisation(model, jnp.array([3, 7]), key=key, steps=2)
        >>> found.images.shape, found.activation.shape
        ((2, 28, 28, 1), (2,))
    """
    check_differentiable(model, "activation_maximisation")
    given = jnp.asarray(targets)
    if initial is None:
        if model.input_shape is None:
            raise ValueError(f"initial is needed: model {model.name!r} names no input_shape")
        noise = _START * jax.random.normal(key, model.input_shape)
        initial = jnp.broadcast_to(noise, (given.shape[0], *noise.shape))
    initial = check_images(initial, model)
    side = min(initial.shape[1:3])
    jitter = max(round(16 * side / 224), 1) if jitter is None else jitter
    blur = (2.5 * side / 224, 0.5 * side / 224) if blur is None else blur
    if steps < 1 or not 0 <= jitter < side:
        raise ValueError(
            f"steps={steps}, jitter={jitter}: expected at least 1 step, and 0 to {side - 1} pixels"
        )
    if not all(0 <= sigma < math.inf for sigma in blur):
        raise ValueError(f"blur={blur}: standard deviations are numbers from 0")
    if position not in ("mean", "centre"):
        raise ValueError(f"position={position!r}; expected 'mean' or 'centre'")
    if layer is None:
        targets = check_targets(given, jax.eval_shape(logits, model, initial))
    else:
        targets = _check_channels(model, initial, layer, given)
    return _maximised(
        model, initial, targets, key, step_size, layer=layer, position=position, steps=steps,
        jitter=jitter, blur=blur, score=score,
    )  # fmt: skip


def _check_channels(model: Model, images: jax.Array, layer: str, targets: jax.Array) -> jax.Array:
    """Return the channels, or raise naming the first that the layer lacks."""
    traced = trace_model(model, images)
    channels = jx.shape(traced.program, traced.variable(layer))[-1]
    if targets.ndim != 1 or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets have shape {targets.shape} of {targets.dtype}; expected (b,)")
    missing = [int(t) for t in np.asarray(targets) if not 0 <= t < channels]
    if missing:
        raise ValueError(f"target {missing[0]} is no channel: layer {layer!r} has {channels}")
    return targets


@functools.partial(
    jax.jit, static_argnames=("layer", "position", "steps", "jitter", "blur", "score")
)
def _maximised(
    model: Model,
    initial: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    step_size: Any,
    *,
    layer: str | None,
    position: str,
    steps: int,
    jitter: int,
    blur: tuple[float, float],
    score: Score,
) -> ActivationMaximisation:
    import optax

    from jaxplain.solvers import descend

    measure = score_fn(score, multilabel=model.multilabel)
    name = "logits" if layer is None else layer
    low, high = _shown(model, initial)
    first, last = blur

    def excited(tensor: jax.Array, target: jax.Array) -> jax.Array:
        """Return the activation of one image, of a tensor (1, ..., K)."""
        if layer is None:
            return measure(tensor, target[None])[0]
        channel = jnp.take(tensor[0], target, axis=-1)
        if position == "centre":
            return channel[tuple(n // 2 for n in channel.shape)]
        return channel.mean()

    def blurred(x: jax.Array, count: jax.Array) -> jax.Array:
        sigma = first + (last - first) * count / max(steps - 1, 1)
        down, right = (_blur_matrix(n, sigma) for n in x.shape[:2])
        return jnp.einsum("yh,xw,hwc->yxc", down, right, x, precision="highest").astype(x.dtype)

    def update(slope: Any, count: Any, x: Any = None) -> tuple[Any, Any]:
        length = jnp.abs(slope).mean()
        climbed = x - step_size * slope / jnp.where(length > 0, length, 1)
        return blurred(climbed, count) - x, count + 1

    climb = optax.GradientTransformation(lambda x: jnp.zeros(()), update)  # type: ignore[arg-type]

    def one(start: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        def compose(x: jax.Array, step: jax.Array) -> jax.Array:
            moved = jax.random.randint(jax.random.fold_in(key, step), (2,), -jitter, jitter + 1)
            return jnp.roll(x, moved, (0, 1))[None]

        found = descend(
            through(model, compose, lambda seen, x, step: -excited(seen[name], target), [name]),
            start,
            steps=steps,
            optimiser=climb,
            project=lambda x: jnp.clip(x, low, high),
            has_gradient=True,
        )
        return found.solution.value, -found.history

    made, history = jax.vmap(one)(initial, targets)
    tensors = capture(model, made, [name])[name]
    activation = jax.vmap(lambda tensor, target: excited(tensor[None], target))(tensors, targets)
    return ActivationMaximisation(made, activation, history)


def _blur_matrix(size: int, sigma: jax.Array) -> jax.Array:
    """Return the matrix that blurs a line of pixels, for a sigma that is not known beforehand."""
    away = jnp.arange(size)[:, None] - jnp.arange(size)[None, :]
    weights = jnp.exp(-0.5 * (away / jnp.maximum(sigma, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdims=True)


def _shown(model: Model, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the smallest and largest numbers (1, 1, C) of an image that can be shown."""
    preprocessing = model.preprocessing
    if preprocessing is None:
        limit = jnp.full((1, 1, images.shape[-1]), jnp.inf, images.dtype)
        return -limit, limit
    mean, std = (np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    ends = [(end - mean) / std * preprocessing.scale for end in (0.0, 1.0)]
    if preprocessing.order == "BGR":
        ends = [end[::-1] for end in ends]
    low, high = (jnp.asarray(end, images.dtype)[None, None] for end in ends)
    return low, high
