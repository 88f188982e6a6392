"""Random least-squares problems of every awkward kind, solved in extended precision."""

from typing import NamedTuple

import numpy as np

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


def well_posed(seed=0, d=10):
    """A gram matrix, a correlation and an energy of independent features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, d))
    y = x[:, 0] - 2 * x[:, 1] + rng.normal(size=40)
    return x.T @ x, x.T @ y, float(y @ y)


def smooth(gram, corr, w):
    """½ wᵀQw − q·w."""
    return w @ gram @ w / 2 - corr @ w


def extended(*arrays):
    return tuple(np.asarray(a, np.longdouble) for a in arrays)


def eliminate(matrix, right):
    """Solves a positive definite system by Gauss's elimination, in the precision it is given."""
    both = np.column_stack([matrix, right])
    size = len(matrix)
    for i in range(size):
        both[i + 1 :] -= np.outer(both[i + 1 :, i] / both[i, i], both[i])
    for i in reversed(range(size)):
        both[i] /= both[i, i]
        both[:i] -= np.outer(both[:i, i], both[i])
    return both[:, size:]


def optimum(gram, corr, *, penalty=None, radius=None):
    """The least ½ wᵀQw − q·w + λ‖w‖₁, or with ‖w‖₁ ≤ r, as (lower, upper) bounds.

    The path of all penalties from the largest down, breakpoint by breakpoint (Efron et al. 2004),
    in extended precision. What it finds is not trusted: duality gives the lower bound.
    """
    gram, corr = extended(gram, corr)
    d, eps = len(corr), np.finfo(np.longdouble).eps
    size = max(np.abs(gram).max(), np.longdouble(1e-300))
    w, sign = np.zeros_like(corr), np.zeros_like(corr)
    level = np.abs(corr).max()
    goal = np.longdouble(0 if penalty is None else penalty)
    skipped, left = np.zeros(d, bool), None
    for _ in range(20 * d):
        inside = np.flatnonzero(sign)
        # what has just left moves inwards
        free = np.flatnonzero((sign == 0) & ~skipped & (np.arange(d) != left))
        slope = corr - gram @ w
        if level <= max(goal, 1e3 * eps * np.abs(corr).max()) or (
            radius is not None and np.abs(w).sum() >= radius
        ):
            break
        # a feature that the others span follows them, and may not enter
        ready = free[np.abs(slope[free]) >= level * (1 - 1e-15)]
        if len(ready):
            j = ready[0]
            rest = gram[j, j]
            if len(inside):
                block = gram[np.ix_(inside, inside)]
                rest = rest - gram[j, inside] @ eliminate(block, gram[inside, [j]][:, None])[:, 0]
            if rest > 1e5 * eps * size:
                sign[j] = np.sign(slope[j])
            else:
                skipped[j] = True
            continue
        # as λ falls by t, w moves by t · move and the slopes by −t · follow
        move = np.zeros_like(corr)
        if len(inside):
            block = gram[np.ix_(inside, inside)]
            move[inside] = eliminate(block, sign[inside][:, None])[:, 0]
        follow = gram @ move
        step, event = level - goal, None
        for j in inside:
            if sign[j] * move[j] < 0 and -w[j] / move[j] < step:
                step, event = -w[j] / move[j], j
        for j in free:
            for s in (1, -1):
                gain = 1 - s * follow[j]
                if gain > 1e-15 and (level - s * slope[j]) / gain < step:
                    step, event = (level - s * slope[j]) / gain, None
        if radius is not None and sign @ move > 0:
            room = (radius - np.abs(w).sum()) / (sign @ move)
            if room <= step:
                step, event = room, None
        w, level, left = w + step * move, level - step, event
        if event is not None:
            w[event] = sign[event] = 0
            skipped[:] = False
    return certified(gram, corr, w, penalty, radius)


def certified(gram, corr, w, penalty, radius):
    """Bounds of the optimum that any w gives, in the precision of the arrays."""
    slope = corr - gram @ w
    if radius is not None:
        w = w * min(1, radius / max(np.abs(w).sum(), np.longdouble(1e-300)))
        slope = corr - gram @ w
        gap = radius * np.abs(slope).max() - slope @ w
        value = smooth(gram, corr, w)
        return value - gap, value
    value = smooth(gram, corr, w) + penalty * np.abs(w).sum()
    # for every v: λ‖v‖₁ ≥ (q − Qw)·v − excess · ‖v‖₁, and no minimiser is twice as long as w
    excess = max(np.abs(slope).max() - penalty, 0)
    return -(w @ gram @ w) / 2 - excess * (np.abs(w).sum() * 2 + 1), value
