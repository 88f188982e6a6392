"""MINT's optimisation problem from sums over samples, and its solution with standard errors.

All that the problem needs are sums over states s of the fine superpixels: zᶠ = a ⊙ s is linear in
them, and so is zᶜ, as the share of a coarse superpixel that is shown is the mean of its fine ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxplain.methods import surrogate
from jaxplain.methods.method import no_positions, resize_maps
from jaxplain.methods.scene import Scene, areas
from jaxplain.methods.surrogate import Moments
from jaxplain.model import Model
from jaxplain.solvers import two_scale
from jaxplain.trace.layers import capture


class Penalties(NamedTuple):
    """The paper's constants; see `mint.explain`."""

    coarse: Any
    fine: Any
    fine_weight: Any
    coupling: Any
    coarse_rho: Any
    fine_rho: Any


class Problem(NamedTuple):
    """Sums over samples, divided by the sum of their weights, for B images and T targets.

    Features are divided by the mean of the fine ones (`unit`), which divides nothing else: weights
    times features stay what they are.

    Attributes:
        gram: (B, G, Q, Q) Σ h s sᵀ in G groups of samples.
        corr: (B, G, T, Q) Σ h y s.
        energy: (B, T) Σ h y².
        membership: (B, T, Q, P) T, eq. (14).
        coarse: (B, T, P) features a^cs, eq. (4).
        fine: (B, Q) features a^fs, eq. (6).
        unit: (B,).
        fitted: (B,) how many numbers were found from the samples for each target to begin with.
    """

    gram: Float[Array, "b g q q"]
    corr: Float[Array, "b g t q"]
    energy: Float[Array, "b t"]
    membership: Float[Array, "b t q p"]
    coarse: Float[Array, "b t p"]
    fine: Float[Array, "b q"]
    unit: Float[Array, " b"]
    fitted: Int[Array, " b"]


class Weights(NamedTuple):
    """The solution; see `mint.Mint`."""

    coarse_weights: Float[Array, "b t p"]
    fine_weights: Float[Array, "b t q"]
    coarse_importances: Float[Array, "b t p"]
    fine_importances: Float[Array, "b t q"]
    coarse_stderr: Float[Array, "b t p"]
    fine_stderr: Float[Array, "b t q"]
    duality_gap: Float[Array, "b t"]
    converged: Bool[Array, "b t"]


def activations(
    model: Model, images: Float[Array, "b h w c"], layers: tuple[str, str]
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"]]:
    """Return the activations of two layers, summed over channels, at the size of the images.

    Raises:
        ValueError: no such layer, or one without positions.
    """
    tensors = capture(model, images, layers)
    for name in layers:
        if tensors[name].ndim != 4:
            raise ValueError(no_positions(name, tensors[name].shape))
    size = images.shape[1:3]
    deep, shallow = (resize_maps(tensors[n].sum(-1), size) for n in layers)
    return deep, shallow


def problems(
    scene: Scene,
    coarse: Int[Array, "b t h w"],
    maps: tuple[Float[Array, "b h w"], Float[Array, "b h w"]],
    moments: Moments,
    base: Float[Array, "b t"],
    sizes: tuple[int, int],
    normalised: bool,
    *,
    chances: Float[Array, "b q"] | None = None,
    count: int | Int[Array, ""] = 0,
) -> Problem:
    """Return the problems of images and targets.

    Args:
        scene: with the fine superpixels.
        coarse: labels of each target.
        maps: of the deep and the shallow layer.
        moments: of the samples.
        base: from which the moments count y.
        sizes: P and Q.
        normalised: whether to divide the features of each scale by their mean.
        chances: see `expected`; None leaves the moments as they are.
        count: samples.
    """
    p, q = sizes
    fitted = jnp.zeros(len(base), jnp.int32)
    if chances is not None:
        moments, fitted = expected(moments, scene.valid, chances, count)
    targets = coarse.shape[1]
    deep, shallow = maps
    each = coarse.reshape(-1, *coarse.shape[2:])
    a_coarse = _means(jnp.repeat(deep, targets, 0), each, p).reshape(-1, targets, p)  # (4)
    a_fine = _means(shallow, scene.segments, q)  # (6)
    if normalised:
        there = (areas(each, p, deep.dtype) > 0).astype(deep.dtype).reshape(a_coarse.shape)
        a_coarse = a_coarse / _unit(a_coarse, there)[..., None]
        a_fine = a_fine / _unit(a_fine, scene.valid)[..., None]
    unit = _unit(a_fine, scene.valid)

    def belongs(fine: jax.Array, coarse: jax.Array) -> jax.Array:
        home = jax.ops.segment_max(coarse.ravel(), fine.ravel(), q)
        return (home[:, None] == jnp.arange(p)[None]).astype(deep.dtype)

    membership = jax.vmap(jax.vmap(belongs, (None, 0)))(scene.segments, coarse)  # (14)
    weight = moments.gram[:, :, 0, 0].sum(1)
    weight = jnp.where(weight > 0, weight, 1)
    # s = ½ + (s − ½), from sums over f = (1, s − ½).
    half = scene.valid[:, None] / 2
    first, rest = moments.gram[..., 0, 1:], moments.gram[..., 1:, 1:]
    whole = moments.gram[..., 0, 0][..., None, None]
    gram = (
        rest
        + half[..., None] * first[..., None, :]
        + first[..., None] * half[..., None, :]
        + whole * half[..., None] * half[..., None, :]
    )
    plain = moments.corr + base[:, None, :, None] * moments.gram[:, :, None, 0]
    corr = plain[..., 1:] + plain[..., :1] * half[:, :, None]
    shift = moments.corr.sum(1)[..., 0]
    energy = moments.energy.sum(1) + 2 * base * shift + base**2 * weight[:, None]
    return Problem(
        gram / weight[:, None, None, None],
        corr / weight[:, None, None, None],
        energy / weight[:, None],
        membership,
        a_coarse / unit[:, None, None],
        a_fine / unit[:, None],
        unit,
        fitted,
    )


def expected(
    moments: Moments,
    valid: Float[Array, "b q"],
    chances: Float[Array, "b q"],
    count: int | Int[Array, ""],
) -> tuple[Moments, Int[Array, " b"]]:
    r"""Return moments without the noise of the states, which is known without a forward run.

    (9)–(10) have no intercept, so that they leave much of y's *linear* part to the residuals, and
    the states that happen to be drawn make most of the error. But h (8) is a product over
    superpixels: weighed by it, states are independent coins still, that show superpixel i with a
    chance :math:`p_i`. That gives :math:`E[h f f^T]` exactly. And as the residual of a regression
    on f is uncorrelated with f, :math:`E[h y f] = E[h f f^T] \gamma` for its coefficients
    :math:`\gamma`, whose error is of the *other* part of y alone.

    Images with fewer than four samples for each of these coefficients keep their moments.

    Args:
        moments: of the samples.
        valid: see `Scene`.
        chances: p.
        count: samples.

    Returns:
        Moments, and how many coefficients were found from the samples; zero for moments that stay.
    """
    weight = moments.gram[:, :, 0, 0].sum(1)
    centred = (chances - 0.5) * valid
    f = jnp.concatenate([jnp.ones_like(centred[:, :1]), centred], 1)
    spread = chances * (1 - chances) * valid
    known = f[:, :, None] * f[:, None] + jax.vmap(jnp.diag)(jnp.pad(spread, ((0, 0), (1, 0))))
    known = weight[:, None, None] * known

    def one(gram: jax.Array, corr: jax.Array, energy: jax.Array, known: jax.Array) -> tuple:
        groups = len(gram)
        gamma = surrogate.least_squares(gram.sum(0), corr.sum(0))
        moved = surrogate.influences(gram, corr, gamma, ridge=jnp.zeros_like(known))
        moved = moved / jnp.sqrt(groups / (groups - 1))
        each = jnp.matmul(gamma[None] / groups + moved, known, precision="highest")
        left = energy.sum(0) - (gamma * corr.sum(0)).sum(1)
        fitted = (gamma * jnp.matmul(gamma, known, precision="highest")).sum(1)
        total = jnp.maximum(left, 0) + fitted
        return (
            jnp.broadcast_to(known / groups, gram.shape),
            each,
            jnp.broadcast_to(total / groups, energy.shape),
        )

    gram, corr, energy = jax.vmap(one)(moments.gram, moments.corr, moments.energy, known)
    number = 1 + valid.sum(1).astype(jnp.int32)
    enough = count >= 4 * number

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(enough.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    found = moments._replace(
        gram=choose(gram, moments.gram),
        corr=choose(corr, moments.corr),
        energy=choose(energy, moments.energy),
    )
    return found, jnp.where(enough, number, 0)


def _means(values: jax.Array, segments: jax.Array, size: int) -> jax.Array:
    """The mean of a map in each superpixel: (B, size)."""

    def one(values: jax.Array, labels: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values.ravel(), labels.ravel(), size)

    pixels = areas(segments, size, values.dtype)
    return jax.vmap(one)(values, segments) / jnp.maximum(pixels, 1)


def _unit(features: jax.Array, there: jax.Array) -> jax.Array:
    """The mean size of features that are there; 1 if that is zero."""
    size = (jnp.abs(features) * there).sum(-1) / jnp.maximum(there.sum(-1), 1)
    return jnp.where(size > 0, size, 1)


def solve(problem: Problem, penalties: Penalties, count: Any, method: str) -> Weights:
    """Return the weights (21), importances (43), (44) and their standard errors.

    Args:
        problem: of B images and T targets.
        penalties: see there.
        count: samples.
        method: of `two_scale`.
    """

    def rho(given: Any, gram: jax.Array) -> Any:
        return _default(given, gram) if method == "nested" else given

    def one(
        gram: jax.Array,
        corr: jax.Array,
        energy: jax.Array,
        t: jax.Array,
        a_c: jax.Array,
        a_f: jax.Array,
        unit: jax.Array,
        fitted: jax.Array,
    ) -> Weights:
        share = t / jnp.maximum(t.sum(0), 1)[None]  # sᶜ = s · share
        total, right = gram.sum(0), corr.sum(0)
        q_f, q_c = right * a_f, jnp.matmul(right, share, precision="highest") * a_c
        gram_f = total * a_f[:, None] * a_f[None]
        gram_c = _sandwich(total, share) * a_c[:, None] * a_c[None]
        mu = penalties.fine_weight
        found = two_scale(
            gram_c,
            q_c,
            gram_f,
            q_f,
            t,
            coarse_penalty=penalties.coarse * jnp.abs(q_c).max(),
            fine_penalty=penalties.fine * mu * jnp.abs(q_f).max(),
            fine_weight=mu,
            coupling=rho(penalties.coupling, gram_c),
            coarse_rho=rho(penalties.coarse_rho, gram_c),
            fine_rho=rho(penalties.fine_rho, gram_f),
            energy=energy,
            method=method,
        )
        w_c, w_f = found.value.coarse, found.value.fine

        def joint(gram: jax.Array, corr: jax.Array) -> tuple[jax.Array, jax.Array]:
            """A group's part of the problem in w_f alone."""
            scaled = share * a_c[None]
            # T D M: from a weight of a fine superpixel to the coarse model's features of states.
            up = jnp.matmul(t, scaled.T, precision="highest")
            both = _sandwich(gram, up.T) + mu * gram * a_f[:, None] * a_f[None]
            return both, jnp.matmul(up, corr, precision="highest") + mu * a_f * corr

        grams, corrs = jax.vmap(joint)(gram, corr)
        moved = surrogate.influences(grams, corrs[:, None], w_f[None])[:, 0]
        used = jnp.maximum((w_f != 0).sum(), fitted)
        spread = jnp.where(count > used, count / jnp.maximum(count - used, 1), jnp.inf)[None]

        def error(moved: jax.Array, a: jax.Array) -> jax.Array:
            return surrogate.root(moved * a[None], spread, count)

        up = jnp.where(w_c != 0, jnp.matmul(moved, t, precision="highest"), 0)
        return Weights(
            w_c / unit,
            w_f / unit,
            w_c * a_c,  # (43)
            w_f * a_f,  # (44)
            error(up, a_c),
            error(moved, a_f),
            found.gap,
            found.converged,
        )

    def each_target(
        gram: jax.Array,
        corr: jax.Array,
        energy: jax.Array,
        t: jax.Array,
        a_c: jax.Array,
        a_f: jax.Array,
        unit: jax.Array,
        fitted: jax.Array,
    ) -> Weights:
        over = jax.vmap(one, (None, 1, 0, 0, 0, None, None, None))
        return over(gram, corr, energy, t, a_c, a_f, unit, fitted)

    return jax.vmap(each_target)(*problem)


def _sandwich(gram: jax.Array, right: jax.Array) -> jax.Array:
    left = jnp.matmul(right.T, gram, precision="highest")
    return jnp.matmul(left, right, precision="highest")


def _default(given: Any, gram: jax.Array) -> Any:
    """The mean diagonal over superpixels that there are."""
    if given is not None:
        return jnp.asarray(given, gram.dtype)
    diagonal = jnp.diagonal(gram)
    there = (diagonal > 0).sum()
    return jnp.where(there > 0, diagonal.sum() / jnp.maximum(there, 1), 1)
