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

from jaxplain.solvers import admm, lasso
from jaxplain.solvers.loop import default_tolerance

DATA = np.load(Path(__file__).parents[1] / "data" / "solvers.npz")
A, B = DATA["lasso/A"], DATA["lasso/b"]
TINY = {"rtol": 1e-6, "atol": 1e-8}

every_method = pytest.mark.parametrize("method", admm.METHODS)


def well_posed(seed=0, d=10):
    gram, corr, energy = well_posed_arrays(seed, d)
    return jnp.asarray(gram), jnp.asarray(corr), energy


@every_method
def test_coefficients_and_objective_are_those_of_other_libraries(method):
    for penalty in ("0.02", "0.1", "0.5"):
        gram, corr = jnp.asarray(A.T @ A), jnp.asarray(A.T @ B)
        solution = lasso(gram, corr, float(penalty), energy=float(B @ B), method=method)
        w = np.asarray(solution.value)
        objective = np.sum((A @ w - B) ** 2) / 2 + float(penalty) * np.abs(w).sum()
        assert solution.converged
        assert abs(objective / DATA[f"lasso/lambda_{penalty}/objective"] - 1) <= 1e-8
        np.testing.assert_allclose(w, DATA[f"lasso/lambda_{penalty}/w"], atol=1e-5)
        np.testing.assert_array_equal(w == 0, DATA[f"lasso/lambda_{penalty}/w"] == 0)


# What each method does in few steps, in some, and in as many as it wants.
BUDGETS = {"active": (0, 1, 3, 5_000), "admm": (0, 5, 25, 2_000)}


@functools.cache
def awkward():
    """Two hundred problems, their penalties, and between which numbers the least of each lies."""
    problems, grams, corrs, energies = stacked(range(200))
    penalties = 0.05 * np.maximum(np.abs(corrs).max(axis=1), 1e-3)
    optima = [
        optimum(gram, corr, penalty=penalty)
        for gram, corr, penalty in zip(grams, corrs, penalties, strict=True)
    ]
    return problems, grams, corrs, energies, penalties, optima


@every_method
def test_gap_bounds_the_suboptimality_of_two_hundred_awkward_problems(method):
    problems, grams, corrs, energies, penalties, optima = awkward()
    data = [jnp.asarray(x) for x in (grams, corrs, penalties)]
    runs = [
        jax.device_get(lasso(*data, energy=known, max_steps=steps, method=method, chunk=200))
        for known in (jnp.asarray(energies), None)
        for steps in BUDGETS[method]
    ]
    for i, p in enumerate(problems):
        lower, upper = optima[i]
        assert upper - lower <= 1e-13 * energies[i]
        for run in runs:
            w, gap = run.value[i], float(run.gap[i])
            above = smooth(grams[i], corrs[i], w) + penalties[i] * np.abs(w).sum() - lower
            assert above <= gap + 1e-13 * energies[i], p.kind
            explained = abs(corrs[i] @ w) + w @ grams[i] @ w / 2
            small = gap <= default_tolerance(float) * (explained + 1e-15 * energies[i])
            assert bool(run.converged[i]) == small, p.kind
            assert np.isfinite(w).all()
    assert not runs[0].converged.all()
    for run in runs[3::4]:
        if method == "active":
            assert run.converged.all()
        else:
            # ADMM crawls where features are almost copies of each other, and says so
            tame = np.array([p.kind != "collinear" for p in problems])
            assert np.mean(run.converged[tame]) > 0.98


def test_float32_certificates_bound_too():
    _, grams, corrs, energies = stacked(range(0, 140, 7))
    penalties = 0.05 * np.abs(corrs).max(axis=1)
    exact = lasso(*map(jnp.asarray, (grams, corrs, penalties)), chunk=200)
    single = [jnp.asarray(x, jnp.float32) for x in (grams, corrs, penalties, energies)]
    for steps in (10, 1_000):
        run = lasso(*single[:3], energy=single[3], max_steps=steps, tolerance=1e-5, chunk=200)
        assert run.value.dtype == jnp.float32
        for i, w in enumerate(np.asarray(run.value, float)):
            rounded = [np.asarray(x[i], float) for x in single]
            best = np.asarray(exact.value[i])
            above = [
                smooth(rounded[0], rounded[1], x) + rounded[2] * np.abs(x).sum() for x in (w, best)
            ]
            assert above[0] - above[1] <= run.gap[i]
    assert run.converged.all()


def test_flipping_the_sign_of_the_multiplier_update_fails(flipped):
    gram, corr, energy = well_posed()
    mutant = flipped(admm, "dual = dual - (w - m)", "dual = dual + (w - m)")
    options = {"energy": energy, "max_steps": 500, "method": "admm"}
    assert lasso(gram, corr, 2.0, **options).converged
    assert not mutant.lasso(gram, corr, 2.0, **options).converged


def test_options_change_the_way_and_not_the_solution():
    gram, corr, energy = well_posed()
    expected = lasso(gram, corr, 3.0, tolerance=1e-13).value
    ways = [
        {"relaxation": 1.0},
        {"rho": 5.0},
        {"balance": True},
        {"balance": True, "rho": 1e4},
        {"energy": energy},
    ]
    for way in ways:
        found = lasso(gram, corr, 3.0, tolerance=1e-13, method="admm", **way)
        assert found.converged
        np.testing.assert_allclose(found.value, expected, atol=1e-7)
    steps = [lasso(gram, corr, 3.0, rho=1e4, balance=b, method="admm").steps for b in (False, True)]
    assert steps[1] < steps[0] / 3


@every_method
def test_shared_gram_and_a_gram_each_agree_with_single_problems_at_any_chunk(method):
    gram, corr, _ = well_posed()
    corrs = jnp.stack([corr, corr[::-1], 0 * corr, corr / 3, corr + 1])
    penalties = jnp.asarray([1.0, 2.0, 1.0, 3.0, 0.5])
    solve = functools.partial(lasso, method=method)
    single = jnp.stack([solve(gram, c, p).value for c, p in zip(corrs, penalties, strict=True)])
    shared = solve(gram, corrs, penalties)
    each = solve(jnp.stack([gram] * 5), corrs, penalties, chunk=2)
    np.testing.assert_allclose(shared.value, single, atol=1e-5)
    np.testing.assert_allclose(each.value, single, atol=1e-12)
    np.testing.assert_array_equal(each.steps[2], 0)


def test_large_penalty_gives_exact_zero_without_a_step():
    gram, corr, _ = well_posed()
    solution = lasso(gram, corr, 1.01 * float(jnp.abs(corr).max()))
    assert not solution.value.any()
    assert solution.converged
    assert solution.steps == 0


def test_order_units_and_signs_of_features_do_not_matter():
    solve = jax.jit(functools.partial(lasso, tolerance=1e-13))

    @settings(max_examples=10)
    @given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.9), scale=st.floats(0.1, 10))
    def check(seed, share, scale):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(9, 5))
        q, c = jnp.asarray(x.T @ x), jnp.asarray(x.T @ rng.normal(size=9))
        t = jnp.asarray(share * np.abs(c).max())
        base = solve(q, c, t).value
        order = rng.permutation(5)
        np.testing.assert_allclose(
            solve(q[order][:, order], c[order], t).value, base[order], **TINY
        )
        sign = rng.choice([-1.0, 1.0], size=5)
        flipped = solve(q * np.outer(sign, sign), c * sign, t).value
        np.testing.assert_allclose(flipped, base * sign, **TINY)
        # y → ay, λ → aλ: w → aw;  z → z/a, λ → λ/a: w → aw;  the objective times a: w
        for scaled, factor in [
            (solve(q, scale * c, scale * t), scale),
            (solve(q / scale**2, c / scale, t / scale), scale),
            (solve(q * scale, c * scale, t * scale), 1),
        ]:
            np.testing.assert_allclose(scaled.value, factor * base, **TINY)

    check()


def test_no_penalty_is_least_squares_of_least_norm_with_a_gap():
    gram, corr, energy = well_posed()
    found = lasso(gram, corr, 0.0)
    assert found.converged
    np.testing.assert_allclose(found.value, np.linalg.solve(gram, corr), rtol=1e-10)
    x = np.random.default_rng(0).normal(size=(6, 10))
    y = x @ np.ones(10)
    wide = lasso(jnp.asarray(x.T @ x), jnp.asarray(x.T @ y), 0.0)
    assert wide.converged
    np.testing.assert_allclose(wide.value, np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-8)
    # no minimum: q outside the range of Q
    assert lasso(jnp.diag(jnp.array([1.0, 0.0])), jnp.ones(2), 0.0).gap == np.inf
    # zeros in an array: the energy gives a bound, and nothing else does
    zeros = jnp.zeros(1)
    loose = lasso(gram, corr[None], zeros, energy=energy, max_steps=50)
    misfit = energy / 2 + smooth(np.asarray(gram), np.asarray(corr), np.asarray(loose.value[0]))
    assert misfit * (1 - 1e-9) <= loose.gap[0] <= misfit * (1 + 1e-9)
    assert lasso(gram, corr[None], zeros, max_steps=50).gap[0] >= 0


def test_failed_factorisation_is_retried_and_told():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 5)))
    x = jnp.concatenate([x, x], axis=1)
    gram, corr = x.T @ x, x.T @ x[:, 0]
    energy = float(x[:, 0] @ x[:, 0])
    solution = lasso(gram, corr, 1.0, method="admm", rho=1e-30, energy=energy, max_steps=100)
    assert solution.ridge > 0
    assert np.isfinite(solution.value).all()
    assert lasso(gram, corr, 1.0, method="admm").ridge == 0


@every_method
@pytest.mark.parametrize("spoil", ["nan gram", "nan corr", "inf corr", "indefinite"])
def test_broken_problems_say_so_and_spare_their_neighbours(spoil, method):
    gram, corr, energy = well_posed()
    bad_gram, bad_corr = gram, corr
    if spoil == "nan gram":
        bad_gram = gram.at[0, 0].set(jnp.nan)
    elif spoil == "indefinite":
        bad_gram = -gram
    else:
        bad_corr = corr.at[3].set(jnp.nan if spoil == "nan corr" else jnp.inf)
    for energies in (None, energy):
        grams, corrs = jnp.stack([gram, bad_gram]), jnp.stack([corr, bad_corr])
        both = lasso(grams, corrs, 2.0, energy=energies, method=method)
        np.testing.assert_array_equal(both.converged, [True, False])
        assert both.gap[1] == np.inf
        assert np.isfinite(both.value).all()


@pytest.mark.parametrize("d", [10, 80])
def test_derivatives_equal_finite_differences_in_both_modes(d):
    # 10 features: dense; 80: conjugate gradients
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(3 * d, d)))
    gram, corrs = x.T @ x / d, jnp.asarray(rng.normal(size=(2, d)))
    point = (gram, corrs, jnp.asarray([0.1, 0.4]))
    move = (rng.normal(size=(d, d)), rng.normal(size=(2, d)), rng.normal(size=2))
    move = tuple(map(jnp.asarray, (move[0] + move[0].T, *move[1:])))

    def solve(*data):
        return lasso(*data, tolerance=1e-15, max_steps=3_000, method="admm").value

    value, forward = jax.jvp(solve, point, move)
    ahead, behind = (
        solve(*(p + h * m for p, m in zip(point, move, strict=True))) for h in (1e-6, -1e-6)
    )
    slope = (ahead - behind) / 2e-6
    assert 0 < jnp.sum(value == 0) < value.size
    np.testing.assert_allclose(forward, slope, atol=1e-5 * float(jnp.abs(slope).max()))
    weight = jnp.asarray(rng.normal(size=value.shape))
    back = jax.grad(lambda *data: jnp.sum(weight * solve(*data)), argnums=(0, 1, 2))(*point)
    total = sum(jnp.sum(b * m) for b, m in zip(back, move, strict=True))
    np.testing.assert_allclose(total, jnp.sum(weight * slope), rtol=1e-5)


def test_derivative_survives_duplicated_features():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 4)))
    x = jnp.concatenate([x, x], axis=1)
    slope = jax.grad(lambda p: lasso(x.T @ x, x.T @ x[:, 0], p).value.sum())(1.0)
    assert np.isfinite(slope)


def test_jit_and_vmap_agree_with_the_plain_call():
    gram, corr, _ = well_posed()
    corrs = jnp.stack([corr, 2 * corr])
    plain = lasso(gram, corrs, 2.0)
    mapped = jax.jit(jax.vmap(lambda c: lasso(gram, c, 2.0)))(corrs)
    np.testing.assert_allclose(mapped.value, plain.value, atol=1e-5)
    assert mapped.converged.all()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"penalty": -1.0}, "penalty"),
        ({"method": "newton"}, "method"),
        ({"method": "admm", "rho": 0.0}, "rho"),
        ({"method": "admm", "relaxation": 2.0}, "relaxation"),
        ({"method": "admm", "relaxation": 0.0}, "relaxation"),
        ({"rho": 1.0}, "rho is an option of method 'admm'"),
        ({"balance": True}, "balance is an option"),
        ({"chunk": 0}, "chunk"),
        ({"gram": jnp.eye(9)}, "gram"),
        ({"penalty": jnp.ones(3)}, "penalty"),
        ({"energy": jnp.ones(3)}, "energy"),
        ({"method": "admm", "rho": jnp.ones(3)}, "rho"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, name):
    gram, corr, _ = well_posed()
    # shapes that contradict each other are caught by the signature first, where it is checked
    with pytest.raises((ValueError, TypeError), match=name):
        lasso(**({"gram": gram, "corr": corr, "penalty": 1.0} | arguments))


@every_method
def test_objective_is_never_worse_than_that_of_zero(method):
    problems, grams, corrs, energies = stacked(range(28))
    penalties = 0.1 * np.abs(corrs).max(axis=1)
    data = [jnp.asarray(x) for x in (grams, corrs, penalties)]
    for steps in (0, 1, 4, 2_000):
        found = lasso(*data, energy=jnp.asarray(energies), method=method, max_steps=steps)
        for i, (p, w) in enumerate(zip(problems, np.asarray(found.value), strict=True)):
            risen = smooth(grams[i], corrs[i], w) + penalties[i] * np.abs(w).sum()
            assert risen <= 1e-12 * energies[i], p.kind
