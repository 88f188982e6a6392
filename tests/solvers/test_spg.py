import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_problems import optimum, smooth, stacked
from solver_problems import well_posed as well_posed_arrays

from jaxplain.solvers import lasso, mu_lasso, spg
from jaxplain.solvers.loop import default_tolerance

DATA = np.load(Path(__file__).parents[1] / "data" / "solvers.npz")
A, B = DATA["lasso/A"], DATA["lasso/b"]
TINY = {"rtol": 1e-5, "atol": 1e-6}

every_method = pytest.mark.parametrize("method", spg.METHODS)


def well_posed():
    gram, corr, _ = well_posed_arrays()
    return jnp.asarray(gram), jnp.asarray(corr)


@every_method
def test_coefficients_and_objective_are_those_of_spgl1(method):
    radii = jnp.asarray([2.0, 6.0, 12.0])
    gram, corr = jnp.asarray(A.T @ A), jnp.asarray(A.T @ B)
    solution = mu_lasso(gram, jnp.stack([corr] * 3), radii, method=method)
    assert solution.converged.all()
    for radius, w in zip(("2.0", "6.0", "12.0"), np.asarray(solution.value), strict=True):
        objective = np.sum((A @ w - B) ** 2) / 2
        assert abs(objective / DATA[f"lasso/mu_{radius}/half_sq_error"] - 1) <= 1e-8
        np.testing.assert_allclose(w, DATA[f"lasso/mu_{radius}/w"], atol=1e-5)
        assert np.abs(w).sum() <= float(radius) * (1 + 1e-14)


@functools.cache
def awkward():
    """Two hundred problems, their radii, and between which numbers the least of each lies."""
    problems, grams, corrs, energies = stacked(range(200))
    radii = np.tile([0.1, 0.5, 1.5, 20.0], 50)
    optima = [
        optimum(gram, corr, radius=radius)
        for gram, corr, radius in zip(grams, corrs, radii, strict=True)
    ]
    return problems, grams, corrs, energies, radii, optima


@every_method
def test_gap_bounds_the_suboptimality_of_two_hundred_awkward_problems(method):
    problems, grams, corrs, energies, radii, optima = awkward()
    data = [jnp.asarray(x) for x in (grams, corrs, radii)]
    runs = [
        jax.device_get(mu_lasso(*data, method=method, max_steps=steps, chunk=200))
        for steps in (0, 3, 20, 4_000)
    ]
    for i, p in enumerate(problems):
        lower, upper = optima[i]
        assert upper - lower <= 1e-9 * energies[i]
        for run in runs:
            w, gap = run.value[i], float(run.gap[i])
            assert np.abs(w).sum() <= radii[i] * (1 + 1e-12)
            assert smooth(grams[i], corrs[i], w) - upper <= gap, p.kind
            explained = abs(corrs[i] @ w) + w @ grams[i] @ w / 2
            floor = 1e-15 * radii[i] * np.abs(corrs[i]).max()
            small = gap <= default_tolerance(float) * (explained + floor)
            assert bool(run.converged[i]) == small, p.kind
    # all but the last digits of one of the nearly dependent problems
    assert np.sum(~runs[3].converged) <= 1


@every_method
def test_nonnegative_solution_meets_its_optimality_conditions(method):
    _, grams, corrs, _ = stacked(range(0, 35, 7))
    solution = mu_lasso(
        jnp.asarray(grams), jnp.asarray(corrs), 0.7, nonnegative=True, method=method
    )
    assert solution.converged.all()
    for gram, corr, w in zip(grams, corrs, np.asarray(solution.value), strict=True):
        assert (w >= 0).all()
        assert w.sum() <= 0.7 * (1 + 1e-12)
        descent = corr - gram @ w
        steepest = max(descent.max(), 0)
        np.testing.assert_allclose(descent[w > 0], steepest, atol=1e-3)
        assert steepest * (0.7 - w.sum()) <= 1e-6


@every_method
def test_constrained_and_penalised_solutions_coincide(method):
    gram, corr = well_posed()
    penalised = lasso(gram, corr, 3.0, tolerance=1e-14, method="admm")
    radius = float(jnp.abs(penalised.value).sum())
    constrained = mu_lasso(gram, corr, radius, method=method, tolerance=1e-14)
    np.testing.assert_allclose(constrained.value, penalised.value, atol=1e-6)


def test_never_worse_than_zero_and_always_inside():
    solve = jax.jit(lambda q, c, r, n: mu_lasso(q, c, r, max_steps=n), static_argnums=3)

    @given(seed=st.integers(0, 10_000), radius=st.floats(0, 50), steps=st.sampled_from([0, 4]))
    def check(seed, radius, steps):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(7, 5)) * 10.0 ** rng.integers(-3, 3, size=5)
        gram, corr = x.T @ x, x.T @ rng.normal(size=7)
        found = solve(jnp.asarray(gram), jnp.asarray(corr), radius, steps)
        w = np.asarray(found.value)
        assert smooth(gram, corr, w) <= 1e-12 * np.abs(corr).max()
        assert np.abs(w).sum() <= radius * (1 + 1e-12)
        # zero lies in the ball, so the gap bounds how much worse than zero w could be, and better
        assert found.gap >= smooth(gram, corr, w) - min(0, smooth(gram, corr, 0 * w))

    check()


def test_order_units_and_signs_of_features_do_not_matter():
    solve = jax.jit(functools.partial(mu_lasso, tolerance=1e-14))

    @settings(max_examples=10)
    @given(seed=st.integers(0, 10_000), radius=st.floats(0.01, 3), scale=st.floats(0.1, 10))
    def check(seed, radius, scale):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(9, 5))
        q, c = jnp.asarray(x.T @ x), jnp.asarray(x.T @ rng.normal(size=9))
        base = solve(q, c, radius).value
        order = rng.permutation(5)
        shuffled = solve(q[order][:, order], c[order], radius).value
        np.testing.assert_allclose(shuffled, base[order], **TINY)
        sign = rng.choice([-1.0, 1.0], size=5)
        flipped = solve(q * np.outer(sign, sign), c * sign, radius).value
        np.testing.assert_allclose(flipped, base * sign, **TINY)
        # y → ay, r → ar: w → aw;  z → z/a, r → ar: w → aw;  the objective times a: w
        for scaled, factor in [
            (solve(q, scale * c, scale * radius), scale),
            (solve(q / scale**2, c / scale, scale * radius), scale),
            (solve(q * scale, c * scale, radius), 1),
        ]:
            np.testing.assert_allclose(scaled.value, factor * base, **TINY)

    check()


def test_a_ball_that_does_not_bind_gives_least_squares():
    gram, corr = well_posed()
    solution = mu_lasso(gram, corr, 1e3, tolerance=1e-13)
    np.testing.assert_allclose(solution.value, np.linalg.solve(gram, corr), atol=1e-6)


def test_zero_radius_and_zero_targets_need_no_step():
    gram, corr = well_posed()
    for solution in (mu_lasso(gram, corr, 0.0), mu_lasso(gram, 0 * corr, 1.0)):
        assert not solution.value.any()
        assert solution.converged
        assert solution.gap == 0


def test_chunks_and_a_gram_each_do_not_change_the_answer():
    gram, corr = well_posed()
    corrs = jnp.stack([corr, -2 * corr, corr[::-1]])
    radii = jnp.asarray([1.0, 2.0, 3.0])
    single = jnp.stack(
        [mu_lasso(gram, c, float(r)).value for c, r in zip(corrs, radii, strict=True)]
    )
    for matrices, chunk in ((gram, None), (jnp.stack([gram] * 3), 2)):
        found = mu_lasso(matrices, corrs, radii, chunk=chunk)
        np.testing.assert_allclose(found.value, single, atol=1e-5)


@pytest.mark.parametrize("spoil", ["nan", "indefinite"])
@every_method
def test_broken_problems_say_so_and_spare_their_neighbours(spoil, method):
    gram, corr = well_posed()
    bad = gram.at[0, 0].set(jnp.nan) if spoil == "nan" else -gram
    both = mu_lasso(jnp.stack([gram, bad]), jnp.stack([corr, corr]), 2.0, method=method)
    np.testing.assert_array_equal(both.converged, [True, False])
    assert np.isfinite(both.value).all()
    assert not jnp.isnan(both.gap).any()


@pytest.mark.parametrize(("d", "radius"), [(10, 1.0), (10, 50.0), (80, 2.0)])
def test_derivatives_equal_finite_differences_in_both_modes(d, radius):
    # 10 features: dense; 80: conjugate gradients; a radius of 50 does not bind
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(3 * d, d)))
    gram, corrs = x.T @ x / d, jnp.asarray(rng.normal(size=(2, d)))
    point = (gram, corrs, jnp.asarray([radius, 1.1 * radius]))
    move = (rng.normal(size=(d, d)), rng.normal(size=(2, d)), rng.normal(size=2))
    move = tuple(map(jnp.asarray, (move[0] + move[0].T, *move[1:])))

    def solve(*data):
        return mu_lasso(*data, tolerance=1e-15, max_steps=2_000).value

    value, forward = jax.jvp(solve, point, move)
    ahead, behind = (
        solve(*(p + h * m for p, m in zip(point, move, strict=True))) for h in (1e-6, -1e-6)
    )
    slope = (ahead - behind) / 2e-6
    np.testing.assert_allclose(forward, slope, atol=1e-5 * float(jnp.abs(slope).max()))
    weight = jnp.asarray(rng.normal(size=value.shape))
    back = jax.grad(lambda *data: jnp.sum(weight * solve(*data)), argnums=(0, 1, 2))(*point)
    total = sum(jnp.sum(b * m) for b, m in zip(back, move, strict=True))
    np.testing.assert_allclose(total, jnp.sum(weight * slope), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"radius": -1.0}, "radius"),
        ({"method": "newton"}, "method"),
        ({"max_steps": -1}, "max_steps"),
        ({"gram": jnp.eye(9)}, "gram"),
        ({"radius": jnp.ones(3)}, "radius"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, name):
    gram, corr = well_posed()
    with pytest.raises((ValueError, TypeError), match=name):
        mu_lasso(**({"gram": gram, "corr": corr, "radius": 1.0} | arguments))


def test_nothing_is_certified_that_is_no_problem():
    gram, corr = jnp.eye(3), jnp.array([3.0, -1.5, 0.5])
    for radius in (-1.0, jnp.nan, jnp.inf):
        found = mu_lasso(gram, corr, jnp.array(radius), max_steps=20)
        assert not found.converged
        assert found.gap == jnp.inf
    for penalty, energy in ((-1.0, None), (1.0, -1.0), (1.0, jnp.inf), (1.0, 0.5)):
        energy = None if energy is None else jnp.array(energy)
        found = lasso(gram, corr, jnp.array(penalty), energy=energy, max_steps=20)
        assert not found.converged
        assert found.gap == jnp.inf
    for radius in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="radius must be"):
            mu_lasso(gram, corr, radius)


def test_zero_is_certified_where_nothing_may_rise():
    found = mu_lasso(jnp.eye(3), -jnp.array([3.0, 1.5, 0.5]), 1.0, nonnegative=True)
    assert found.converged
    assert (found.steps, found.gap) == (0, 0)


def test_no_classes_are_solved_at_once():
    for found in (
        mu_lasso(jnp.eye(3), jnp.zeros((0, 3)), 1.0),
        lasso(jnp.eye(3), jnp.zeros((0, 3)), 1.0),
    ):
        assert found.value.shape == (0, 3)
        assert found.converged.shape == (0,)
