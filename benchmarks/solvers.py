"""Solvers against scikit-learn, celer and SPGL1: same problem, same certified gap, one run.

The others solve one class at a time, so they are timed on a sample of classes and the time is
scaled to all of them. Each gets the loosest tolerance that reaches the gap, found outside the
clock, and what it would have to compute first (Gram matrices, square roots of them) for nothing. A
constrained problem is a root-finding in the penalty for the solvers that only know penalties.
"""

import functools
import itertools
import time
import warnings
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from figures import Figures, run, seconds

from jaxplain.solvers import Solution, lasso, mu_lasso, statistics

GAP = 1e-6  # relative, for everybody
TOLERANCES = [1e-4, 1e-6, 1e-8, 1e-10, 1e-12]


def relative_gap(gram, corr, w, *, penalty=None, radius=None, energy=None) -> float:
    """The certificate of jaxplain.solvers.quadratic, without its rounding allowance, in NumPy."""
    image = gram @ w
    residual = corr - image
    explained = abs(corr @ w) + w @ image / 2
    if radius is not None:
        gap = radius * np.abs(residual).max() - residual @ w
    else:
        s = min(1.0, penalty / max(np.abs(residual).max(), 1e-300))
        misfit = energy - 2 * corr @ w + w @ image
        gap = (1 - s) ** 2 / 2 * misfit + penalty * np.abs(w).sum() - s * residual @ w
    return gap / explained


def loosest(solve: Callable[[float], np.ndarray], gap: Callable[[np.ndarray], float]):
    """A call of `solve` with the loosest tolerance that reaches the gap, or None if none does."""
    for tolerance in TOLERANCES:
        if gap(solve(tolerance)) <= GAP:
            return functools.partial(solve, tolerance)
    return None


def into_ball(w: np.ndarray, radius: float) -> np.ndarray:
    return w * min(1.0, radius / max(np.abs(w).sum(), 1e-300))


def by_penalty(path: Callable[[float], np.ndarray], radius: float, top: float) -> Iterator:
    """Points of the ball from penalised solutions: the secant in λ, safeguarded by bisection."""
    low, high, size_low, size_high = 0.0, top, None, 0.0
    penalty = 0.1 * top
    for _ in range(60):
        w = path(penalty)
        size = np.abs(w).sum()
        yield into_ball(w, radius)
        if size > radius:
            low, size_low = penalty, size
        else:
            high, size_high = penalty, size
        if size_low is None:
            penalty = high / 4
            continue
        share = np.clip((size_low - radius) / (size_low - size_high), 0.02, 0.98)
        penalty = low + share * (high - low)


def mu_lasso_peers(x, gram, corr, y, radius) -> dict[str, Callable[[float], np.ndarray]]:
    """Solvers of one constrained problem, from a tolerance."""
    import celer
    import spgl1
    from sklearn.linear_model import Lasso

    rows, top = len(x), np.abs(corr).max()

    def constrained(tolerance: float, path) -> np.ndarray:
        for w in itertools.islice(by_penalty(path, radius, top), 60):
            if relative_gap(gram, corr, w, radius=radius) <= GAP:
                break
        return w

    def scikit(tolerance: float) -> np.ndarray:
        model = Lasso(
            fit_intercept=False, precompute=gram, warm_start=True, tol=tolerance, max_iter=10_000
        )
        return constrained(
            tolerance, lambda t: model.set_params(alpha=t / rows).fit(x, y).coef_.copy()
        )

    def coordinate(tolerance: float) -> np.ndarray:
        model = celer.Lasso(fit_intercept=False, warm_start=True, tol=tolerance)
        return constrained(
            tolerance, lambda t: model.set_params(alpha=t / rows).fit(x, y).coef_.copy()
        )

    def spectral(tolerance: float) -> np.ndarray:
        return into_ball(
            spgl1.spg_lasso(x, y, radius, opt_tol=tolerance, iter_lim=2_000)[0], radius
        )

    return {"scikit-learn": scikit, "celer": coordinate, "spgl1": spectral}


def lasso_peers(root, gram, y, penalty, radius) -> dict[str, Callable[[float], np.ndarray]]:
    """Solvers of one penalised problem given by a square root of its Gram matrix."""
    import celer
    import spgl1
    from sklearn.linear_model import Lasso

    rows = len(root)

    def scikit(tolerance: float) -> np.ndarray:
        model = Lasso(
            alpha=penalty / rows,
            fit_intercept=False,
            precompute=gram,
            tol=tolerance,
            max_iter=100_000,
        )
        return model.fit(root, y).coef_

    def coordinate(tolerance: float) -> np.ndarray:
        model = celer.Lasso(alpha=penalty / rows, fit_intercept=False, tol=tolerance)
        return model.fit(root, y).coef_

    def spectral(tolerance: float) -> np.ndarray:
        # the equivalent constraint, a gift: it has to be known
        return spgl1.spg_lasso(root, y, radius, opt_tol=tolerance, iter_lim=2_000)[0]

    return {"scikit-learn": scikit, "celer": coordinate, "spgl1": spectral}


def contest(
    figures: Figures,
    name: str,
    ours: Callable[[], Solution],
    peers: list[dict[str, tuple]],
    count: int,
    at_least: float,
) -> None:
    """Tells every peer's time over ours, and judges the fastest's.

    Args:
        figures: where to.
        name: of the figure.
        ours: solves all problems.
        peers: for each sampled problem, solver name -> (solve(tolerance), gap(w)).
        count: how many problems there are.
        at_least: the wanted ratio.
    """
    calls = {peer: [loosest(*sample[peer]) for sample in peers] for peer in peers[0]}
    ready = {peer: found for peer, found in calls.items() if None not in found}
    for peer in calls.keys() - ready.keys():
        print(f"# {name}: {peer} does not reach the gap", flush=True)
    seconds(ours)
    ratios = {peer: [] for peer in ready}
    for _ in range(1 if figures.quick else 3):
        own = seconds(ours)
        for peer, found in ready.items():
            start = time.perf_counter()
            for call in found:
                call()
            spent = (time.perf_counter() - start) * count / len(found)
            ratios[peer].append(spent / own)
    medians = {peer: float(np.median(r)) for peer, r in ratios.items()}
    for peer, median in medians.items():
        figures.add(f"{name}/{peer}", median)
    figures.add(f"{name}/fastest", min(medians.values()), at_least=at_least)


def memory(function: Callable, *shapes: tuple[int, ...]) -> float:
    """Bytes of arguments, result and temporaries over those of the arguments, by the compiler."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float64) for shape in shapes]
    used = jax.jit(function).lower(*arguments).compile().memory_analysis()
    needed = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    return needed / used.argument_size_in_bytes


def constrained_classes(figures: Figures) -> None:
    """The μ-Lasso of VEBI: one-hot labels from ReLU-like features, one Gram for all classes."""
    classes, features, rows = (100, 200, 4_000) if figures.quick else (1_000, 1_000, 20_000)
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    centres = rng.normal(size=(classes, 40)) @ rng.normal(size=(40, features)) / 6
    x = np.asfortranarray(np.maximum(centres[labels] + rng.normal(size=(rows, features)), 0))
    y = (labels[:, None] == np.arange(classes)).astype(float)
    data = statistics(jnp.asarray(x), jnp.asarray(y))
    gram, corr = np.asarray(data.gram), np.asarray(data.corr)
    radius = 0.2 * float(np.abs(np.linalg.solve(gram, corr.T)).sum(axis=0).mean())

    def ours(method: str = "spg") -> Solution:
        return mu_lasso(data.gram, data.corr, radius, tolerance=GAP, method=method)

    solution = ours()
    for c in range(0, classes, classes // 10):
        assert relative_gap(gram, corr[c], np.asarray(solution.value[c]), radius=radius) <= GAP
    sample = range(0, classes, classes // (1 if figures.quick else 2))
    peers = []
    for c in sample:
        solvers = mu_lasso_peers(x, gram, corr[c], y[:, c], radius)
        gap = functools.partial(relative_gap, gram, corr[c], radius=radius)
        peers.append({peer: (solve, gap) for peer, solve in solvers.items()})
    assert bool(solution.converged.all())
    contest(figures, "mu_lasso", ours, peers, classes, 10)
    figures.ratio("mu_lasso/spg_over_fista", ours, lambda: ours("fista"), pairs=3)
    figures.add(
        "mu_lasso/memory",
        memory(lambda q, c: mu_lasso(q, c, radius).value, (1_000, 1_000), (1_000, 1_000)),
        at_most=2,
    )


def penalised_classes(figures: Figures) -> None:
    """CHIP's lassos: a Gram matrix for each class, of gated activations (method's defaults)."""
    classes, features, images = (50, 128, 200) if figures.quick else (1_000, 512, 400)
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(40, features)) / np.sqrt(40)
    gates = np.full((features, features), 0.25) + 0.25 * np.eye(features)
    grams = np.empty((classes, features, features))
    corrs, energies = np.empty((classes, features)), np.empty(classes)
    roots = {}
    sample = range(0, classes, classes // (1 if figures.quick else 5))
    for c in range(classes):
        noise = 0.3 * rng.normal(size=(images, features))
        means = np.maximum(rng.normal(size=(images, 40)) @ mixing + noise, 0)
        grams[c] = gates * ((means * rng.random((images, 1)) ** 2).T @ means)
        weights = np.zeros(features)
        weights[rng.choice(features, features // 20, replace=False)] = rng.exponential(
            size=features // 20
        )
        root = np.linalg.cholesky(grams[c]).T
        y = root @ weights + 0.3 * rng.normal(size=features)
        corrs[c], energies[c] = root.T @ y, y @ y
        if c in sample:
            roots[c] = np.asfortranarray(root), y
    penalties = 0.01 * np.abs(corrs).max(axis=1)
    data = tuple(map(jnp.asarray, (grams, corrs, penalties, energies)))

    def ours() -> Solution:
        return lasso(*data[:3], energy=data[3], tolerance=GAP)

    solution = ours()
    assert bool(solution.converged.all())
    peers = []
    for c, (root, y) in roots.items():
        w = np.asarray(solution.value[c])
        options = {"penalty": penalties[c], "energy": energies[c]}
        gap = functools.partial(relative_gap, grams[c], corrs[c], **options)
        assert gap(w) <= GAP
        solvers = lasso_peers(root, grams[c], y, penalties[c], np.abs(w).sum())
        peers.append({peer: (solve, gap) for peer, solve in solvers.items()})
    contest(figures, "lasso", ours, peers, classes, 5)
    used = memory(
        lambda q, c, p, e: lasso(q, c, p, energy=e).value,
        (1_000, 512, 512),
        (1_000, 512),
        (1_000,),
        (1_000,),
    )
    figures.add("lasso/memory", used, at_most=2)


def small_problem(figures: Figures) -> None:
    """One lasso of 50 features: what a call costs."""
    rng = np.random.default_rng(0)
    x = np.asfortranarray(rng.normal(size=(500, 50)))
    y = x[:, :5].sum(axis=1) + rng.normal(size=500)
    gram, corr, energy = x.T @ x, x.T @ y, float(y @ y)
    penalty = 0.05 * float(np.abs(corr).max())
    gap = functools.partial(relative_gap, gram, corr, penalty=penalty, energy=energy)
    q, c = jnp.asarray(gram), jnp.asarray(corr)
    theirs = loosest(lasso_peers(x, gram, y, penalty, 0.0)["scikit-learn"], gap)

    def ours() -> Solution:
        return lasso(q, c, penalty, energy=energy, tolerance=GAP)

    assert gap(np.asarray(ours().value)) <= GAP
    figures.ratio("lasso/50_features_over_scikit-learn", ours, theirs, at_most=1, pairs=51)


def main(figures: Figures) -> None:
    """Batched, certified solvers against solvers that loop over classes."""
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    small_problem(figures)
    constrained_classes(figures)
    penalised_classes(figures)


if __name__ == "__main__":
    run(main)
