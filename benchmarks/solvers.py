"""Solvers against scikit-learn, celer and SPGL1: same problem, same certified gap, one run.

Ours solve all classes at once, on as many devices as the machine has cores. The others solve one
class after the other: they are timed on a sample of classes, and the time is scaled to all of them.
Each gets the loosest tolerance that reaches the gap, found outside the clock, and what it would
have to compute first for nothing: the Gram matrix, and instead of the data a square root of it,
which has far fewer rows. A constrained problem is a root-finding in the penalty for the solvers
that only know penalties.
"""

import ctypes
import functools
import itertools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from figures import Figures, run, seconds
from jax.sharding import PartitionSpec

from jaxplain.solvers import Solution, lasso, mu_lasso, statistics

GAP = 1e-6  # relative, for everybody
TOLERANCES = 10.0 ** -np.arange(3, 13, 0.5)

# A peer that needs more than this many times the fastest's time is timed on one class only.
CONTENDER = 3


class Sample(NamedTuple):
    """One class as the peers see it: XᵀX is the Gram matrix and Xᵀy the correlation."""

    gram: np.ndarray
    corr: np.ndarray
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, gram: np.ndarray, corr: np.ndarray) -> "Sample":
        """The sample whose X is square."""
        root = np.linalg.cholesky(gram).T
        return cls(gram, corr, np.asfortranarray(root), np.linalg.solve(root.T, corr))


Peers = dict[str, Callable[[float], np.ndarray]]


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


def into_ball(w: np.ndarray, radius: float) -> np.ndarray:
    return w * min(1.0, radius / max(np.abs(w).sum(), 1e-300))


def by_penalty(path: Callable[[float], np.ndarray], radius: float, top: float) -> Iterator:
    """Points of the ball from penalised solutions: the secant in λ, safeguarded by bisection."""
    low, high, size_low, size_high = 0.0, top, None, 0.0
    penalty = 0.1 * top
    while True:
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


def mu_lasso_peers(sample: Sample, radius: float) -> Peers:
    """Solvers of one constrained problem, from a tolerance."""
    import celer
    import spgl1
    from sklearn.linear_model import Lasso

    gram, corr, x, y = sample
    rows, top = len(x), np.abs(corr).max()

    def constrained(path) -> np.ndarray:
        for w in itertools.islice(by_penalty(path, radius, top), 60):
            if relative_gap(gram, corr, w, radius=radius) <= GAP:
                break
        return w

    def scikit(tolerance: float) -> np.ndarray:
        model = Lasso(
            fit_intercept=False, precompute=gram, warm_start=True, tol=tolerance, max_iter=10_000
        )
        return constrained(lambda t: model.set_params(alpha=t / rows).fit(x, y).coef_.copy())

    def coordinate(tolerance: float) -> np.ndarray:
        model = celer.Lasso(fit_intercept=False, warm_start=True, tol=tolerance)
        return constrained(lambda t: model.set_params(alpha=t / rows).fit(x, y).coef_.copy())

    def spectral(tolerance: float) -> np.ndarray:
        w = spgl1.spg_lasso(x, y, radius, opt_tol=tolerance, iter_lim=2_000)[0]
        return into_ball(w, radius)

    return {"spgl1": spectral, "scikit-learn": scikit, "celer": coordinate}


def lasso_peers(sample: Sample, penalty: float, radius: float) -> Peers:
    """Solvers of one penalised problem."""
    import celer
    import spgl1
    from sklearn.linear_model import Lasso

    gram, _, x, y = sample
    alpha = penalty / len(x)

    def scikit(tolerance: float) -> np.ndarray:
        model = Lasso(
            alpha=alpha, fit_intercept=False, precompute=gram, tol=tolerance, max_iter=100_000
        )
        return model.fit(x, y).coef_

    def coordinate(tolerance: float) -> np.ndarray:
        return celer.Lasso(alpha=alpha, fit_intercept=False, tol=tolerance).fit(x, y).coef_

    def spectral(tolerance: float) -> np.ndarray:
        # the equivalent constraint, a gift: it has to be known
        return spgl1.spg_lasso(x, y, radius, opt_tol=tolerance, iter_lim=2_000)[0]

    return {"scikit-learn": scikit, "celer": coordinate, "spgl1": spectral}


def ready(solve: Callable, gap: Callable[[np.ndarray], float], start: int, patience: float):
    """A call with the loosest tolerance from number `start` on that reaches the gap, and its time.

    None if none does, or none before one call has taken longer than `patience` seconds.
    """
    for number in range(start, len(TOLERANCES)):
        before = time.perf_counter()
        reached = gap(solve(TOLERANCES[number])) <= GAP
        spent = time.perf_counter() - before
        if reached:
            return functools.partial(solve, TOLERANCES[number]), number, spent
        if spent > patience:
            return None
    return None


def contest(
    figures: Figures,
    name: str,
    ours: Callable[[], Solution],
    peers: list[tuple[Peers, Callable[[np.ndarray], float]]],
    count: int,
    at_least: float | None,
) -> None:
    """Tells every peer's time over ours, and judges the fastest's.

    Args:
        figures: where to.
        name: of the figure.
        ours: solves all problems; compiled already.
        peers: for each sampled problem, its solvers and the relative gap of a point.
        count: how many problems there are.
        at_least: the wanted ratio, or None to only tell it.
    """
    first, gap = peers[0]
    found, best = {}, np.inf
    for peer, solve in first.items():
        found[peer] = ready(solve, gap, 0, max(10 * best, 1.0) if best < np.inf else np.inf)
        if found[peer] is None:
            print(f"# {name}: {peer} is far behind or does not reach the gap", flush=True)
        else:
            best = min(best, found[peer][2])
    calls = {}
    for peer, result in found.items():
        if result is None:
            continue
        call, number, spent = result
        calls[peer] = [call]
        if spent <= CONTENDER * best:
            later = (ready(solvers[peer], g, number, np.inf) for solvers, g in peers[1:])
            calls[peer] += [result[0] for result in later if result is not None]
    ratios = {peer: [] for peer in calls}
    for _ in range(1 if figures.quick or count * best > 100 else 3):
        own = seconds(ours)
        for peer, made in calls.items():
            start = time.perf_counter()
            for call in made:
                call()
            ratios[peer].append((time.perf_counter() - start) * count / len(made) / own)
    print(f"# {name}: {count} classes in {own:.3g} s on {jax.device_count()} devices", flush=True)
    medians = {peer: float(np.median(r)) for peer, r in ratios.items()}
    for peer, median in medians.items():
        sampled = len(calls[peer])
        print(
            f"# {name}: {peer} timed on {sampled} of {count} classes, scaled linearly", flush=True
        )
        figures.add(f"{name}/{peer}", median)
    figures.add(f"{name}/fastest", min(medians.values()), at_least=at_least)


def memory(name: str) -> float:
    """Resident memory at the peak over that of the arguments, in a process of its own."""
    command = [sys.executable, "-c", f"import solvers as s; s._peak({name!r})"]
    made = subprocess.run(
        command, check=True, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return float(made.stdout.splitlines()[-1])


def _peak(name: str) -> None:
    """Solve for 1000 classes, and print what it took."""
    jax.config.update("jax_enable_x64", True)
    random = np.random.default_rng(0)
    classes, features = 1_000, {"lasso": 512, "mu_lasso": 1_000}[name]
    rows = np.maximum(random.normal(size=(4 * features, features)), 0)
    gram, corr = rows.T @ rows, random.normal(size=(classes, len(rows))) @ rows
    if name == "lasso":
        data = [jnp.asarray(np.tile(gram, (classes, 1, 1))), jnp.asarray(corr)]
        solve = functools.partial(lasso, penalty=0.1 * float(np.abs(corr).max()), tolerance=GAP)
    else:
        data = [jnp.asarray(gram), jnp.asarray(corr)]
        radius = 0.2 * float(np.abs(np.linalg.solve(gram, corr[0])).sum())
        solve = functools.partial(mu_lasso, radius=radius, tolerance=GAP)
    del rows, gram, corr
    compiled = jax.jit(lambda q, c: solve(q, c).value).lower(*data).compile()
    compiled(*data).block_until_ready()  # threads and tables, once
    ctypes.CDLL(None).malloc_trim(0)
    size = sum(array.nbytes for array in data)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    # The high-water mark so far is that of the compiler; the kernel can be told to forget it.
    Path("/proc/self/clear_refs").write_text("5")
    compiled(*data).block_until_ready()
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print((size + peak - before) / size)


def spread(solve: Callable[..., Solution], shared: int, *data) -> Callable[[], Solution]:
    """A compiled call with the classes divided among the devices, all but the first `shared`."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    each = [PartitionSpec() if i < shared else PartitionSpec("data") for i in range(len(data))]
    placed = [
        jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        for x, spec in zip(data, each, strict=True)
    ]
    mapped = jax.shard_map(
        solve, mesh=mesh, in_specs=tuple(each), out_specs=PartitionSpec("data"), check_vma=False
    )
    compiled = jax.jit(mapped).lower(*placed).compile()
    return lambda: compiled(*placed)


def constrained_classes(figures: Figures) -> None:
    """The μ-Lasso of VEBI: one-hot labels from ReLU-like features, one Gram for all classes."""
    classes, features, rows = (192, 400, 4_000) if figures.quick else (1_000, 1_000, 20_000)
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    centres = rng.normal(size=(classes, 40)) @ rng.normal(size=(40, features)) / 6
    x = np.maximum(centres[labels] + rng.normal(size=(rows, features)), 0)
    y = (labels[:, None] == np.arange(classes)).astype(float)
    data = statistics(jnp.asarray(x), jnp.asarray(y))
    gram, corr = np.asarray(data.gram), np.asarray(data.corr)
    radius = 0.2 * float(np.abs(np.linalg.solve(gram, corr.T)).sum(axis=0).mean())

    def solver(method: str) -> Callable:
        return lambda q, c: mu_lasso(q, c, radius, tolerance=GAP, method=method)

    ours = spread(solver("fista"), 1, gram, corr)
    gap = functools.partial(relative_gap, gram, radius=radius)
    sampled = rng.choice(classes, 2 if figures.quick else 10, replace=False)
    samples = [Sample.of(gram, corr[c]) for c in sampled]
    peers = [
        (mu_lasso_peers(sample, radius), functools.partial(gap, sample.corr)) for sample in samples
    ]
    contest(figures, "mu_lasso", ours, peers, classes, 10)
    some = corr[:96]
    methods = [spread(solver(method), 1, gram, some) for method in ("spg", "fista")]
    found = jax.tree.map(np.asarray, methods[1]())
    assert found.converged.all()
    for c in range(0, 96, 8):
        assert gap(corr[c], found.value[c]) <= GAP
    figures.ratio("mu_lasso/spg_over_fista", *methods, pairs=1 if figures.quick else 3)
    figures.add("mu_lasso/memory", memory("mu_lasso"), at_most=2)


def penalised_classes(figures: Figures) -> None:
    """CHIP's lassos: a Gram matrix for each class, of gated activations (method's defaults).

    Gates are open with probability ½, means of activations non-negative, low-rank and noisy; a
    twentieth of the channels matter. The penalty is 1 % of the one that silences all, which is
    what is judged; ten times more and a third of it are told.
    """
    classes, features, images = 48 if figures.quick else 1_000, 512, 400
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(40, features)) / np.sqrt(40)
    grams = np.empty((classes, features, features))
    corrs, energies = np.empty((classes, features)), np.empty(classes)
    for c in range(classes):
        noise = 0.3 * rng.normal(size=(images, features))
        means = np.maximum(rng.normal(size=(images, 40)) @ mixing + noise, 0)
        means *= rng.random((images, 1))
        # E[d dᵀ] = ¼ + ¼ I for open gates d, so the rows of x are those of ½ means and a diagonal
        gram = means.T @ means / 4
        own = np.sqrt(np.diagonal(gram))
        grams[c] = gram + np.diag(own**2)
        weights = np.zeros(features)
        active = rng.choice(features, features // 20, replace=False)
        weights[active] = rng.exponential(size=features // 20)
        y = means @ weights / 2 + 0.3 * rng.normal(size=images)
        alone = own * weights + 0.3 * rng.normal(size=features)
        corrs[c] = means.T @ y / 2 + own * alone
        energies[c] = y @ y + alone @ alone
    sampled = rng.choice(classes, 2 if figures.quick else 10, replace=False)
    samples = [Sample.of(grams[c], corrs[c]) for c in sampled]

    def solve(q, c, p, e, method: str = "active") -> Solution:
        return lasso(q, c, p, energy=e, tolerance=GAP, method=method)

    for share in (0.01,) if figures.quick else (0.01, 0.1, 0.003):
        penalties = share * np.abs(corrs).max(axis=1)
        ours = spread(solve, 0, grams, corrs, penalties, energies)
        solution = jax.tree.map(np.asarray, ours())
        assert solution.converged.all()
        peers = []
        for c, sample in zip(sampled, samples, strict=True):
            w = solution.value[c]
            options = {"penalty": penalties[c], "energy": energies[c]}
            gap = functools.partial(relative_gap, grams[c], corrs[c], **options)
            assert gap(w) <= GAP
            peers.append((lasso_peers(sample, penalties[c], np.abs(w).sum()), gap))
        used = float((solution.value != 0).mean())
        print(f"# lasso at {share:g} of the largest penalty: {used:.0%} of the weights are used")
        contest(figures, f"lasso/{share:g}", ours, peers, classes, 5 if share == 0.01 else None)
    # The iteration that CHIP's paper writes, on a few of the same problems.
    penalties = 0.01 * np.abs(corrs).max(axis=1)
    few = [x[:48] for x in (grams, corrs, penalties, energies)]
    admm, active = (
        spread(functools.partial(solve, method=method), 0, *few) for method in ("admm", "active")
    )
    figures.ratio("lasso/0.01/admm_over_active", admm, active, pairs=1 if figures.quick else 3)
    figures.add("lasso/memory", memory("lasso"), at_most=2)


def small_problem(figures: Figures) -> None:
    """One lasso of 50 features: what a call costs."""
    rng = np.random.default_rng(0)
    x = np.asfortranarray(rng.normal(size=(500, 50)))
    y = x[:, :5].sum(axis=1) + rng.normal(size=500)
    gram, corr, energy = x.T @ x, x.T @ y, float(y @ y)
    penalty = 0.05 * float(np.abs(corr).max())
    gap = functools.partial(relative_gap, gram, corr, penalty=penalty, energy=energy)
    q, c = jnp.asarray(gram), jnp.asarray(corr)
    scikit = lasso_peers(Sample(gram, corr, x, y), penalty, 0.0)["scikit-learn"]
    theirs, _, _ = ready(scikit, gap, 0, np.inf)

    def ours() -> Solution:
        return lasso(q, c, penalty, energy=energy, tolerance=GAP)

    assert gap(np.asarray(ours().value)) <= GAP
    figures.ratio("lasso/50_features_over_scikit-learn", ours, theirs, at_most=1, pairs=51)


def main(figures: Figures) -> None:
    """Batched, certified solvers against solvers that loop over classes."""
    jax.config.update("jax_enable_x64", True)
    # a device a core, as far as they divide the classes
    cores = os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", max(n for n in (1, 2, 4, 8) if n <= cores))
    warnings.simplefilter("ignore")
    small_problem(figures)
    penalised_classes(figures)
    constrained_classes(figures)


if __name__ == "__main__":
    run(main)
