import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_problems import problem

from jaxplain.solvers import ridge
from jaxplain.solvers.ridge import ridge_statistics

MODULE = importlib.import_module("jaxplain.solvers.ridge")
DATA = np.load(Path(__file__).parents[1] / "data" / "solvers.npz")


def lime():
    weights = np.sqrt(np.exp(-(DATA["lime/cosine_distance"] ** 2) / 0.25**2))
    return jnp.asarray(DATA["lime/Z"], float), jnp.asarray(DATA["lime/y"]), jnp.asarray(weights)


def slow(z, y, w, alpha):
    """Ridge with an unpenalised intercept as one augmented system."""
    z, y, w = map(np.asarray, (z, y, w))
    design = np.concatenate([np.ones((len(z), 1)), z], axis=1)
    penalty = alpha * np.eye(design.shape[1])
    penalty[0, 0] = 0
    solution = np.linalg.solve((design.T * w) @ design + penalty, (design.T * w) @ y)
    mean = np.average(y, weights=w)
    score = 1 - w @ (y - design @ solution) ** 2 / (w @ (y - mean) ** 2)
    return solution[1:], solution[0], score


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none_30", {}),
        ("highest_weights_6", {"select": "highest_weights", "count": 6}),
        ("forward_selection_4", {"select": "forward_selection", "count": 4}),
    ],
)
def test_coefficients_are_those_of_lime(name, options):
    z, y, w = lime()
    fit = ridge(z, y[:, 0], w, **options)
    golden = {k: DATA[f"lime/{name}/{k}"] for k in ("coef", "intercept", "r2", "local_pred")}
    assert fit.converged
    np.testing.assert_allclose(fit.value.coef, golden["coef"], atol=1e-6)
    np.testing.assert_allclose(fit.value.intercept, golden["intercept"], atol=1e-6)
    np.testing.assert_allclose(fit.value.score, golden["r2"], atol=1e-6)
    np.testing.assert_allclose(fit.value.predict(z[:1]), golden["local_pred"], atol=1e-6)
    if options:
        assert fit.value.selected.sum() == options["count"]
        assert not fit.value.coef[~fit.value.selected].any()


@pytest.mark.parametrize("select", ["none", "highest_weights", "forward_selection"])
def test_statistics_give_what_their_rows_give(select):
    z, y, w = lime()
    rows = jnp.concatenate([jnp.ones((len(z), 1)), z], 1)
    sums = (rows * w[:, None]).T @ rows, rows.T @ (w * y[:, 0]), w @ y[:, 0] ** 2
    options = {"select": select, "alpha": 0.5, "count": None if select == "none" else 5}
    expected = ridge(z, y[:, 0], w, **options)
    found = ridge_statistics(*sums, **options)
    assert found.converged
    for ours, theirs in zip(found.value, expected.value, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
    # Features that are not allowed are as if they were not there.
    few = jnp.arange(30) < 12
    expected = ridge(z[:, :12], y[:, 0], w, **options).value
    found = ridge_statistics(*sums, **options, allowed=few).value
    np.testing.assert_allclose(found.coef[:12], expected.coef, atol=1e-10)
    assert not found.coef[12:].any()
    assert not found.selected[12:].any()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"corr": jnp.ones(1), "gram": jnp.eye(1)}, "gram"),
        ({"select": "best"}, "select"),
        ({"alpha": -1.0}, "alpha"),
    ],
)
def test_bad_statistics_are_refused_by_name(arguments, name):
    given = {"gram": jnp.eye(4), "corr": jnp.ones(4), "energy": jnp.ones(())} | arguments
    with pytest.raises(ValueError, match=name):
        ridge_statistics(**given)


def test_every_target_and_alpha_equals_the_augmented_system():
    z, y, w = lime()
    both = jax.vmap(lambda t: ridge(z, t, w, alpha=0.3).value, in_axes=1)(y)
    for t in (0, 1):
        coef, intercept, score = slow(z, y[:, t], w, 0.3)
        np.testing.assert_allclose(both.coef[t], coef, atol=1e-10)
        np.testing.assert_allclose(both.intercept[t], intercept, atol=1e-10)
        np.testing.assert_allclose(both.score[t], score, atol=1e-10)


def test_forward_selection_equals_trying_every_feature():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 7)) @ rng.normal(size=(7, 7))
    y, w = z[:, 2] - 0.5 * z[:, 5] + rng.normal(size=40), rng.random(40)
    chosen = []
    for _ in range(4):
        left = [j for j in range(7) if j not in chosen]
        scores = [slow(z[:, [*chosen, j]], y, w, 0.0)[2] for j in left]
        chosen.append(left[int(np.argmax(scores))])
        fit = ridge(*map(jnp.asarray, (z, y, w)), select="forward_selection", count=len(chosen))
        assert set(np.flatnonzero(fit.value.selected)) == set(chosen)


def test_duplicated_features_without_a_penalty_are_solved_and_the_ridge_told():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)))
    fit = ridge(jnp.concatenate([z, z], axis=1), z[:, 0] + 2, alpha=0.0)
    assert np.isfinite(fit.value.coef).all()
    np.testing.assert_allclose(fit.value.score, 1, atol=1e-9)
    np.testing.assert_allclose(fit.value.intercept, 2, atol=1e-6)


def test_constant_target_is_all_intercept():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    fit = ridge(z, jnp.full(20, 3.5))
    np.testing.assert_allclose(fit.value.coef, 0, atol=1e-12)
    np.testing.assert_allclose(fit.value.intercept, 3.5)
    assert fit.value.score == 1


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_numbers_that_are_not_finite_say_so(bad):
    z = jnp.ones((4, 2)).at[0, 0].set(bad)
    fit = ridge(z, jnp.arange(4.0))
    assert not fit.converged
    assert fit.gap == np.inf
    assert np.isfinite(fit.value.coef).all()
    assert np.isfinite(fit.value.intercept)


def test_derivative_equals_finite_differences():
    z, y, w = lime()

    def coefficient(scale):
        return ridge(z[:, :5], y[:, 0] * scale, w**scale, alpha=scale).value.coef[2]

    slope = (coefficient(1 + 1e-6) - coefficient(1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(coefficient)(1.0), slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"select": "best"}, "select"),
        ({"select": "highest_weights"}, "count"),
        ({"select": "forward_selection", "count": 3}, "count"),
        ({"alpha": -1.0}, "alpha"),
        ({"instance": jnp.ones(3)}, "instance"),
        ({"weights": jnp.ones(3)}, "weights"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, name):
    with pytest.raises((ValueError, TypeError), match=name):
        ridge(**({"features": jnp.ones((4, 2)), "targets": jnp.ones(4)} | arguments))


@pytest.mark.parametrize("apart", [1e-9, 1e-4, 1.0])
def test_gap_bounds_what_the_truth_has_left(apart):
    rng = np.random.default_rng(0)
    for _ in range(6):
        z = rng.normal(size=(30, 4))
        noise = rng.normal(size=30)
        z[:, 1] = z[:, 0] + apart * noise
        y = noise + 0.3 * rng.normal(size=30)
        fit = ridge(jnp.asarray(z), jnp.asarray(y), alpha=0.0)
        best, *_ = np.linalg.lstsq(z - z.mean(0), y - y.mean(), rcond=None)
        left = [
            np.sum(((z - z.mean(0)) @ np.asarray(w) - (y - y.mean())) ** 2) / 2
            for w in (fit.value.coef, best)
        ]
        assert left[0] - left[1] <= float(fit.gap) + 1e-12


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_gap_bounds_the_suboptimality_of_two_hundred_awkward_problems(alpha):
    for seed in range(200):
        p = problem(seed)
        fit = ridge(jnp.asarray(p.x), jnp.asarray(p.y), alpha=alpha)
        assert np.isfinite(fit.value.coef).all()
        z, y = p.x - p.x.mean(0), p.y - p.y.mean()
        both = np.concatenate([z, np.sqrt(alpha) * np.eye(z.shape[1])])
        target = np.concatenate([y, np.zeros(z.shape[1])])
        best, *_ = np.linalg.lstsq(both, target, rcond=None)
        mine, other = (
            np.sum((both @ np.asarray(w) - target) ** 2) / 2 for w in (fit.value.coef, best)
        )
        assert mine - other <= float(fit.gap) + 1e-13 * (y @ y), p.kind
        # Without α, features that depend on each other leave nothing to certify by.
        regular = alpha > 0 or p.kind in ("plain", "zero target")
        assert bool(fit.converged) == regular, p.kind
