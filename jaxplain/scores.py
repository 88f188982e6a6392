"""Scores: what of the logits is explained."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxplain.names import unknown

ScoreFn = Callable[[jax.Array, jax.Array], jax.Array]
Score = Literal["logit", "probability", "log_probability", "contrast"] | ScoreFn


def _is_target(values: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.arange(values.shape[-1])[None] == targets[:, None]


def _pick(values: jax.Array, targets: jax.Array) -> jax.Array:
    # Elementwise, which works on any mesh; a gather does not.
    some = jnp.clip(targets, 0, values.shape[-1] - 1)
    picked = jnp.where(_is_target(values, some), values, 0).sum(-1)
    # A class that does not exist gives NaN, and NaN derivatives: under jit, failure is data.
    valid = (targets >= 0) & (targets < values.shape[-1])
    return picked * jnp.where(valid, 1, jnp.nan).astype(values.dtype)


def logit(logits: Float[Array, "b k"], targets: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return the logit of each target."""
    return _pick(logits, targets)


def probability(logits: Float[Array, "b k"], targets: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return the softmax probability of each target."""
    return _pick(jax.nn.softmax(logits), targets)


def log_probability(logits: Float[Array, "b k"], targets: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return the logarithm of the softmax probability of each target."""
    return _pick(jax.nn.log_softmax(logits), targets)


def contrast(logits: Float[Array, "b k"], targets: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return the logit of each target minus the largest other logit."""
    others = jnp.where(_is_target(logits, targets), -jnp.inf, logits)
    return _pick(logits, targets) - others.max(-1)


def sigmoid_probability(
    logits: Float[Array, "b k"], targets: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Return the probability of each target where classes do not exclude each other."""
    return _pick(jax.nn.sigmoid(logits), targets)


def log_sigmoid_probability(
    logits: Float[Array, "b k"], targets: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Return the logarithm of `sigmoid_probability`."""
    return _pick(jax.nn.log_sigmoid(logits), targets)


def probabilities(logits: Float[Array, "*b k"], *, multilabel: bool) -> Float[Array, "*b k"]:
    """Return what logits say of every class: a softmax, or a sigmoid each.

    Example:
        >>> probabilities(jnp.zeros((1, 4)), multilabel=False).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    return jax.nn.sigmoid(logits) if multilabel else jax.nn.softmax(logits)


SCORES: dict[str, ScoreFn] = {
    "logit": logit,
    "probability": probability,
    "log_probability": log_probability,
    "contrast": contrast,
}
# Where each class has a sigmoid of its own.
_MULTILABEL = SCORES | {
    "probability": sigmoid_probability,
    "log_probability": log_sigmoid_probability,
}


def score_fn(score: str | ScoreFn, *, multilabel: bool = False) -> ScoreFn:
    """Return the function (logits (B, K), targets (B,)) -> (B,) of a score.

    Args:
        score: one of `SCORES`, or a function, which is returned.
        multilabel: whether probabilities are sigmoids, as `Model.multilabel` says.

    Raises:
        ValueError: no score of that name.

    Example:
        >>> float(score_fn("contrast")(jnp.array([[1.0, 4.0, 2.0]]), jnp.array([1]))[0])
        2.0
        >>> float(score_fn("probability", multilabel=True)(jnp.zeros((1, 3)), jnp.array([1]))[0])
        0.5
    """
    if callable(score):
        return score
    if score not in SCORES:
        raise ValueError(unknown("score", score, SCORES))
    return (_MULTILABEL if multilabel else SCORES)[score]


def check_targets(targets: Any, logits: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Return the targets as an integer array, or raise naming what is wrong.

    Values are checked where they are known; traced targets out of range give NaN maps.

    Raises:
        TypeError: not integers.
        ValueError: not one target an image, or a class that does not exist.
    """
    known = not isinstance(targets, Tracer)
    if known and not isinstance(targets, jax.Array):
        dtype = np.asarray(targets).dtype
        if dtype.kind not in "iufcb":
            raise TypeError(f"targets have dtype {dtype}; expected integers")
    array = jnp.asarray(targets)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"targets have dtype {array.dtype}; expected integers")
    if array.shape != (logits.shape[0],):
        raise ValueError(
            f"targets have shape {array.shape}; expected ({logits.shape[0]},): a class an image"
        )
    if known:
        values = np.asarray(targets)
        if values.size and not (values.min() >= 0 and values.max() < logits.shape[-1]):
            raise ValueError(
                f"targets lie in [{values.min()}, {values.max()}]; "
                f"the model has {logits.shape[-1]} classes"
            )
    return array
