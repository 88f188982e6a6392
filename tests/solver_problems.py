"""Random least-squares problems of every awkward kind, and their solutions by scikit-learn."""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import Lasso

FEATURES = 12
KINDS = ("plain", "collinear", "wide", "zero column", "zero target", "duplicated", "blocks")


class Problem(NamedTuple):
    kind: str
    x: np.ndarray
    y: np.ndarray

    @property
    def gram(self):
        return self.x.T @ self.x

    @property
    def corr(self):
        return self.x.T @ self.y


def problem(seed):
    """The problem of a seed; seven kinds take turns."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    rows = 8 if kind == "wide" else 30
    x = rng.normal(size=(rows, FEATURES))
    if kind == "collinear":
        x[:, 1:] = x[:, :1] + 1e-4 * x[:, 1:]
    if kind == "zero column":
        x[:, rng.integers(FEATURES)] = 0
    if kind == "duplicated":
        x[:, FEATURES // 2 :] = x[:, : FEATURES // 2]
    if kind == "blocks":
        # As in layer-wise normalised descriptors: each block of columns sums to one.
        blocks = np.abs(x).reshape(rows, 3, 4)
        x = (blocks / blocks.sum(axis=-1, keepdims=True)).reshape(rows, FEATURES)
    y = np.zeros(rows) if kind == "zero target" else x[:, 0] - x[:, 3] + rng.normal(size=rows)
    return Problem(kind, x, y)


def stacked(seeds):
    """Gram matrices, correlations and energies of many problems."""
    problems = [problem(seed) for seed in seeds]
    grams = np.stack([p.gram for p in problems])
    corrs = np.stack([p.corr for p in problems])
    return problems, grams, corrs, np.array([p.y @ p.y for p in problems])


def smooth(gram, corr, w):
    """½ wᵀQw − q·w."""
    return w @ gram @ w / 2 - corr @ w


def best_lasso(p, penalty):
    """The least ½‖Xw − y‖² − ½‖y‖² + λ‖w‖₁ that scikit-learn finds."""
    rows = len(p.y)
    model = Lasso(alpha=penalty / rows, fit_intercept=False, tol=1e-15, max_iter=20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(p.x, p.y)
    return smooth(p.gram, p.corr, model.coef_) + penalty * np.abs(model.coef_).sum()
