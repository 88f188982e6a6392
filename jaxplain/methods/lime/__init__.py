r"""LIME: a linear model of what a network says of an image whose superpixels are hidden at random.

Ribeiro, Singh and Guestrin 2016, "Why Should I Trust You?", arXiv:1602.04938, as their package
`lime` does it for images: with states :math:`s \in \{0,1\}^S` of the superpixels, the network's
score y of the image in which those with 0 are hidden, and
:math:`\pi(s) = \sqrt{\exp(-D(s)^2 / w^2)}`, D the cosine distance of s from all ones,

.. math:: \min_{b, c} \tfrac12 \sum_s \pi(s) (b + c \cdot s - y_s)^2 + \tfrac{\alpha}{2} \|c\|_2^2

(their eq. 1 with a linear model, a squared loss, and the penalty of scikit-learn's ridge). The
weights c are the explanation.

    found = lime.explain(model, images, targets, key=key)
    found.coefficients, found.stderr, found.r2

Nothing else is needed of the network than its answers, so any black box will do
(`Model.from_black_box`). Samples are drawn and hidden on the device and kept as sums only; how many
are needed can be left to the standard error (`tolerance`). See `jaxplain.methods.surrogate` for
what makes it small: by default, samples come in antithetic pairs, and a control variate is used.
`PLAIN` are the options without either, those of the package.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxplain.methods import surrogate
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
from jaxplain.methods.lime.local import (
    FitOptions,
    LocalModel,
    check_options,
    cosine_kernel,
    explained,
    fit,
    from_sums,
    selection,
)
from jaxplain.methods.scene import find_segments, make_scene, paint
from jaxplain.model import Model
from jaxplain.scores import Score

__all__ = ["PLAIN", "Lime", "LocalModel", "Progress", "explain", "fit"]

PLAIN: Mapping[str, Any] = {"antithetic": False, "control": False}
"""Independent samples, as in the package `lime`."""


class Lime(NamedTuple):
    """An explanation. With targets (B,) there is no axis T.

    Attributes:
        heatmap: (B, T, H, W) each superpixel's coefficient; positive speaks for the target.
        stderr: (B, T, H, W) standard error of `heatmap`.
        coefficients: (B, T, S), S ≥ the number of superpixels; zero for labels that do not occur.
        coefficient_stderr: (B, T, S) given which are zero; see `surrogate.stderr`.
        intercept: (B, T).
        r2: (B, T) weighted R² of the linear model; NaN where predictions are constant.
        local_prediction: (B, T) what the linear model says of the image itself.
        prediction: (B, T) what the network says of it.
        segments: (B, H, W) the superpixels.
        samples: how many perturbed copies were made of each image.
        broken: (B,) how many of them were answered with NaN or infinity. Only compiled code ever
            returns a number above zero, and NaN with it; otherwise that is an error.
    """

    heatmap: Float[Array, "b *t h w"]
    stderr: Float[Array, "b *t h w"]
    coefficients: Float[Array, "b *t s"]
    coefficient_stderr: Float[Array, "b *t s"]
    intercept: Float[Array, "b *t"]
    r2: Float[Array, "b *t"]
    local_prediction: Float[Array, "b *t"]
    prediction: Float[Array, "b *t"]
    segments: Int[Array, "b h w"]
    samples: Int[Array, ""]
    broken: Int[Array, " b"]

    def top(self, count: int, *, positive_only: bool = True) -> Bool[Array, "b *t h w"]:
        """Return where the `count` superpixels with the largest coefficients are.

        Args:
            count: superpixels, at least 1.
            positive_only: rank by value and leave out what speaks against the target; otherwise
                rank by size.

        Raises:
            ValueError: a count below 1.
        """
        if count < 1:
            raise ValueError(f"count={count}: at least 1")
        size = self.coefficients if positive_only else jnp.abs(self.coefficients)
        least = jax.lax.top_k(size, min(count, size.shape[-1]))[0][..., -1:]
        return paint((size >= least) & (size > 0), self.segments)


@for_targets("segments", "samples", "broken")
def explain(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"] | Int[Array, "b t"],
    segments: Any = "quickshift",
    *,
    key: Key[Array, ""],
    num_samples: int = 1000,
    tolerance: float | int | None = None,
    hide: Any = "mean",
    kernel_width: float | int = 0.25,
    regression: str = "ridge",
    alpha: float | int = 1.0,
    penalty: float | int = 0.01,
    select: str = "auto",
    count: int | None = None,
    antithetic: bool = True,
    control: bool | None = None,
    chunk: int = 32,
    score: Score = "probability",
    progress: Progress | None = None,
) -> Lime:
    """Return LIME's weights of the superpixels of images.

    Ribeiro, Singh and Guestrin 2016, arXiv:1602.04938.

    Args:
        model: any model, a black box too.
        images: (B, H, W, C) preprocessed floats.
        targets: (B,) classes, or (B, T) for several of each image from one set of forward runs.
        segments: (B, H, W) labels from 0, (H, W) for all images, or "quickshift" (LIME's), "slic"
            or "grid": see `superpixels.segment`.
        key: `jax.random.key`; the same key gives the same answer, at any `chunk` and for an image
            in any batch.
        num_samples: perturbed copies of each image, besides the image itself.
        tolerance: draw no more once the standard errors of all coefficients, in units of the score,
            are this small; `num_samples` is then the most that are drawn.
        hide: what hidden superpixels show: "mean" for their own mean colour, a number, a colour, or
            an image, broadcast to `images`.
        kernel_width: w, in cosine distance.
        regression: "ridge", or "lasso" with the intercept not penalised.
        alpha: α of the ridge.
        penalty: of the lasso, as a share of the smallest penalty that leaves no superpixel.
        select: which superpixels may have weights: "none" is all; "highest_weights" and
            "forward_selection" as in `solvers.ridge`; "auto" is the latter for up to six.
        count: how many of them; with None, "auto" is all. The lasso selects by itself.
        antithetic: draw complements in pairs.
        control: use the control variate; None is wherever `score` is "probability". The standard
            errors and the weights profit, what they tend to stays.
        chunk: perturbed images a forward run.
        score: as in `gradient`.
        progress: called with (samples so far, most, largest standard error) as samples come, when
            there is a `tolerance`.

    Returns:
        Weights, as maps and as numbers, and how much to trust them.

    Raises:
        TypeError: segments or counts that are not integers, and as `check_inputs`.
        ValueError: as `check_inputs` and `superpixels.check_segments`; no image, or one of one
            superpixel, fewer samples than superpixels, predictions that are not finite, a model
            that returns another shape; an option out of range, or a tolerance in compiled code.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> images, targets = jnp.ones((1, 28, 28, 1)), jnp.array([3])
        >>> options = {"key": jax.random.key(0), "num_samples": 64}
        >>> jxp.lime.explain(model, images, targets, "grid", **options).heatmap.shape
        (1, 28, 28)
    """
    labels, size = find_segments(model, images, segments, least=2)
    check_counts(num_samples, chunk, labels)
    check_options(regression, kernel_width, alpha, penalty, count, size)
    plan = Plan(antithetic, check_control(control, score), max(1, chunk // len(images)), score)
    scene = make_scene(images, targets, labels, hide, size)
    kept = None if count is None else min(count, size)
    fitting = (selection(select, kept), regression, kept)
    return draw(
        model,
        scene,
        (alpha, penalty),
        Surrogate(cosine_kernel, _tell, "coefficient_stderr", fitting),
        plan,
        key=key,
        width=kernel_width,
        num_samples=num_samples,
        tolerance=tolerance,
        progress=progress,
    )


def _tell(
    given: tuple[Any, Any], seen: Seen, select: str, regression: str, most: int | None
) -> Lime:
    """Solve for the weights and their errors."""
    alpha, penalty = given
    fitting = FitOptions(alpha, penalty, select, regression, most)
    scene, moments, used, base, count = seen
    gram = surrogate.with_whole(used.gram.sum(1), scene)
    corr, energy = used.corr.sum(1), used.energy.sum(1)

    def fitted(gram: jax.Array, corr: jax.Array, energy: jax.Array, valid: jax.Array) -> jax.Array:
        return from_sums(gram, corr, energy, valid, fitting)

    constant = seen.constant()
    full = jax.vmap(fitted)(gram, corr, energy, scene.valid)
    full = jnp.where(constant[..., None], 0, full)
    r2 = jax.vmap(explained)(gram, moments.corr.sum(1), energy, full)
    r2 = jnp.where(constant, jnp.nan, r2)
    kept = jnp.zeros_like(gram[0]) if regression == "lasso" else _penalty(gram, alpha)
    ridge = gram - used.gram.sum(1) + kept[None]

    def errors(gram: jax.Array, corr: jax.Array, full: jax.Array, ridge: jax.Array) -> jax.Array:
        return surrogate.stderr(gram, corr, full, count, ridge=ridge)

    error = seen.told(jax.vmap(errors)(used.gram, used.corr, full, ridge)[..., 1:])
    coef = full[..., 1:]
    centre = full[..., 0] + base
    half = (coef * scene.valid[:, None]).sum(-1) / 2
    coef = seen.told(coef)
    return Lime(
        heatmap=paint(coef, scene.segments),
        stderr=paint(error, scene.segments),
        coefficients=coef,
        coefficient_stderr=error,
        intercept=seen.told(centre - half),
        r2=seen.told(r2),
        local_prediction=seen.told(centre + half),
        prediction=base,
        segments=scene.segments,
        samples=jnp.asarray(count, jnp.int32),
        broken=moments.broken,
    )


def _penalty(gram: jax.Array, alpha: Any) -> jax.Array:
    return alpha * jnp.diag(jnp.ones(gram.shape[-1], gram.dtype).at[0].set(0))
