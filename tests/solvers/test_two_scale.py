import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_problems import problem as awkward

from jaxplain.solvers import lasso, two_scale

# the package exports the function under the module's name
MODULE = importlib.import_module("jaxplain.solvers.two_scale")
PENALTIES = {"coarse_penalty": 2.0, "fine_penalty": 1.0, "fine_weight": 0.7}


def mint(seed, p=4, q=11, rows=150):
    """Features of nested superpixels as MINT makes them, and a response to some of them."""
    rng = np.random.default_rng(seed)
    t = np.zeros((q, p))
    t[np.arange(q), np.concatenate([np.arange(p), rng.integers(0, p, q - p)])] = 1
    on = rng.integers(0, 2, (rows, q)).astype(float)
    fine = on * rng.uniform(0.5, 1.5, q)
    coarse = (on @ t / t.sum(axis=0) >= 0.5) * rng.uniform(0.5, 1.5, p)
    y = 0.3 * fine @ (rng.normal(size=q) * (rng.random(q) < 0.5)) + 0.1 * rng.normal(size=rows)
    h = rng.random(rows)
    stats = ((coarse.T * h) @ coarse, (coarse.T * h) @ y, (fine.T * h) @ fine, (fine.T * h) @ y, t)
    return tuple(map(jnp.asarray, stats)), float(h @ y**2)


def objective(problem, w):
    """The problem in w_f alone, from the paper's terms."""
    gram_c, corr_c, gram_f, corr_f, t = map(np.asarray, problem)
    w_c = w @ t
    coarse = w_c @ gram_c @ w_c / 2 - corr_c @ w_c + 2.0 * np.abs(w_c).sum()
    fine = 0.7 * (w @ gram_f @ w / 2 - corr_f @ w) + 1.0 * np.abs(w).sum()
    return coarse + fine


def subgradient_residual(problem, w_f, w_c):
    """How far 0 is from the subdifferential of the eliminated problem, by alternating projections.

    The subdifferential is g + T a + b with a ∈ λ_c ∂‖w_c‖₁, b ∈ λ_f ∂‖w_f‖₁, two boxes; the least
    norm over them is found by projected gradient, slow and simple.
    """
    gram_c, corr_c, gram_f, corr_f, t = map(np.asarray, problem)
    slope = t @ (gram_c @ (w_f @ t) - corr_c) + 0.7 * (gram_f @ w_f - corr_f)

    def box(w, size):
        fixed = np.abs(w) > 1e-9
        return np.where(fixed, size * np.sign(w), -size), np.where(fixed, size * np.sign(w), size)

    (low_a, high_a), (low_b, high_b) = box(w_c, 2.0), box(w_f, 1.0)
    a, b = (low_a + high_a) / 2, (low_b + high_b) / 2
    for _ in range(20_000):
        residual = slope + t @ a + b
        a = np.clip(a - 0.1 * t.T @ residual, low_a, high_a)
        b = np.clip(b - 0.1 * residual, low_b, high_b)
    return np.abs(slope + t @ a + b).max()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nested_admm_equals_the_eliminated_problem_and_both_are_optimal(seed):
    problem, energy = mint(seed)
    nested = two_scale(*problem, **PENALTIES, energy=energy, tolerance=1e-13)
    single = two_scale(*problem, **PENALTIES, method="eliminated", tolerance=1e-13)
    assert nested.converged
    assert single.converged
    np.testing.assert_allclose(nested.value.fine, single.value.fine, atol=1e-6)
    np.testing.assert_allclose(nested.value.coarse, single.value.coarse, atol=1e-6)
    for found in (nested, single):
        coarse, fine = map(np.asarray, found.value)
        np.testing.assert_allclose(fine @ np.asarray(problem[4]), coarse, atol=1e-6)
        assert subgradient_residual(problem, fine, coarse) < 1e-4
    # sparse in earnest
    assert np.any(nested.value.fine == 0)


@pytest.mark.parametrize("method", MODULE.METHODS)
def test_gap_bounds_the_suboptimality_at_every_step(method):
    problem, energy = mint(3)
    best = two_scale(*problem, **PENALTIES, method="eliminated", tolerance=1e-14)
    optimum = objective(problem, np.asarray(best.value.fine))
    for steps in (0, 1, 2, 5, 10, 40):
        for known in (energy, None):
            run = two_scale(*problem, **PENALTIES, method=method, energy=known, max_steps=steps)
            above = objective(problem, np.asarray(run.value.fine)) - optimum
            assert above <= run.gap + 1e-12
    assert run.gap < 1e-2


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("g = g - (_matmul(f.w, t) - c.w)", "g = g + (_matmul(f.w, t) - c.w)"),
        ("g = state.g - (w - m)", "g = state.g + (w - m)"),
    ],
)
def test_flipping_the_sign_of_a_multiplier_update_fails(flipped, line, instead):
    problem, _ = mint(0)
    mutant = flipped(MODULE, line, instead)
    assert two_scale(*problem, **PENALTIES, max_steps=300).converged
    assert not mutant.two_scale(*problem, **PENALTIES, max_steps=300).converged


def test_multipliers_of_the_augmented_lagrangian_do_not_change_the_solution():
    problem, _ = mint(1)
    expected = two_scale(*problem, **PENALTIES, tolerance=1e-12).value
    other = two_scale(
        *problem, **PENALTIES, tolerance=1e-12, coupling=3.0, coarse_rho=40.0, fine_rho=5.0
    )
    assert other.converged
    np.testing.assert_allclose(other.value.fine, expected.fine, atol=1e-6)


@pytest.mark.parametrize("method", MODULE.METHODS)
def test_derivatives_equal_finite_differences_in_both_modes(method):
    # in problem 1 a coarse weight is zero though fine weights in it are not
    problem, _ = mint(1)
    point = (*problem[:4], *map(jnp.asarray, PENALTIES.values()))
    rng = np.random.default_rng(0)
    move = [jnp.asarray(rng.normal(size=p.shape)) for p in point]
    move[0], move[2] = move[0] + move[0].T, move[2] + move[2].T

    @jax.jit
    def solve(*data):
        penalties = dict(zip(PENALTIES, data[4:], strict=True))
        found = two_scale(
            *data[:4], problem[4], **penalties, method=method, tolerance=1e-15, max_steps=1_000
        )
        return jnp.concatenate(found.value)

    value, forward = jax.jvp(solve, point, tuple(move))
    assert (value[:4] == 0).sum() == 2
    assert ((value[4:] != 0) @ problem[4] > 0)[value[:4] == 0].any()
    ahead, behind = (
        solve(*(p + h * m for p, m in zip(point, move, strict=True))) for h in (1e-6, -1e-6)
    )
    slope = (ahead - behind) / 2e-6
    np.testing.assert_allclose(forward, slope, atol=1e-5 * float(jnp.abs(slope).max()))
    weight = jnp.asarray(rng.normal(size=value.shape))
    back = jax.vjp(solve, *point)[1](weight)
    total = sum(jnp.sum(b * m) for b, m in zip(back, move, strict=True))
    np.testing.assert_allclose(total, jnp.sum(weight * slope), rtol=1e-5)


def test_without_a_coarse_scale_the_fine_one_is_a_lasso():
    (_, _, gram, corr, t), _ = mint(2)
    nothing = jnp.zeros((4, 4)), jnp.zeros(4)
    found = two_scale(*nothing, gram, corr, t, coarse_penalty=0.0, fine_penalty=1.0)
    np.testing.assert_allclose(found.value.fine, lasso(gram, corr, 1.0).value, atol=1e-5)


def test_vmap_solves_many():
    problems = [mint(seed)[0] for seed in (0, 1)]
    stacked = [jnp.stack(x) for x in zip(*problems, strict=True)]
    both = jax.vmap(lambda *p: two_scale(*p, **PENALTIES))(*stacked)
    alone = two_scale(*problems[1], **PENALTIES)
    np.testing.assert_allclose(both.value.fine[1], alone.value.fine, atol=1e-8)
    assert both.converged.all()


def test_broken_statistics_say_so():
    problem, _ = mint(0)
    for method in MODULE.METHODS:
        bad = two_scale(problem[0].at[0, 0].set(jnp.nan), *problem[1:], **PENALTIES, method=method)
        assert not bad.converged
        assert bad.gap == np.inf
        assert np.isfinite(bad.value.fine).all()
        assert np.isfinite(bad.value.coarse).all()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"fine_penalty": -1.0}, "fine_penalty"),
        ({"fine_weight": 0.0}, "fine_weight"),
        ({"coupling": 0.0}, "coupling"),
        ({"method": "both"}, "method"),
        ({"method": "eliminated", "fine_rho": 1.0}, "fine_rho has no meaning"),
        ({"inner_steps": 0}, "inner_steps"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, name):
    problem, _ = mint(0)
    with pytest.raises(ValueError, match=name):
        two_scale(*problem, **(PENALTIES | arguments))


def test_membership_of_the_wrong_shape_is_refused():
    problem, _ = mint(0)
    with pytest.raises((ValueError, TypeError), match="membership"):
        two_scale(*problem[:4], problem[4].T, **PENALTIES)


def deep_and_shallow(seed, p=8, q=30):
    """Features of a deep layer up to a hundred times those of a shallow one."""
    problem, energy = mint(seed, p, q)
    size = 10.0 ** np.random.default_rng(seed).uniform(0, 2, p)
    gram, corr = problem[0] * jnp.asarray(np.outer(size, size)), problem[1] * size
    return (gram, corr, *problem[2:]), energy


@pytest.mark.parametrize(
    ("dtype", "largest"), [(jnp.float32, 1e-4), (jnp.float64, 1e-10)], ids=["single", "double"]
)
def test_a_deep_layer_of_large_features_is_solved_in_few_steps(dtype, largest):
    problems, energies = zip(*(deep_and_shallow(seed) for seed in range(12)), strict=True)
    data = [jnp.stack(each) for each in zip(*problems, strict=True)]

    @jax.jit
    @jax.vmap
    def solve(energy, *data):
        levels = {
            "coarse_penalty": 0.01 * jnp.abs(data[1]).max(),
            "fine_penalty": 0.01 * jnp.abs(data[3]).max(),
        }
        return two_scale(*data, **levels, energy=energy, method="eliminated"), levels

    given = (jnp.asarray(energies, dtype), *(each.astype(dtype) for each in data))
    found, levels = solve(*given)
    exact, _ = solve(jnp.asarray(energies), *(each.astype(jnp.float64) for each in given[1:]))
    assert found.converged.all()
    assert found.steps.max() <= 20
    gram_c, corr_c, gram_f, corr_f, t = (np.asarray(each, float) for each in given[1:])
    level_c, level_f = (np.asarray(levels[k], float)[:, None] for k in sorted(levels))

    def value(fine):
        fine = np.asarray(fine, float)
        coarse = np.einsum("nq,nqp->np", fine, t)
        squares = np.einsum("np,npr,nr->n", coarse, gram_c, coarse)
        squares += np.einsum("np,npr,nr->n", fine, gram_f, fine)
        linear = (corr_c * coarse).sum(1) + (corr_f * fine).sum(1)
        sizes = (level_c * np.abs(coarse)).sum(1) + (level_f * np.abs(fine)).sum(1)
        return squares / 2 - linear + sizes

    above = value(found.value.fine) - value(exact.value.fine)
    scale = np.abs(value(exact.value.fine))
    assert (above <= largest * scale).all()
    assert (np.asarray(found.gap) <= largest * scale).all()
    assert (above <= np.asarray(found.gap) + 1e-12 * scale).all()


@pytest.mark.parametrize("method", MODULE.METHODS)
def test_gap_bounds_the_suboptimality_of_two_hundred_awkward_problems(method):
    t = jnp.asarray(np.repeat(np.eye(4), 3, axis=0))
    reached = 0
    for seed in range(200):
        p = awkward(seed)
        coarse = p.x @ np.asarray(t)
        stats = (coarse.T @ coarse, coarse.T @ p.y, p.gram, p.corr)
        problem = (*map(jnp.asarray, stats), t)
        energy = float(p.y @ p.y)
        best = two_scale(*problem, **PENALTIES, method="eliminated", energy=energy)
        optimum = objective(problem, np.asarray(best.value.fine))
        reached += bool(best.converged)
        for steps in (0, 3, 40):
            run = two_scale(*problem, **PENALTIES, method=method, energy=energy, max_steps=steps)
            above = objective(problem, np.asarray(run.value.fine)) - optimum
            assert above <= run.gap + 1e-12 * max(energy, 1), p.kind
    assert reached >= 143
