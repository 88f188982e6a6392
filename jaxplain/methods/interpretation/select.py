r"""From the statistics of descriptors to the features of every class: one μ-Lasso a class.

.. math:: W^* = \arg\min_W \|X^T W - L^T\|_F^2 \quad\text{subject to } \|w_j\|_1 \le \mu \quad (1)

Divided by 2 N this is :math:`\tfrac12 w^T Q w - q \cdot w` with :math:`Q = X X^T / N` and
:math:`q = X l_j / N`, which `solvers.mu_lasso` solves for all classes with one Q, in float64 on the
CPU, and proves by its gap.

The numbers of each layer sum to 1. So the sum of one layer's columns equals that of any other's:
with P layers there are P − 1 exact dependences, and eq. (1) may have many solutions. The one of
least norm is taken, by adding a tiny multiple of the identity to Q: it does not depend on a start,
on an order of features or on the solver. The gap that is told is that of the problem without it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxplain.methods.interpretation.features import RelevantFeatures, Settings
from jaxplain.methods.interpretation.gather import FeatureStatistics
from jaxplain.names import unknown
from jaxplain.solvers import mu_lasso

POOLS = ("all", "convolution")

RIDGE = 1e-8
"""What is added to the diagonal of Q, as a share of its mean."""


def select(
    statistics: FeatureStatistics,
    *,
    mu: float = 10.0,
    labels: str | None = None,
    pool: str = "all",
    nonnegative: bool = False,
    tolerance: float = 1e-10,
    max_steps: int = 20_000,
) -> RelevantFeatures:
    """Select the features that tell each class apart.

    Oramas et al. 2019, §3.1, eq. (1). The paper takes μ = 10; its authors' code takes 5 for the
    flowers.

    Args:
        statistics: what `gather` returned.
        mu: μ, the largest L1 norm of a class's weights; the larger, the more features.
        labels: "true", or "predicted" for the network's own answers; None for the true ones if
            there are any.
        pool: which layers may have features: "all", or "convolution" for the paper's OnlyConv.
        nonnegative: allow no feature whose weak response speaks for a class.
        tolerance: of the solver.
        max_steps: of the solver, for each class.

    Returns:
        Features. A class without images has none, and is not `fitted`.

    Raises:
        ValueError: μ is not above 0, an unknown name, true labels where there are none, or no layer
            of the pool.

    Example:
        >>> from jaxplain.data.digits import digits
        >>> from jaxplain.methods.interpretation import gather
        >>> from jaxplain.models import load_model
        >>> part = digits("train")
        >>> batch = {"image": part.images[:64], "label": part.labels[:64]}
        >>> found = select(gather(load_model("digits"), [batch], ["conv2"]), mu=5.0)
        >>> found.weights.shape, bool((jnp.abs(found.weights).sum(1) < 5.001).all())
        ((10, 50), True)
    """
    if not 0 < mu < float("inf"):
        raise ValueError(f"mu is {mu}; expected above 0, where no feature can have a weight")
    if pool not in POOLS:
        raise ValueError(unknown("pool", pool, POOLS))
    labels = labels or ("true" if statistics.labelled else "predicted")
    pulled, images = statistics.of(labels)
    chosen = _members(statistics, pool)
    count = statistics.count
    whole = len(chosen) == len(statistics.gram)
    gram = statistics.gram if whole else statistics.gram[np.ix_(chosen, chosen)]
    corr = (pulled if whole else pulled[:, chosen]) / count
    diagonal = np.diagonal(gram)
    silent = int((diagonal <= 0).sum())
    rank = _rank(gram)
    # Zero only where all is silent; then no weight is anything but zero.
    ridge = RIDGE * float(diagonal.mean()) / count or 1.0
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = mu_lasso(
            _quadratic(jax.device_put(gram), count, ridge),
            jax.device_put(corr),
            float(mu),
            nonnegative=nonnegative,
            tolerance=tolerance,
            max_steps=max_steps,
        )
        weights, converged = np.array(found.value), np.asarray(found.converged)
        del found
    # A class without images is at its optimum, zero, whatever rounding made of it.
    weights[images == 0] = 0
    slope = weights @ gram
    slope /= count
    slope -= corr
    energy = images / count
    gap, kkt = certificate(weights, slope, corr, energy, mu, nonnegative=nonnegative)
    every = np.zeros((len(weights), len(statistics.gram)), np.float32)
    every[:, chosen] = weights
    settings = Settings(
        model=statistics.model,
        fingerprint=statistics.fingerprint,
        count=count,
        mu=float(mu),
        labels=labels,
        pool=pool,
        squared=statistics.squared,
        nonnegative=nonnegative,
        features=len(chosen),
        silent=silent,
        rank=rank,
        sums=_layers(statistics, chosen) - 1,
    )
    return RelevantFeatures(
        jnp.asarray(every),
        jnp.asarray(gap, jnp.float32),
        jnp.asarray(kkt, jnp.float32),
        jnp.asarray(converged),
        jnp.asarray(images, jnp.int32),
        statistics.blocks,
        settings,
    )


@jax.jit(donate_argnames="gram")
def _quadratic(gram: jax.Array, count: jax.Array, ridge: jax.Array) -> jax.Array:
    """Return Q with the ridge, where the copy of the statistics lies."""
    places = jnp.arange(len(gram))
    return (gram / count).at[places, places].add(ridge)


def certificate(
    weights: Float[np.ndarray, "classes m"],
    slope: Float[np.ndarray, "classes m"],
    corr: Float[np.ndarray, "classes m"],
    energy: Float[np.ndarray, " classes"],
    mu: float,
    *,
    nonnegative: bool = False,
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
    """Return how good weights are, in float64: (gap, kkt).

    The gap g·w + μ ‖g‖∞, with the slope g = Q w − q, bounds what the objective
    ½ wᵀQw − q·w + ½ E has above its minimum; it is told as a share of the objective. Optimal are
    weights whose slope is −λ sign(w) on the support and at most λ in size elsewhere, with λ = 0
    unless ‖w‖₁ = μ; kkt is by how much this is violated, over ‖q‖∞.

    Example:
        >>> q = np.array([[2.0, 0.5]])
        >>> best, worse = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
        >>> [float(certificate(w, w - q, q, np.full(1, 5.0), 1.0)[0][0]) for w in (best, worse)]
        [0.0, 1.0]
    """
    steepest = np.maximum(-slope, 0).max(1) if nonnegative else np.abs(slope).max(1)
    above = (slope * weights).sum(1) + mu * steepest
    # ½ wᵀQw − q·w + ½ E = ½ (g − q)·w + ½ E
    objective = ((slope - corr) * weights).sum(1) / 2 + energy / 2
    gap = above / np.where(objective > 0, objective, 1)
    size = np.abs(weights).sum(1)
    level = np.where(size >= mu * (1 - 1e-9), steepest, 0)[:, None]
    on_support = np.abs(slope + level * np.sign(weights))
    outside = np.maximum((-slope if nonnegative else np.abs(slope)) - level, 0)
    violated = np.where(weights != 0, on_support, outside).max(1)
    scale = np.abs(corr).max(1)
    return gap, violated / np.where(scale > 0, scale, 1)


def _members(statistics: FeatureStatistics, pool: str) -> np.ndarray:
    """Return the features of a pool of layers."""
    parts, start = [], 0
    for _, kind, channels in statistics.blocks:
        if pool in ("all", kind):
            parts.append(np.arange(start, start + channels))
        start += channels
    if not parts:
        raise ValueError(f"no layer is a {pool}; layers: {_listed(statistics)}")
    return np.concatenate(parts)


def _layers(statistics: FeatureStatistics, chosen: np.ndarray) -> int:
    """Return how many layers of some features are not silent in all images."""
    diagonal = np.diagonal(statistics.gram)
    ends = np.cumsum([block.channels for block in statistics.blocks])
    alive = chosen[diagonal[chosen] > 0]
    return max(1, len(np.unique(np.searchsorted(ends, alive, side="right"))))


def _rank(gram: Float[np.ndarray, "m m"]) -> int:
    """Return the rank, as far as the sums' own rounding lets it be told."""
    values = np.linalg.eigvalsh(gram)
    return int((values > len(gram) * np.finfo(np.float32).eps * values[-1]).sum())


def _listed(statistics: FeatureStatistics) -> str:
    return ", ".join(f"{block.layer} ({block.kind})" for block in statistics.blocks)
