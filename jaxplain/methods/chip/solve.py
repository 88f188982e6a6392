r"""From the statistics of a layer to its importances: one lasso a class.

With everything divided by the sum of the weights, eq. (11) is

.. math:: \min_w \tfrac12 w^T G_c w - b_c \cdot w + \lambda_c \|w\|_1,
    \quad \lambda_c = \text{penalty} \cdot \|b_c\|_\infty .

:math:`\|b_c\|_\infty` is the smallest λ at which w = 0, so that `penalty` means the same in every
layer and class. The paper gives no λ. Solved by `solvers.lasso` in float64 on the CPU: the
problem of its eqs. (14)–(16), whose solution the certificate judges, by the faster iteration.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxplain.methods.chip.importance import ChipImportance, Settings
from jaxplain.methods.chip.statistics import unpack
from jaxplain.solvers import lasso

# Bytes of the Gram matrices that are unpacked and solved at once.
_ROOM = 1 << 28


class Problems(NamedTuple):
    """The lasso problems of some classes, float64, divided by their weight.

    Attributes:
        gram: G.
        corr: b.
        energy: E.
    """

    gram: Float[np.ndarray, "some k k"]
    corr: Float[np.ndarray, "some k"]
    energy: Float[np.ndarray, " some"]


@dataclasses.dataclass(frozen=True, eq=False)
class ChipStatistics:
    """What the images of a fit say of a layer: enough to fit it with any penalty.

    Attributes:
        packed: (classes, K (K + 1) / 2) lower triangles of the Gram matrices G.
        corr: (classes, K) b.
        energy: (classes,) E.
        weight: (classes,) sum of the weights.
        predicted: (classes,) of how many images the class was the likeliest.
        layer: name of the layer.
        path: how the perturbed predictions were computed.
        settings: of the fit; its penalty is not used.
    """

    packed: Float[np.ndarray, "classes packed"]
    corr: Float[np.ndarray, "classes k"]
    energy: Float[np.ndarray, " classes"]
    weight: Float[np.ndarray, " classes"]
    predicted: Int[np.ndarray, " classes"]
    layer: str
    path: str
    settings: Settings

    def gram(self, classes: Any) -> Float[np.ndarray, "*some k k"]:
        """Return the Gram matrices of some classes.

        Args:
            classes: a number, several, or a slice.
        """
        return unpack(self.packed[classes], self.corr.shape[1])

    def problems(self, classes: Any) -> Problems:
        """Return the problems of some classes.

        Args:
            classes: numbers of classes whose weight is not zero.
        """
        weight = self.weight[classes].astype(np.float64)
        return Problems(
            self.gram(classes) / weight[:, None, None],
            self.corr[classes] / weight[:, None],
            self.energy[classes] / weight,
        )


def check_penalty(penalty: float) -> None:
    """Raise ValueError for a penalty that is no share of the largest one."""
    if not 0 < penalty < 1:
        raise ValueError(f"penalty is {penalty}; expected a share above 0 and below 1 of λ's range")


def solve(
    statistics: ChipStatistics,
    *,
    penalty: float = 0.01,
    tolerance: float = 1e-8,
    max_steps: int = 100_000,
) -> ChipImportance:
    """Fit the importances of a layer.

    Args:
        statistics: of the layer.
        penalty: λ as a share of the largest one at which a weight is not zero, in (0, 1).
        tolerance: relative gap at which a class counts as converged.
        max_steps: iterations of each class, at most.

    Returns:
        The importances. A class that was never predicted has zero weights and is not `fitted`.

    Raises:
        ValueError: a number is out of range.
    """
    check_penalty(penalty)
    classes, channels = statistics.corr.shape
    dtype = statistics.corr.dtype
    weights = np.zeros((classes, channels), dtype)
    gap, kkt = np.zeros(classes, dtype), np.zeros(classes, dtype)
    # A class without any influence of the gates has nothing to be fitted to: zero is its optimum.
    moved = (statistics.weight > 0) & (np.abs(statistics.corr).max(1) > 0)
    converged = np.ones(classes, bool)
    several = max(1, _ROOM // (8 * channels**2))
    chosen = np.flatnonzero(moved & (statistics.predicted > 0))
    for start in range(0, len(chosen), several):
        # Of one size, so that one program serves all; the last ones may be solved again.
        block = chosen[max(0, min(start, len(chosen) - several)) :][:several]
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            data = statistics.problems(block)
            steepest = np.abs(data.corr).max(1)
            found = lasso(
                jnp.asarray(data.gram),
                jnp.asarray(data.corr),
                jnp.asarray(penalty * steepest),
                energy=jnp.asarray(data.energy),
                tolerance=tolerance,
                max_steps=max_steps,
            )
            weights[block] = np.asarray(found.value)
            gap[block], converged[block] = np.asarray(found.gap), np.asarray(found.converged)
            kkt[block] = violation(data, weights[block], penalty * steepest) / steepest
    arrays = (weights, gap, kkt, converged, statistics.weight, statistics.predicted)
    return ChipImportance(
        *(jnp.asarray(array) for array in arrays),
        layer=statistics.layer,
        path=statistics.path,
        settings=dataclasses.replace(statistics.settings, penalty=penalty),
    )


def violation(
    problems: Problems, weights: np.ndarray, penalty: np.ndarray
) -> Float[np.ndarray, " classes"]:
    """Return by how much the conditions of optimality of a lasso are violated, in float64.

    With the residual r = b - G w they are r = λ sign(w) where w is not zero and |r| ≤ λ elsewhere.

    Example:
        >>> one = Problems(np.ones((1, 1, 1)), np.ones((1, 1)), np.ones(1))
        >>> violation(one, np.array([[0.9]]), np.array([0.1])).round(12).tolist()
        [0.0]
    """
    weights = weights.astype(np.float64)
    residual = problems.corr - np.einsum("ckl,cl->ck", problems.gram, weights)
    inside = np.maximum(np.abs(residual) - penalty[:, None], 0)
    on_support = np.abs(residual - penalty[:, None] * np.sign(weights))
    return np.where(weights != 0, on_support, inside).max(1)
