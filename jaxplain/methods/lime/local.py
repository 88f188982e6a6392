"""LIME's local model: the weighted linear fit, of rows at hand or of sums of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxplain.methods import surrogate
from jaxplain.methods.scene import Scene
from jaxplain.solvers import lasso, ridge
from jaxplain.solvers.problems import refuse
from jaxplain.solvers.ridge import ridge_statistics


class LocalModel(NamedTuple):
    """Linear models of T targets.

    Attributes:
        coefficients: (T, S), zero where not selected.
        intercept: (T,).
        r2: (T,) weighted R²; NaN where predictions are constant, which leaves nothing to explain.
        local_prediction: (T,) of the model, at the instance itself.
        selected: (T, S).
    """

    coefficients: Float[Array, "*b t s"]
    intercept: Float[Array, "*b t"]
    r2: Float[Array, "*b t"]
    local_prediction: Float[Array, "*b t"]
    selected: Bool[Array, "*b t s"]


def fit(
    states: Float[Array, "n s"],
    predictions: Float[Array, "n t"],
    distances: Float[Array, " n"] | None = None,
    *,
    kernel_width: float | int = 0.25,
    regression: str = "ridge",
    alpha: float | int = 1.0,
    penalty: float | int = 0.01,
    select: str = "auto",
    count: int | None = None,
) -> LocalModel:
    """Return LIME's local models of samples that are at hand: any states, any predictions.

    Args:
        states: rows of zeros and ones, or any features; the first is the instance.
        predictions: a column a target.
        distances: of each row from the instance; None is the cosine distance.
        kernel_width: w.
        regression: as in `explain`, and the following.
        alpha: α.
        penalty: of the lasso.
        select: which features to keep.
        count: how many.

    Raises:
        ValueError: shapes that do not fit, or an option out of range.

    Example:
        >>> states = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> found = fit(states, states @ jnp.array([[2.0], [-1.0]]), alpha=1e-6)
        >>> found.coefficients.round(3).tolist()
        [[2.0, -1.0]]
    """
    rows, size = states.shape
    if predictions.shape[0] != rows or (distances is not None and distances.shape != (rows,)):
        raise ValueError(
            f"predictions have shape {predictions.shape} and distances "
            f"{None if distances is None else distances.shape} for {rows} states"
        )
    check_options(regression, kernel_width, alpha, penalty, count, size)
    if distances is None:
        norms = jnp.linalg.norm(states, axis=1) * jnp.linalg.norm(states[0])
        near = jnp.matmul(states, states[0], precision="highest")
        distances = 1 - near / jnp.where(norms > 0, norms, 1)
    weights = _proximity(distances, kernel_width)
    chosen = selection(select, count)
    if regression == "lasso":
        f = jnp.concatenate([jnp.ones_like(states[:, :1]), states], 1)
        weighted = f * weights[:, None]
        gram = jnp.matmul(weighted.T, f, precision="highest")
        corr = jnp.matmul(predictions.T, weighted, precision="highest")
        energy = jnp.matmul(weights, predictions**2, precision="highest")
        options = FitOptions(alpha, penalty, "none", "lasso", None)
        full = from_sums(gram, corr, energy, jnp.ones_like(states[0]), options)
        spread = energy - corr[:, 0] ** 2 / gram[0, 0]
        r2 = explained(gram, corr, energy, full)
        r2 = jnp.where(spread > 1e-12 * energy, r2, jnp.nan)
        local = full[:, 0] + jnp.matmul(full[:, 1:], states[0], precision="highest")
        return LocalModel(full[:, 1:], full[:, 0], r2, local, full[:, 1:] != 0)

    def one(y: jax.Array) -> LocalModel:
        found = ridge(states, y, weights, alpha=alpha, select=chosen, count=count).value
        constant = (y == y[0]).all()
        return LocalModel(
            jnp.where(constant, 0, found.coef),
            jnp.where(constant, y[0], found.intercept),
            jnp.where(constant, jnp.nan, found.score),
            jnp.where(constant, y[0], found.predict(states[0])),
            found.selected,
        )

    return jax.vmap(one, in_axes=1)(predictions)


def selection(select: str, count: int | None) -> str:
    """Return what `select` means; LIME's "auto" is forward selection of up to six."""
    if select != "auto":
        return select
    if count is None:
        return "none"
    return "forward_selection" if count <= 6 else "highest_weights"


def check_options(
    regression: str,
    kernel_width: float | int,
    alpha: float | int,
    penalty: float | int,
    count: int | None,
    size: int,
) -> None:
    """Raise ValueError for an option out of range; `size` is the number of features."""
    if regression not in ("ridge", "lasso"):
        raise ValueError(f"regression={regression!r}; expected 'ridge' or 'lasso'")
    if count is not None and not 1 <= count <= size:
        raise ValueError(f"count={count}; expected 1 to {size}")
    refuse(kernel_width=(kernel_width, None, None), alpha=(alpha, 0, None))
    refuse(penalty=(penalty, 0, 1))


def _proximity(distances: jax.Array, width: Any) -> jax.Array:
    return jnp.sqrt(jnp.exp(-(distances**2) / width**2))


def cosine_kernel(scene: Scene, width: Any) -> surrogate.Kernel:
    """Return π of states: by the cosine distance from all superpixels shown.

    Example:
        >>> from jaxplain.methods.scene import make_scene
        >>> images, labels = jnp.ones((1, 1, 2, 1)), jnp.array([[[0, 1]]])
        >>> scene = make_scene(images, jnp.array([[0]]), labels, 0.0, 3)
        >>> kernel = cosine_kernel(scene, 1.0)
        >>> found = kernel(jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        >>> [round(float(weight), 3) for weight in found.ravel()]
        [1.0, 0.607]
    """

    def kernel(kept: jax.Array) -> jax.Array:
        shown = jnp.matmul(kept, scene.valid.T, precision="highest")
        return _proximity(1 - jnp.sqrt(shown / scene.valid.sum(1)[None]), width)

    return kernel


class FitOptions(NamedTuple):
    """How a local model is fitted; see `explain`.

    Attributes:
        alpha: of the ridge.
        penalty: of the lasso.
        select: one of `solvers.ridge.SELECTIONS`.
        regression: "ridge" or "lasso".
        most: selected features, or None.
    """

    alpha: Any
    penalty: Any
    select: str
    regression: str
    most: int | None


def from_sums(
    gram: Float[Array, "f f"],
    corr: Float[Array, "t f"],
    energy: Float[Array, " t"],
    valid: Float[Array, " s"],
    options: FitOptions,
) -> Float[Array, "t f"]:
    """Return intercepts and weights from sums over rows (1, z).

    Args:
        gram: of the rows.
        corr: of the rows with each target.
        energy: of each target.
        valid: which features there are.
        options: see there.
    """
    if options.regression == "ridge":

        def one(corr: jax.Array, energy: jax.Array) -> jax.Array:
            found = ridge_statistics(
                gram,
                corr,
                energy,
                alpha=options.alpha,
                select=options.select,
                count=options.most,
                allowed=valid > 0,
            ).value
            return jnp.concatenate([found.intercept[None], found.coef])

        return jax.vmap(one)(corr, energy)
    total = gram[0, 0]
    mean_z, mean_y = gram[0, 1:] / total, corr[:, 0] / total
    centred = gram[1:, 1:] - total * mean_z[:, None] * mean_z[None]
    right = corr[:, 1:] - total * mean_y[:, None] * mean_z[None]
    spread = jnp.maximum(energy - total * mean_y**2, 0)
    level = options.penalty * jnp.abs(right).max(1)
    coef = lasso(centred, right, level, energy=spread).value
    coef = jnp.where(level[:, None] > 0, coef, 0)
    intercept = mean_y - jnp.matmul(coef, mean_z, precision="highest")
    return jnp.concatenate([intercept[:, None], coef], 1)


def explained(
    gram: Float[Array, "f f"],
    corr: Float[Array, "t f"],
    energy: Float[Array, " t"],
    full: Float[Array, "t f"],
) -> Float[Array, " t"]:
    """Return the weighted R² of models with an intercept; NaN where targets do not vary."""
    fitted = jnp.einsum("tf,fg,tg->t", full, gram, full, precision="highest")
    left = energy - 2 * (full * corr).sum(1) + fitted
    spread = energy - corr[:, 0] ** 2 / gram[0, 0]
    return jnp.where(spread > 0, 1 - left / jnp.where(spread > 0, spread, 1), jnp.nan)
