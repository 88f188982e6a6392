r"""Guided Feature Inversion: a mask of the network's own features that keeps what it looks at.

Du, Liu, Song and Hu 2018, arXiv:1804.00506. With $f^l(x_a)$ the activation of layer $l$, $p$ a
background, and a mask $m$,

$$\Phi(x_a, m) = x_a \odot m + p \odot (1 - m) \tag{2}$$

shows what the mask keeps and $\Phi_{bg}$ (4), with $1 - m$ for $m$, what it hides. The mask is a
non-negative sum of the channels of a layer $l_1$, brought to [0, 1] and to the image's size:

$$m = \sum_i \omega_i f_i^{l_1}(x_a) \tag{6} \qquad
m \leftarrow \frac{m - \min m}{\max m - \min m} \tag{7}$$

Stage one (Algorithm 1) looks for weights that keep what layer $l_0$ sees, whatever the class, and
stage two (Algorithm 2) goes on from there to those that keep the class and hide it behind $1 - m$:

$$L_{inversion} = \|f^{l_0}(\Phi) - f^{l_0}(x_a)\|^2 + \gamma \|\omega\|_1 \tag{8}$$
$$L_{target} = -f_c(\Phi) + \lambda f_c(\Phi_{bg}) + \delta \|\omega\|_1 \tag{9}$$

Both descend by Adam, each with a fresh state; the second halves its rate every ten steps; after
every step $\omega$ is clipped to what is not negative. The area terms of (3) and (5) have no place
in (8) and (9).

Where the paper leaves something open:

- $f_c$ is a probability in its text and in its authors' program; `score` has others.
- The algorithms count steps from 0 to `max_iter`, both included; the text says 10 and 70 steps,
  and so do we.
- What is returned is the normalised mask; the algorithms' last lines leave (7) out.
- The mask does not change when all of $\omega$ is scaled, so the norm in (8) and (9) only draws
  $\omega$ to zero, where (7) is 0 / 0. A step that would leave every weight below 1e-3 is not
  taken. A mask without any contrast is zero everywhere.
- `regulariser="squared"` is the authors' program's: $\|\omega\|_2^2$, whose pull ends as $\omega$
  falls, so that the other terms have a say. `order="upsample_first"` is its order of (7) and the
  resizing; `relative` its $\|f^{l_0}(x_a)\|^2$ below the first term of (8).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxplain.methods.descent import Tensors, gaussian_blur, through, undefined
from jaxplain.methods.method import explainer, no_positions, resize_maps
from jaxplain.model import Model
from jaxplain.scores import Score, score_fn
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.layers import INPUT, capture, trace_model

Background = Literal["blur", "grey", "noise"]
Order = Literal["normalise_first", "upsample_first"]
Regulariser = Literal["l1", "squared"]

_START = 0.1
_LEAST = 1e-3
# Base layers of section 4.1.4 that are not the `default_layer` of the network.
_BASES = {
    "alexnet": "pool5",
    "vgg_f": "pool5",
    "resnet18": "layer4.1.conv1",
    "resnet34": "layer4.2.conv1",
    "resnet50": "layer4.2.conv2",
    "resnet101": "layer4.2.conv2",
    "resnet152": "layer4.2.conv2",
}


class GuidedFeatureInversion(NamedTuple):
    """A mask, and the way to it.

    Attributes:
        heatmap: (B, H, W) the mask of the class, in 0..1.
        weights: (B, K) its ω, not negative.
        inversion: (B, H, W) the mask after stage one: what the network keeps of the image,
            whatever the class.
        inversion_weights: (B, K) its ω.
        inversion_history: (B, inversion_steps) the loss (8) before every step.
        history: (B, steps) the loss (9) before every step.
    """

    heatmap: Float[Array, "b h w"]
    weights: Float[Array, "b k"]
    inversion: Float[Array, "b h w"]
    inversion_weights: Float[Array, "b k"]
    inversion_history: Float[Array, "b s"]
    history: Float[Array, "b t"]


def inversion_layers(
    model: Model, images: Any, *, layer: str | None = None, inversion_layer: str | None = None
) -> tuple[str, str]:
    """Return the base layer $l_1$ and the inversion layer $l_0$ of a network.

    The paper's, where it names them: VGG (the last convolution, pool5), AlexNet (pool5 twice),
    ResNet (the last convolution but one, layer4). Of other networks, the `default_layer`, and the
    last layer that has several positions.

    Args:
        model: any model.
        images: (B, H, W, C) images, or their shape and dtype.
        layer: the base layer, if it is to be another.
        inversion_layer: the inversion layer, if it is to be another.

    Returns:
        (layer, inversion_layer).

    Raises:
        ValueError: no such layer, or one without positions, or no layer that would do.

    Example:
        >>> import jaxplain as jxp
        >>> inversion_layers(jxp.load_model("digits"), jnp.ones((1, 28, 28, 1)))
        ('conv2', 'pool2')
    """
    traced = trace_model(model, images)
    shapes = {name: jx.shape(traced.program, v) for name, v in traced.names.items()}
    spread = [n for n, s in shapes.items() if n != INPUT and len(s) == 4 and s[1] * s[2] > 1]
    if inversion_layer is None:
        if not spread:
            raise ValueError(
                f"inversion_layer is needed: model {model.name!r} has no layer with positions"
            )
        # VGG's "avgpool" is pool5 again.
        inversion_layer = "pool5" if "pool5" in spread else spread[-1]
    if layer is None:
        layer = _BASES.get(model.name, model.default_layer)
        layer = layer if layer in spread else inversion_layer
    for name in (layer, inversion_layer):
        shape = jx.shape(traced.program, traced.variable(name))
        if len(shape) != 4:
            raise ValueError(no_positions(name, shape))
    return layer, inversion_layer


def _normalised(m: jax.Array) -> jax.Array:
    """Return (7); zero where the mask has no contrast."""
    low, high = m.min(), m.max()
    contrast = high - low > 8 * jnp.finfo(m.dtype).eps * jnp.abs(m).max()
    return jnp.where(contrast, (m - low) / jnp.where(contrast, high - low, 1), 0)


def _mask(omega: jax.Array, base: jax.Array, size: tuple[int, int], order: Order) -> jax.Array:
    """Return the mask (H, W) of weights (K,) of the channels of `base` (h, w, K)."""
    m = jnp.einsum("hwk,k->hw", base, omega, precision="highest")  # (6)
    if order == "upsample_first":
        return _normalised(resize_maps(m[None], size)[0])
    return resize_maps(_normalised(m)[None], size)[0]


def _background(
    images: jax.Array, kind: Background, blur: float | None, key: jax.Array | None
) -> jax.Array:
    """Return $p$."""
    if kind == "blur":
        return gaussian_blur(images, 11 * min(images.shape[1:3]) / 224 if blur is None else blur)
    if kind == "grey":
        return jnp.zeros_like(images)
    if kind != "noise":
        raise ValueError(f"background={kind!r}; expected 'blur', 'grey' or 'noise'")
    if key is None:
        raise ValueError("background='noise' is random: key is needed, such as jax.random.key(0)")
    noise = jax.random.normal(key, images.shape[1:], images.dtype)
    return jnp.broadcast_to(noise[None], images.shape)


@explainer(
    "layer",
    "inversion_layer",
    "background",
    "blur",
    "inversion_steps",
    "steps",
    "halve_every",
    "order",
    "regulariser",
    "relative",
    "score",
)
def guided_feature_inversion(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    *,
    layer: str | None = None,
    inversion_layer: str | None = None,
    background: Background = "blur",
    blur: float | None = None,
    inversion_steps: int = 10,
    steps: int = 70,
    learning_rate: float | Float[Array, ""] = 1e-2,
    halve_every: int = 10,
    inversion_weight: float | Float[Array, ""] = 10.0,
    target_weight: float | Float[Array, ""] = 1.0,
    suppression: float | Float[Array, ""] = 1.0,
    regulariser: Regulariser = "l1",
    order: Order = "normalise_first",
    relative: bool = False,
    score: Score = "probability",
    key: Key[Array, ""] | None = None,
) -> GuidedFeatureInversion:
    """Return the masks that Guided Feature Inversion finds for each target.

    Du et al. 2018, arXiv:1804.00506, Algorithms 1 and 2.

    Stage one does not depend on the targets: under `jax.vmap` over several targets of the same
    images, it runs once.

    Args:
        model: any model with layers.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes.
        layer: l₁, whose channels make up the mask; None is the paper's, or the network's own: see
            `inversion_layers`.
        inversion_layer: l₀, whose activation is to be kept; None likewise.
        background: "blur", "grey" (zero, the mean colour) or "noise" (standard normal).
        blur: standard deviation of the blur in pixels; None is the paper's 11 of 224 pixels, in
            proportion to the image.
        inversion_steps: steps of stage one.
        steps: steps of stage two.
        learning_rate: η of Adam.
        halve_every: steps of stage two after which η is halved.
        inversion_weight: γ in (8).
        target_weight: δ in (9); the paper takes 10 for multi-label networks.
        suppression: λ in (9).
        regulariser: of ω: "l1" is the paper's, "squared" the authors' program's.
        order: "normalise_first", the paper's, or "upsample_first", the authors' program's.
        relative: divide the first term of (8) by the square of the activation's norm.
        score: f_c, as in `gradient`.
        key: for a background of noise.

    Returns:
        The masks and their weights after each stage, and both histories.

    Raises:
        ValueError: no such layer, or one without positions; fewer than one step; an unknown
            background, order or regulariser; noise without a key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.eye(28).reshape(1, 28, 28, 1), jnp.array([3])
        >>> found = jxp.guided_feature_inversion(model, images, targets, steps=2)
        >>> found.heatmap.shape, found.weights.shape, found.history.shape
        ((1, 28, 28), (1, 50), (1, 2))
    """
    import optax

    from jaxplain.solvers import descend

    if inversion_steps < 1 or steps < 1 or halve_every < 1:
        raise ValueError(
            f"inversion_steps={inversion_steps}, steps={steps}, halve_every={halve_every}: "
            "at least 1"
        )
    if order not in ("normalise_first", "upsample_first"):
        raise ValueError(f"order={order!r}; expected 'normalise_first' or 'upsample_first'")
    if regulariser not in ("l1", "squared"):
        raise ValueError(f"regulariser={regulariser!r}; expected 'l1' or 'squared'")
    layer, inversion_layer = inversion_layers(
        model, images, layer=layer, inversion_layer=inversion_layer
    )
    measure = score_fn(score, multilabel=model.multilabel)
    size = (int(images.shape[1]), int(images.shape[2]))
    # What needs no gradient is computed once.
    backgrounds = _background(images, background, blur, key)
    known = capture(model, images, {layer, inversion_layer})

    def norm(omega: jax.Array) -> jax.Array:
        return jnp.abs(omega).sum() if regulariser == "l1" else (omega**2).sum()

    def optimiser(rate: Any) -> optax.GradientTransformation:
        # The root of the squares has no derivative at zero; this much under it gives it one.
        adam = optax.adam(rate, eps_root=1e-16)

        def update(slope: Any, memory: Any, omega: Any = None) -> tuple[Any, Any]:
            change: Any
            change, memory = adam.update(slope, memory, omega)
            return jnp.where((omega + change).max() < _LEAST, 0, change), memory

        return optax.GradientTransformation(adam.init, update)  # type: ignore[arg-type]

    def one(
        x_a: jax.Array, p: jax.Array, base: jax.Array, kept: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Run both stages on one image."""

        def phi(m: jax.Array) -> jax.Array:
            return x_a * m[..., None] + p * (1 - m[..., None])  # (2)

        def inside(omega: jax.Array, step: jax.Array) -> jax.Array:
            return phi(_mask(omega, base, size, order))[None]

        def both(omega: jax.Array, step: jax.Array) -> jax.Array:
            m = _mask(omega, base, size, order)
            return jnp.stack([phi(m), phi(1 - m)])  # (2), (4)

        scale = jnp.maximum((kept**2).sum(), jnp.finfo(kept.dtype).tiny) if relative else 1.0

        def inversion_loss(found: Tensors, omega: jax.Array, step: jax.Array) -> jax.Array:
            error = ((found[inversion_layer][0] - kept) ** 2).sum() / scale
            return error + inversion_weight * norm(omega)  # (8)

        def target_loss(found: Tensors, omega: jax.Array, step: jax.Array) -> jax.Array:
            f_c = measure(found["logits"], jnp.stack([target, target]))
            return -f_c[0] + suppression * f_c[1] + target_weight * norm(omega)  # (9)

        def clip(omega: jax.Array) -> jax.Array:
            return jnp.maximum(omega, 0)

        # Algorithm 1.
        first = descend(
            through(model, inside, inversion_loss, [inversion_layer]),
            jnp.full(base.shape[-1], _START, base.dtype),
            steps=inversion_steps,
            optimiser=optimiser(learning_rate),
            project=clip,
            has_gradient=True,
        )
        # Algorithm 2.
        rate = optax.exponential_decay(learning_rate, halve_every, 0.5, staircase=True)
        second = descend(
            through(model, both, target_loss, ["logits"]),
            first.solution.value,
            steps=steps,
            optimiser=optimiser(rate),
            project=clip,
            has_gradient=True,
        )
        kept_weights, weights = first.solution.value, second.solution.value
        return (
            _mask(weights, base, size, order),
            weights,
            _mask(kept_weights, base, size, order),
            kept_weights,
            first.history,
            second.history,
        )

    found = jax.vmap(one)(images, backgrounds, known[layer], known[inversion_layer], targets)
    heatmap, *others = found
    return GuidedFeatureInversion(heatmap + undefined(found[-1])[:, None, None], *others)
