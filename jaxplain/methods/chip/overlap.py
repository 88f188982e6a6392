"""Which channels matter for which classes, and which of them classes share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxplain.methods.chip.importance import ChipImportance

TOP = 10
SHARE = 1e-3


class Overlap(NamedTuple):
    """How many important channels classes have in common.

    Attributes:
        classes: their numbers.
        top: (n, n) of their `TOP` most important channels, as the paper's Fig. 10, left.
        above: (n, n) of those above `SHARE` of the most important one, as in Fig. 10, right. The
            diagonal is how many a class has.
    """

    classes: tuple[int, ...]
    top: Int[np.ndarray, "n n"]
    above: Int[np.ndarray, "n n"]

    def rows(self, class_names: Sequence[str] = ()) -> list[dict[str, str | int]]:
        """Return the table: a row a pair of classes.

        Example:
            >>> found = Overlap((0, 4), np.array([[3, 1], [1, 3]]), np.array([[9, 2], [2, 5]]))
            >>> found.rows()
            [{'class': '0', 'other': '4', 'top 10': 1, 'important': 2, 'of': 9, 'of other': 5}]
        """
        names = [class_names[c] if class_names else str(c) for c in self.classes]
        return [
            {
                "class": names[i],
                "other": names[j],
                f"top {TOP}": int(self.top[i, j]),
                "important": int(self.above[i, j]),
                "of": int(self.above[i, i]),
                "of other": int(self.above[j, j]),
            }
            for i in range(len(names))
            for j in range(i + 1, len(names))
        ]


def important(
    importance: ChipImportance, *, top: int | None = None, share: float = SHARE
) -> Bool[np.ndarray, "classes k"]:
    """Return which channels are important for each class.

    Only positive weights count: a channel with a negative one speaks against the class.

    Args:
        importance: of a layer.
        top: so many of the largest; None for all above the share.
        share: of the largest weight of the class.

    Raises:
        ValueError: top is not positive, or the share is not in [0, 1).

    Example:
        >>> from jaxplain.models import load_model
        >>> from jaxplain.methods.chip.importance import shipped
        >>> found = shipped(load_model("digits"))["conv3"]
        >>> important(found, top=10).sum(1).tolist()
        [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    if top is not None and top < 1:
        raise ValueError(f"top is {top}; expected at least 1")
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; expected at least 0 and below 1")
    weights = np.asarray(importance.weights)
    if top is None:
        return weights > np.maximum(share * weights.max(1, keepdims=True), 0)
    rank = np.argsort(np.argsort(-weights, 1, kind="stable"), 1)
    return (rank < top) & (weights > 0)


def overlap(importance: ChipImportance, classes: Sequence[int] | None = None) -> Overlap:
    """Return how many important channels classes have in common (Fig. 10).

    Args:
        importance: of a layer.
        classes: which; None for all that were fitted.

    Raises:
        ValueError: a class that does not exist.

    Example:
        >>> from jaxplain.models import load_model
        >>> from jaxplain.methods.chip.importance import shipped
        >>> found = overlap(shipped(load_model("digits"))["conv3"], [3, 8, 9])
        >>> found.top.diagonal().tolist(), found.top.shape
        ([10, 10, 10], (3, 3))
    """
    count = importance.weights.shape[0]
    chosen = np.flatnonzero(importance.fitted) if classes is None else np.asarray(classes, int)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < count):
        raise ValueError(f"classes are {chosen.tolist()}; expected numbers from 0 to {count - 1}")
    sets = [important(importance, top=TOP)[chosen], important(importance)[chosen]]
    largest, above = (own.astype(int) @ own.T for own in sets)
    return Overlap(tuple(chosen.tolist()), largest, above)
