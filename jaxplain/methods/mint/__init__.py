r"""MINT: which superpixels, coarse and fine, a network's deep and shallow layers answer to.

Cui, Wang and Wang 2019, "Multi-scale Interpretation Model for Convolutional Neural Networks:
Building Trust based on Hierarchical Interpretation". An image is cut twice (1)–(2), see
`superpixels.nested`; fine superpixels are hidden at random, :math:`s^f \in \{0,1\}^q`, so that of
each coarse one a fraction :math:`s^c_i` is shown. With :math:`a^{cs}, a^{fs}` the mean activation
of a deep and of a shallow layer in each superpixel (4), (6), channels summed,

.. math:: z^c = s^c \odot a^{cs} \quad (3) \qquad z^f = s^f \odot a^{fs} \quad (5) \qquad
    h_X(Z) = \exp(-\tfrac{1}{\sigma^2} \|X - Z\|_F^2) \quad (8)

and y the network's probability of the perturbed image Z, the weights of both scales are

.. math:: \min_{w_f, w_c} \tfrac12 \sum_k h_k (w_c z^c_k - y_k)^2 + \lambda_c \|w_c\|_1
    + \tfrac{\mu}{2} \sum_k h_k (w_f z^f_k - y_k)^2 + \lambda_f \|w_f\|_1
    \quad \text{s.t. } w_f T = w_c \quad (17), (21)

(7) with the linear models (9)–(10), the losses (11)–(12), the constraint (13)–(14) and the
sparsity (15)–(16), whose ‖·‖₀ the paper replaces by ‖·‖₁ in (21). `solvers.two_scale` solves it, by
Algorithm 1, which is (18)–(42), or with :math:`w_c` eliminated, which gives the same in few steps.
The explanation is the weights times the activations (43), (44).

Chosen here, where the paper says nothing: σ² is a share of ‖X‖² (`width`), λ_c and λ_f are shares
of the largest correlation of their scale (`coarse_penalty`, `fine_penalty`), μ = 1, and the λ and ρ
of the augmented Lagrangians, which change no solution, are the mean diagonals of the Gram matrices.
T is q × p; the text's m × p is a slip. Importances are those of the split variables, whose zeros
are exact. Where hiding changes no answer, all weights are zero, though (9)–(10), which have no
intercept, would share the constant out. `PAPER` are the options of the paper's experiments.

    found = mint.explain(model, images, targets, key=key)
    found.coarse_importances, found.fine_mask()
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxplain.methods.drawing import (
    Plan,
    Progress,
    Seen,
    Surrogate,
    check_control,
    check_counts,
    draw,
    for_targets,
)
from jaxplain.methods.mint.problem import Penalties, activations, problems, solve
from jaxplain.methods.mint.segments import deep_layer, find_nested, shallow_layer
from jaxplain.methods.scene import Scene, make_scene, paint
from jaxplain.methods.surrogate import Kernel
from jaxplain.model import Model
from jaxplain.scores import Score
from jaxplain.solvers.problems import refuse
from jaxplain.solvers.two_scale import check_method

__all__ = ["PAPER", "Mint", "deep_layer", "explain", "shallow_layer"]

PAPER: Mapping[str, Any] = {
    "num_samples": 5000,
    "antithetic": False,
    "control": False,
    "hide": 0.0,
    "method": "nested",
}
"""The paper's experiments: 5000 independent samples, hidden pixels zero, Algorithm 1."""


class Mint(NamedTuple):
    """An explanation at two scales. With targets (B,) there is no axis T.

    Attributes:
        heatmap: (B, T, H, W) importances as a map, of the scale that was asked for.
        stderr: (B, T, H, W) standard error of `heatmap`, given which weights are zero.
        coarse_weights: (B, T, P) w_c*, zero for labels that do not occur.
        fine_weights: (B, T, Q) w_f*.
        coarse_importances: (B, T, P) ŵ_c* (43).
        fine_importances: (B, T, Q) ŵ_f* (44).
        coarse_stderr: (B, T, P) standard error of the importances.
        fine_stderr: (B, T, Q).
        coarse_segments: (B, T, H, W) labels, each target's own.
        fine_segments: (B, H, W) labels, which all targets share.
        prediction: (B, T) what the network says of the image itself.
        duality_gap: (B, T) bound on the suboptimality of the weights, in units of the mean squared
            error.
        converged: (B, T) whether it is as small as was asked for.
        samples: how many perturbed copies were made of each image.
        broken: (B,) how many of them were answered with NaN or infinity; see `Lime`.
    """

    heatmap: Float[Array, "b *t h w"]
    stderr: Float[Array, "b *t h w"]
    coarse_weights: Float[Array, "b *t p"]
    fine_weights: Float[Array, "b *t q"]
    coarse_importances: Float[Array, "b *t p"]
    fine_importances: Float[Array, "b *t q"]
    coarse_stderr: Float[Array, "b *t p"]
    fine_stderr: Float[Array, "b *t q"]
    coarse_segments: Int[Array, "b *t h w"]
    fine_segments: Int[Array, "b h w"]
    prediction: Float[Array, "b *t"]
    duality_gap: Float[Array, "b *t"]
    converged: Bool[Array, "b *t"]
    samples: Int[Array, ""]
    broken: Int[Array, " b"]

    def at(self, scale: Literal["coarse", "fine"]) -> "Mint":
        """Return the explanation with `heatmap` and `stderr` of a scale.

        Raises:
            ValueError: another scale than "coarse" or "fine".
        """
        _check_scale(scale)
        coarse = scale == "coarse"
        values = self.coarse_importances if coarse else self.fine_importances
        errors = self.coarse_stderr if coarse else self.fine_stderr
        segments = self.coarse_segments if coarse else self.fine_segments
        return self._replace(
            heatmap=_paint_each(values, segments), stderr=_paint_each(errors, segments)
        )

    def coarse_mask(self) -> Bool[Array, "b *t h w"]:
        """Return the coarse superpixel that ranks first, as after (43).

        Nothing where no importance is positive: no coarse region looks like the class (Fig. 8).
        """
        first = self.coarse_importances.max(-1, keepdims=True)
        chosen = (self.coarse_importances == first) & (first > 0)
        return _paint_each(chosen, self.coarse_segments)

    def fine_mask(self, threshold: float | int = 0.1) -> Bool[Array, "b *t h w"]:
        """Return the fine superpixels above a threshold, as after (44).

        Args:
            threshold: share of the largest importance, 0 ≤ threshold < 1. (The paper's is "selected
                empirically".)

        Raises:
            ValueError: a threshold out of range.
        """
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold}; expected 0 ≤ threshold < 1")
        most = jnp.maximum(self.fine_importances.max(-1, keepdims=True), 0)
        return paint(self.fine_importances > threshold * most, self.fine_segments)


def _reads_layers(segments: Any = None, *, features: str = "layers", **_: Any) -> bool:
    return segments is None or features != "none"


@for_targets("fine_segments", "samples", "broken", gradient=_reads_layers)
def explain(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"] | Int[Array, "b t"],
    segments: Any = None,
    *,
    key: Key[Array, ""],
    layer: str | None = None,
    shallow: str | None = None,
    scale: Literal["coarse", "fine"] = "fine",
    num_samples: int = 1000,
    tolerance: float | int | None = None,
    hide: Any = 0.0,
    width: float | int = 0.25,
    coarse_penalty: float | int = 0.01,
    fine_penalty: float | int = 0.01,
    fine_weight: float | int = 1.0,
    coupling: float | int | None = None,
    coarse_rho: float | int | None = None,
    fine_rho: float | int | None = None,
    features: Literal["layers", "normalised", "none"] = "layers",
    method: str = "eliminated",
    antithetic: bool = True,
    control: bool | None = None,
    chunk: int = 32,
    score: Score = "probability",
    progress: Progress | None = None,
) -> Mint:
    """Return MINT's importances of superpixels at two scales.

    Cui, Wang and Wang, eqs. (1)–(44).

    Args:
        model: any model with layers; a black box only with `segments` and features="none".
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes, or (B, T) for several of each image: one set of forward runs serves
            all, with the same fine superpixels and coarse ones of their own.
        segments: None to cut the images by `superpixels.nested`, seeded by the Grad-CAM of each
            target at `layer`; or a pair of labels, coarse (B, H, W) or (B, T, H, W) and fine
            (B, H, W), or (H, W) for all images, fine inside coarse.
        key: `jax.random.key`; the same key gives the same answer, at any `chunk` and for an image
            in any batch.
        layer: the deep layer; None is `deep_layer(model)`.
        shallow: the shallow layer; None is `shallow_layer(model)`.
        scale: of `heatmap`.
        num_samples: perturbed copies of each image. The paper's number is 5000.
        tolerance: draw no more once the standard errors of the importances of `scale`, in units of
            the score, are this small; `num_samples` is then the most that are drawn.
        hide: what hidden superpixels show, as in `lime.explain`; the paper's is zero.
        width: σ² as a share of ‖X‖² (8), where X is counted from what hides it.
        coarse_penalty: λ_c, as a share of the largest |Σ h y zᶜ|.
        fine_penalty: λ_f, as a share of the largest |μ Σ h y zᶠ|.
        fine_weight: μ.
        coupling: λ, for problems divided by Σ h, with features divided by the mean of the fine
            ones; None is the mean diagonal of the coarse Gram matrix.
        coarse_rho: ρ_c, likewise.
        fine_rho: ρ_f, likewise. These three are of the method "nested" alone; the other refuses
            them.
        features: "layers" for (4) and (6); "normalised" divides each scale's by their mean, so that
            (13) ties weights of one unit; "none" is 1 for all.
        method: "eliminated", or "nested" for Algorithm 1 as printed, which takes more steps than
            it is given where the deep layer's features are much larger than the shallow one's.
        antithetic: draw complements in pairs.
        control: use the control variate, as in `lime.explain`, and what is known of the states
            without a forward run; see `problem.expected`.
        chunk: perturbed images a forward run.
        score: as in `gradient`; the paper's is the probability.
        progress: as in `lime.explain`.

    Returns:
        Weights and importances at both scales, with standard errors and a certificate.

    Raises:
        TypeError: segments or counts that are not integers.
        ValueError: as `lime.explain`; segments that are not nested, no such layer, or one without
            positions; a black box without segments.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> image = jnp.zeros((1, 28, 28, 1)).at[0, 6:22, 12:16].set(1)
        >>> options = {"key": jax.random.key(0), "num_samples": 128}
        >>> found = jxp.mint.explain(model, image, jnp.array([1]), **options)
        >>> found.heatmap.shape, found.coarse_mask().shape
        ((1, 28, 28), (1, 28, 28))
    """
    if features not in ("layers", "normalised", "none"):
        raise ValueError(f"features={features!r}; expected 'layers', 'normalised' or 'none'")
    _check_scale(scale)
    refuse(width=(width, None, None), fine_weight=(fine_weight, None, None))
    refuse(coarse_penalty=(coarse_penalty, 0, 1), fine_penalty=(fine_penalty, 0, 1))
    check_method(method, coupling=coupling, coarse_rho=coarse_rho, fine_rho=fine_rho)
    plan = Plan(antithetic, check_control(control, score), max(1, chunk // len(images)), score)
    deep = "" if features == "none" and segments is not None else deep_layer(model, layer)
    nest = find_nested(model, images, targets, segments, deep)
    check_counts(num_samples, chunk, nest.fine)
    scene = make_scene(images, targets, nest.fine, hide, nest.sizes[1])
    if features == "none":
        ones = jnp.ones_like(images[..., 0])
        maps = (ones, ones)
    else:
        maps = _activations(model, images, (deep, shallow_layer(model, shallow)))
    penalties = Penalties(coarse_penalty, fine_penalty, fine_weight, coupling, coarse_rho, fine_rho)
    solving = (method, features == "normalised", scale, nest.sizes)
    return draw(
        model,
        scene,
        (nest.coarse, maps, penalties, chances(scene, width) if plan.control else None),
        Surrogate(proximity, _tell, f"{scale}_stderr", solving),
        plan,
        key=key,
        width=width,
        num_samples=num_samples,
        tolerance=tolerance,
        progress=progress,
    )


_activations = jax.jit(activations, static_argnums=2)


def proximity(scene: Scene, width: Any) -> Kernel:
    """Return h (8) of states; ‖X − Z‖² is a sum over what is hidden."""
    each = _hides(scene)

    def kernel(kept: jax.Array) -> jax.Array:
        return jnp.exp(-jnp.matmul(1 - kept, each.T, precision="highest") / width)

    return kernel


@jax.jit
def chances(scene: Scene, width: Any) -> Float[Array, "b q"]:
    """Return how often each superpixel is shown when states, fair coins, are weighed by h."""
    return jax.nn.sigmoid(_hides(scene) / width)


def _hides(scene: Scene) -> Float[Array, "b q"]:
    """The share of each superpixel in ‖X‖²."""
    hides = ((scene.images - scene.filling) ** 2).sum(-1)

    def sums(values: jax.Array, labels: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values.ravel(), labels.ravel(), scene.valid.shape[1])

    each = jax.vmap(sums)(hides, scene.segments)
    total = each.sum(1)
    return each / jnp.where(total > 0, total, 1)[:, None]


def _tell(
    given: tuple[jax.Array, tuple[jax.Array, jax.Array], Penalties, jax.Array | None],
    seen: Seen,
    method: str,
    normalised: bool,
    scale: str,
    sizes: tuple[int, int],
) -> Mint:
    """Solve for the weights, and their errors."""
    coarse, maps, penalties, shown = given
    scene = seen.scene
    problem = problems(
        scene,
        coarse,
        maps,
        seen.steadied,
        seen.base,
        sizes,
        normalised,
        chances=shown,
        count=seen.samples,
    )
    found = solve(problem, penalties, seen.samples, method)
    constant = seen.constant()[..., None]
    numbers = {
        name: values if values.ndim == 2 else seen.told(jnp.where(constant, 0, values))
        for name, values in found._asdict().items()
    }
    segments = coarse if scale == "coarse" else scene.segments
    return Mint(
        heatmap=_paint_each(numbers[f"{scale}_importances"], segments),
        stderr=_paint_each(numbers[f"{scale}_stderr"], segments),
        coarse_segments=coarse,
        fine_segments=scene.segments,
        prediction=seen.base,
        samples=jnp.asarray(seen.samples, jnp.int32),
        broken=seen.moments.broken,
        **numbers,
    )


def _check_scale(scale: str) -> None:
    if scale not in ("coarse", "fine"):
        raise ValueError(f"scale={scale!r}; expected 'coarse' or 'fine'")


def _paint_each(values: jax.Array, segments: jax.Array) -> jax.Array:
    """(B, T, S) on maps of labels: those of each target (B, T, H, W), or of all (B, H, W)."""
    if segments.ndim == 3:
        return paint(values, segments)
    return jax.vmap(paint)(values, segments)
