r"""What LIME and MINT know of a network: statistics of its answers when superpixels are hidden.

A sample k is a state :math:`s_k \in \{0,1\}^S` of an image's superpixels, fair coins, and the
network's score :math:`y_k` of the image in which those with 0 are hidden. A linear surrogate, a
model of :math:`y` by :math:`s` with sample weights :math:`\pi(s_k)`, is decided by the sums

.. math:: Q = \sum_k \pi_k f_k f_k^T, \quad q = \sum_k \pi_k y_k f_k, \quad E = \sum_k \pi_k y_k^2,
    \qquad f = (1, s - \tfrac12)

so samples pass through in constant memory, and one set of forward runs serves all targets. The sums
are kept in groups of samples, whose differences tell the standard error of all that is computed
from them: the sandwich estimator with groups as clusters (Liang and Zeger 1986,
doi:10.1093/biomet/73.1.13).

Two things lower the variance, and neither changes what the sums tend to:

- *Antithetic pairs.* Every state is followed by its complement, so that whatever part of y is the
  same for both (all interactions of even order) drops out of the weights (nearly so, as
  :math:`\pi` differs within a pair).
- *A control variate.* Where y is a probability, its log-odds are fitted linearly by the samples of
  other groups, which gives a guess :math:`c(s) = \mathrm{sigmoid}(f \cdot \beta)` of y for *any*
  state without a forward run. Its linear part :math:`f \cdot \gamma` is found from many more
  states; the rest :math:`r = c - f \cdot \gamma` is by construction uncorrelated with the features,
  so :math:`q - \theta \sum \pi r f` has the expectation of q for any :math:`\theta`. The one that
  is used makes the variation between groups least. The states need not be kept for this: they are
  drawn again from the key.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float, Int, Key

from jaxplain.methods.perturbed import in_chunks
from jaxplain.methods.scene import Scene, look
from jaxplain.model import Model
from jaxplain.scores import Score
from jaxplain.solvers.linear import factor

GROUPS = 32
"""Groups of samples: the standard errors are themselves known to about 1/√(2 · 31) = 13%."""

FREE = 16
"""States of which the control variate's linear part is found, as a multiple of the samples."""

Kernel = Callable[[jax.Array], jax.Array]


class Moments(NamedTuple):
    """Sums over samples, in G groups; y is counted from its value at the whole image.

    Attributes:
        gram: (B, G, F, F), F = 1 + S.
        corr: (B, G, T, F) of y.
        energy: (B, G, T) of y.
        odds: (B, G, T, F) as `corr`, of the log-odds of y.
        broken: (B,) samples that the network answered with NaN or infinity.
    """

    gram: Float[Array, "b g f f"]
    corr: Float[Array, "b g t f"]
    energy: Float[Array, "b g t"]
    odds: Float[Array, "b g t f"]
    broken: Int[Array, " b"]


class Draw(NamedTuple):
    """How states are drawn.

    Attributes:
        key: sample k of it is the same at any chunk, batch or number of superpixels.
        antithetic: whether samples 2j and 2j + 1 are complements.
        chunk: samples at a time.
    """

    key: Key[Array, ""]
    antithetic: bool
    chunk: int


def states(draw: Draw, numbers: Int[Array, " n"], size: int) -> Float[Array, "n s"]:
    """Return the states of numbered samples, zeros and ones.

    Example:
        >>> draw = Draw(jax.random.key(0), antithetic=True, chunk=4)
        >>> found = states(draw, jnp.arange(4), 3)
        >>> (found[0::2] + found[1::2]).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    def one(number: jax.Array) -> jax.Array:
        own = jax.random.fold_in(draw.key, number // 2 if draw.antithetic else number)
        each = jax.vmap(jax.random.fold_in, (None, 0))(own, jnp.arange(size))
        kept = jax.vmap(lambda k: jax.random.bits(k, (), jnp.uint32) >> 31)(each)
        return jnp.where(draw.antithetic & (number % 2 == 1), 1 - kept, kept)

    return jax.vmap(one)(numbers).astype(float)


def features(found: Float[Array, "n s"], valid: Float[Array, "b s"]) -> Float[Array, "n b f"]:
    """Return f = (1, s - ½), zero where there is no superpixel."""
    centred = (found[:, None] - 0.5) * valid[None]
    return jnp.concatenate([jnp.ones_like(centred[..., :1]), centred], -1)


def log_odds(y: Float[Array, "*n b t"], base: Float[Array, "b t"]) -> Float[Array, "*n b t"]:
    """Return log(y / (1 - y)), held back where y is much nearer to 0 or 1 than `base` is to 0."""
    least = 1e-3 * base + 1e-7
    least = least.reshape((1,) * (y.ndim - 2) + base.shape)
    return jnp.log((jnp.clip(y, 0, 1) + least) / (jnp.clip(1 - y, 0, 1) + least))


def empty(scene: Scene) -> Moments:
    """Return the moments of no samples."""
    (batch, size), targets = scene.valid.shape, scene.targets.shape[1]
    shape, dtype = (batch, GROUPS, targets), scene.images.dtype
    return Moments(
        jnp.zeros((batch, GROUPS, size + 1, size + 1), dtype),
        jnp.zeros((*shape, size + 1), dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((*shape, size + 1), dtype),
        jnp.zeros(batch, jnp.int32),
    )


def gather(
    model: Model,
    scene: Scene,
    moments: Moments,
    base: Float[Array, "b t"],
    kernel: Kernel,
    draw: Draw,
    count: int,
    *,
    start: int | Int[Array, ""] = 0,
    score: Score = "probability",
) -> Moments:
    """Add samples start … start + count - 1 to moments.

    Args:
        model: any model, a black box too.
        scene: the images.
        moments: of the samples so far.
        base: what `whole` says, from which scores are counted.
        kernel: (n, S) states -> (n, B) weights.
        draw: of the states.
        count: samples.
        start: number of the first.
        score: as in `gradient`.
    """
    size = scene.valid.shape[1]

    def step(sums: Moments, numbers: jax.Array) -> Moments:
        kept = states(draw, numbers, size).astype(scene.images.dtype)
        y = look(model, scene, kept, score)
        broken = ~jnp.isfinite(y).all(-1)
        f, parts = features(kept, scene.valid), _parts(numbers, kernel(kept))
        shifted = y - base[None]
        odds = log_odds(y, base) - log_odds(base, base)[None]
        return Moments(
            sums.gram + _sum(parts, f, f),
            sums.corr + _sum(parts, shifted, f),
            sums.energy + jnp.einsum("nbg,nbt->bgt", parts, shifted**2, precision="highest"),
            sums.odds + _sum(parts, odds, f),
            sums.broken + broken.sum(0, dtype=jnp.int32),
        )

    return in_chunks(step, moments, count, chunk=draw.chunk, start=start)


def _parts(numbers: jax.Array, weights: jax.Array) -> jax.Array:
    """The weights (n, B) spread over the groups that pairs of samples are dealt to: (n, B, G)."""
    group = numbers // 2 % GROUPS
    return weights[..., None] * (group[:, None] == jnp.arange(GROUPS)[None])[:, None]


def _sum(parts: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """Σ_n of products of columns, group by group: (B, G, L, R)."""
    return jax.vmap(
        lambda p, a, b: jnp.einsum(
            "nga,nb->gab", p[:, :, None] * a[:, None], b, precision="highest"
        ),
        in_axes=1,
    )(parts, left, right)


def with_whole(gram: Float[Array, "b f f"], scene: Scene) -> Float[Array, "b f f"]:
    """Add the sample that is the whole image: weight 1, and y zero, as it is counted from there."""
    f = features(jnp.ones_like(scene.valid[:1]), scene.valid)[0]
    return gram + f[:, :, None] * f[:, None, :]


def steady(
    scene: Scene,
    moments: Moments,
    base: Float[Array, "b t"],
    kernel: Kernel,
    draw: Draw,
    count: int | Int[Array, ""],
) -> Moments:
    """Return the moments with the control variate taken from `corr`; see the module.

    Args:
        scene: the images.
        moments: of samples 0 … count - 1.
        base: see `gather`.
        kernel: see `gather`.
        draw: of those samples.
        count: how many there are.
    """
    size = scene.valid.shape[1]
    # Two folds, each fitted by the other's groups.
    fold = jnp.arange(GROUPS) % 2
    own = fold[None] == jnp.arange(2)[:, None]
    other = (~own).astype(base.dtype)
    gram = jnp.einsum("kg,bgij->kbij", other, moments.gram, precision="highest")
    odds = jnp.einsum("kg,bgti->kbti", other, moments.odds, precision="highest")
    beta = jax.vmap(jax.vmap(least_squares))(gram, odds)  # (2, B, T, F)

    def guess(f: jax.Array) -> jax.Array:
        """Return c of both folds, counted as y: (2, n, B, T)."""
        raised = jnp.einsum("nbf,kbtf->knbt", f, beta, precision="highest")
        return jax.nn.sigmoid(log_odds(base, base)[None, None] + raised) - base[None, None]

    def over(count: int | jax.Array, add: Callable, sums: Any) -> Any:
        """Sum over states, which are cheap: many at a time, those beyond the last without weight.

        The number of rounds need not be known to the compiler.
        """
        chunk = min(count, 1024) if isinstance(count, int) else 1024

        def round_(number: int | jax.Array, sums: Any) -> Any:
            numbers = number * chunk + jnp.arange(chunk)
            return add(sums, numbers, (numbers < count).astype(base.dtype)[:, None])

        return lax.fori_loop(0, -(-count // chunk), round_, sums)

    # The linear part, from states of their own.
    free = draw._replace(key=jax.random.fold_in(draw.key, 2**31 - 1))

    def project(sums: tuple, numbers: jax.Array, counts: jax.Array) -> tuple:
        kept = states(free, numbers, size).astype(base.dtype)
        f = features(kept, scene.valid)
        weighted = (kernel(kept) * counts)[..., None] * f
        return (
            sums[0] + jnp.einsum("nbi,nbj->bij", weighted, f, precision="highest"),
            sums[1] + jnp.einsum("knbt,nbi->kbti", guess(f), weighted, precision="highest"),
        )

    batch, targets = scene.targets.shape
    nothing = (
        jnp.zeros((batch, size + 1, size + 1), base.dtype),
        jnp.zeros((2, batch, targets, size + 1), base.dtype),
    )
    gram, corr = over(FREE * count, project, nothing)
    gamma = jax.vmap(jax.vmap(least_squares), (None, 0))(gram, corr)

    def redraw(sums: jax.Array, numbers: jax.Array, counts: jax.Array) -> jax.Array:
        kept = states(draw, numbers, size).astype(base.dtype)
        f = features(kept, scene.valid)
        rest = guess(f) - jnp.einsum("nbf,kbtf->knbt", f, gamma, precision="highest")
        mine = (numbers // 2 % 2)[:, None, None] == 0  # GROUPS is even
        chosen = jnp.where(mine, rest[0], rest[1])
        return sums + _sum(_parts(numbers, kernel(kept) * counts), chosen, f)

    remainder = over(count, redraw, jnp.zeros_like(moments.corr))
    theta = jax.vmap(_best)(moments.gram, moments.corr, remainder)  # (B, T)
    theta = jnp.where(jnp.isfinite(remainder).all((1, 3)), theta, 0)
    remainder = jnp.where(jnp.isfinite(remainder), remainder, 0)
    return moments._replace(corr=moments.corr - theta[:, None, :, None] * remainder)


def least_squares(gram: Float[Array, "f f"], corr: Float[Array, "t f"]) -> Float[Array, "t f"]:
    """Return the weights of features, of which some are zero and others may be dependent."""
    matrix = gram + 1e-4 * jnp.diag(_diagonal(gram))
    return cho_solve((factor(matrix).lower, True), corr.T).T


def _diagonal(gram: jax.Array) -> jax.Array:
    diagonal = jnp.diagonal(gram)
    return jnp.where(diagonal > 0, diagonal, jnp.maximum(diagonal.max(), 1))


def _best(gram: jax.Array, corr: jax.Array, remainder: jax.Array) -> jax.Array:
    """θ of each target: the regression of the groups' influence on y's weights on that of r's."""
    influence = influences(gram, corr)[..., 1:]
    of_rest = influences(gram, remainder)[..., 1:]
    size = (of_rest**2).sum((0, 2))
    theta = (influence * of_rest).sum((0, 2)) / jnp.where(size > 0, size, 1)
    return jnp.clip(jnp.where(size > 0, theta, 0), 0, 1)


def influences(
    gram: Float[Array, "g f f"],
    corr: Float[Array, "g t f"],
    coef: Float[Array, "t f"] | None = None,
    *,
    ridge: Float[Array, "f f"] | None = None,
) -> Float[Array, "g t f"]:
    """Return how much each group of samples moves the weights of a linear fit.

    Their squares, summed over the groups, estimate the variance of the weights.

    Args:
        gram: of each group.
        corr: of each group.
        coef: the weights; None is least squares. Those that are zero are taken as given.
        ridge: what was added to the sum of the Gram matrices.
    """
    total = gram.sum(0)
    total = total if ridge is None else total + ridge
    if coef is None:
        coef = least_squares(total, corr.sum(0))
        free = jnp.ones_like(coef, bool)
    else:
        free = coef != 0

    def of_target(coef: jax.Array, corr: jax.Array, free: jax.Array) -> jax.Array:
        left = corr - jnp.einsum("gij,j->gi", gram, coef, precision="highest")
        left = jnp.where(free[None], left - left.mean(0, keepdims=True), 0)
        matrix = jnp.where(free[:, None] & free[None], total, 0)
        matrix = matrix + jnp.diag(jnp.where(free, 0, _diagonal(total)))
        matrix = matrix + 1e-6 * jnp.diag(_diagonal(total))
        return cho_solve((factor(matrix).lower, True), left.T).T

    moved = jax.vmap(of_target, (0, 1, 0), 1)(coef, corr, free)
    return moved * jnp.sqrt(GROUPS / (GROUPS - 1))


def stderr(
    gram: Float[Array, "g f f"],
    corr: Float[Array, "g t f"],
    coef: Float[Array, "t f"],
    count: int | Int[Array, ""],
    *,
    ridge: Float[Array, "f f"] | None = None,
) -> Float[Array, "t f"]:
    """Return the standard errors of a fit's weights, given which of them are zero.

    Infinite where there are not more samples than weights, or not two groups of them.
    """
    used = (coef != 0).sum(-1, keepdims=True)
    # What a fit with that many weights takes from the residuals.
    share = jnp.where(count > used, count / jnp.maximum(count - used, 1), jnp.inf)
    moved = influences(gram, corr, coef, ridge=ridge)
    return root(moved, share, count)


def root(
    moved: Float[Array, "g *t f"], share: Float[Array, "*#t #f"], count: int | Int[Array, ""]
) -> Float[Array, "*t f"]:
    """Return the standard errors of `influences`; infinite without a pair in every group.

    Args:
        moved: of G groups.
        share: what the variance is multiplied by for a small sample.
        count: samples.
    """
    variance = (moved**2).sum(0) * share
    # The derivative of the root at zero is not finite.
    error = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    return jnp.where(count >= 2 * GROUPS, error, jnp.inf)
