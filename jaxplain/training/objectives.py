"""What a head answers, and how wrong it is: one class of several, or each class for itself."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxplain.data.labelled import NO, UNCOUNTED, YES
from jaxplain.names import unknown

Labels = Int[Array, "n *classes"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is lowered while training, and what a network is chosen and judged by.

    Attributes:
        name: as in `OBJECTIVES`.
        multilabel: whether labels are (n, classes): 1, 0, or -1 for what does not count.
        loss: (logits, labels) -> mean loss, in nats.
        right: (logits, labels) -> share of the answers that are right.
        score: (logits, labels) -> what epochs are compared by; more is better.
        figure: what `score` is called.
    """

    name: str
    multilabel: bool
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    right: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[np.ndarray, np.ndarray], float]
    figure: str


def softmax_loss(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Return the mean cross-entropy of the softmax."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def right_classes(logits: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Return how many pictures get their class."""
    return (logits.argmax(-1) == labels).mean()


def sigmoid_loss(
    logits: Float[Array, "n classes"], labels: Int[Array, "n classes"]
) -> Float[Array, ""]:
    """Return the mean binary cross-entropy of the labels that count.

    Example:
        >>> sigmoid_loss(jnp.zeros((1, 2)), jnp.array([[1, -1]])).round(4)
        Array(0.6931, dtype=float32)
    """
    counted = labels != UNCOUNTED
    losses = optax.sigmoid_binary_cross_entropy(logits, (labels == YES).astype(logits.dtype))
    return jnp.where(counted, losses, 0).sum() / jnp.maximum(counted.sum(), 1)


def right_labels(
    logits: Float[Array, "n classes"], labels: Int[Array, "n classes"]
) -> Float[Array, ""]:
    """Return the share of the labels that count and lie on the right side of one half."""
    counted = labels != UNCOUNTED
    right = ((logits > 0) == (labels == YES)) & counted
    return right.sum() / jnp.maximum(counted.sum(), 1)


def accuracy(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> float:
    """Return how many pictures get their class."""
    return float(np.mean(logits.argmax(-1) == labels))


def average_precision(scores: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> float:
    """Return the mean, over the pictures that show a class, of the precision at their rank.

    It is the area under the precision at every recall, as the VOC challenge takes it since 2010
    (not the eleven points of before). Of equal scores, all are ranked at once.

    Args:
        scores: of the pictures.
        labels: 1, 0, or -1 for pictures that do not count.

    Returns:
        0..1; NaN if no picture shows the class.

    Example:
        >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1])).__round__(4)
        0.8333
    """
    counted = labels != UNCOUNTED
    scores, shown = scores[counted], labels[counted] == YES
    if not shown.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    scores, shown = scores[order], shown[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    found = np.cumsum(shown)[last]
    gained = np.diff(found, prepend=0)
    return float((gained * found / (last + 1)).sum() / shown.sum())


def mean_average_precision(
    logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, "n classes"]
) -> float:
    """Return the mean of `average_precision` over the classes that some picture shows.

    Example:
        >>> labels = np.array([[1, 0], [0, 0]])
        >>> mean_average_precision(np.array([[0.3, 0.1], [0.1, 0.2]]), labels)
        1.0
    """
    each = [average_precision(*both) for both in zip(logits.T, labels.T, strict=True)]
    known = [value for value in each if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("softmax", False, softmax_loss, right_classes, accuracy, "accuracy"),
        Objective(
            "multilabel",
            True,
            sigmoid_loss,
            right_labels,
            mean_average_precision,
            "mean_average_precision",
        ),
    )
}


def find_objective(name: str) -> Objective:
    """Return an objective of `OBJECTIVES`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in OBJECTIVES:
        raise ValueError(unknown("head", name, OBJECTIVES))
    return OBJECTIVES[name]


def check_labels(labels: np.ndarray, classes: int, objective: Objective, split: str) -> None:
    """Raise ValueError unless labels are as the objective takes them."""
    if objective.multilabel:
        if labels.ndim != 2 or labels.shape[1] != classes:
            raise ValueError(f"{split} has labels {labels.shape}; expected (n, {classes})")
        strange = set(np.unique(labels).tolist()) - {YES, NO, UNCOUNTED}
        if strange:
            raise ValueError(f"{split} has labels {sorted(strange)}; expected 1, 0 or -1")
    elif labels.ndim != 1:
        raise ValueError(f"{split} has labels {labels.shape}; expected (n,), a class each")
    elif labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{split} has labels {labels.min()} to {labels.max()}; expected 0 to {classes - 1}"
        )
