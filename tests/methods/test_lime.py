"""LIME against the package, closed forms, enumeration of all states, and its own promises."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain import superpixels
from jaxplain.methods import lime
from jaxplain.methods.surrogate import Draw, states
from jaxplain.model import Model

DATA = np.load(Path(__file__).parents[1] / "data" / "solvers.npz")
KEY = jax.random.key(0)
SEGMENTS = superpixels.grid((8, 8), rows=4, columns=2)
WEIGHTS = jax.random.normal(jax.random.key(1), (8, 3))
IMAGES = jnp.ones((2, 8, 8, 1)) * jnp.array([1.0, 1.5]).reshape(2, 1, 1, 1)
TARGETS = jnp.array([0, 2])


def cells(images):
    """The mean of each of the 4 x 2 rectangles: (B, 8)."""
    return images.reshape(-1, 4, 2, 2, 4).mean((2, 4)).reshape(-1, 8)


def _linear(w, images):
    return jnp.matmul(cells(images), w, precision="highest")


def _bent(w, images):
    x = cells(images)
    crossed = x[:, :1] * x[:, 1:2] * x[:, 2:3] - x[:, 3:4] * x[:, 4:5]
    return 2 * (jnp.matmul(x, w, precision="highest") + 2 * crossed * w[:1])


LINEAR = Model.from_function(_linear, WEIGHTS, name="linear")
BENT = Model.from_function(_bent, WEIGHTS, name="bent")


def explain(model=BENT, images=IMAGES, targets=TARGETS, segments=SEGMENTS, **options):
    return lime.explain(
        model,
        images,
        targets,
        segments,
        **{"key": KEY, "hide": 0.0, "num_samples": 192, "control": False} | options,
    )


def every_state(model, image, target, *, width=0.25, score=jax.nn.softmax):
    """All 256 states, the scores and weights of each."""
    rows = np.array(list(itertools.product([0.0, 1.0], repeat=8)))
    shown = rows[:, np.asarray(SEGMENTS)][..., None] * np.asarray(image)
    y = np.asarray(score(model(jnp.asarray(shown, jnp.float32))))[:, target].astype(float)
    distance = 1 - np.sqrt(rows.sum(1) / 8)
    return rows, y, np.sqrt(np.exp(-(distance**2) / width**2))


def slow_ridge(rows, y, weights, alpha):
    design = np.concatenate([np.ones((len(rows), 1)), rows], 1)
    penalty = alpha * np.eye(9)
    penalty[0, 0] = 0
    found = np.linalg.solve((design.T * weights) @ design + penalty, (design.T * weights) @ y)
    mean = np.average(y, weights=weights)
    r2 = 1 - weights @ (y - design @ found) ** 2 / (weights @ (y - mean) ** 2)
    return found[1:], found[0], r2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none_30", {}),
        ("highest_weights_6", {"select": "highest_weights", "count": 6}),
        ("forward_selection_4", {"count": 4}),
    ],
)
def test_fit_is_that_of_the_package(name, options):
    with jax.enable_x64(True):
        z, y = jnp.asarray(DATA["lime/Z"], float), jnp.asarray(DATA["lime/y"])
        found = lime.fit(z, y, jnp.asarray(DATA["lime/cosine_distance"]), **options)
        own = lime.fit(z, y, **options)
        golden = {k: DATA[f"lime/{name}/{k}"] for k in ("coef", "intercept", "r2", "local_pred")}
        np.testing.assert_allclose(found.coefficients[0], golden["coef"], atol=1e-6)
        np.testing.assert_allclose(found.intercept[0], golden["intercept"], atol=1e-6)
        np.testing.assert_allclose(found.r2[0], golden["r2"], atol=1e-6)
        np.testing.assert_allclose(found.local_prediction[0], golden["local_pred"][0], atol=1e-6)
        np.testing.assert_allclose(own.coefficients, found.coefficients, atol=1e-9)


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_linear_black_box_is_recovered(antithetic):
    targets = jnp.array([[0, 1, 2], [2, 1, 0]])
    found = explain(LINEAR, targets=targets, score="logit", alpha=0.0, antithetic=antithetic)
    for image, (scale, row) in enumerate(zip([1.0, 1.5], targets, strict=True)):
        expected = scale * WEIGHTS[:, row].T
        np.testing.assert_allclose(found.coefficients[image, :, :8], expected, atol=1e-5)
    np.testing.assert_allclose(found.intercept, 0, atol=1e-5)
    np.testing.assert_allclose(found.r2, 1, atol=1e-5)
    np.testing.assert_allclose(found.local_prediction, found.prediction, atol=1e-5)
    assert float(found.coefficient_stderr.max()) < 1e-5
    assert found.heatmap.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(found.heatmap[0, 1, 2, 5], found.coefficients[0, 1, 3])
    assert not found.coefficients[..., 8:].any()


@pytest.mark.parametrize("options", [{}, {"count": 3}, {"select": "highest_weights", "count": 2}])
def test_samples_give_what_the_fit_of_their_rows_gives(options):
    found = explain(**options)
    rows = states(Draw(KEY, True, 1), jnp.arange(192), 8)
    rows = jnp.concatenate([jnp.ones((1, 8)), rows])
    for image in range(2):
        shown = jnp.asarray(np.asarray(rows)[:, SEGMENTS][..., None] * np.asarray(IMAGES[image]))
        y = jax.nn.softmax(BENT(shown))[:, TARGETS[image], None]
        expected = lime.fit(rows, y, **options)
        np.testing.assert_allclose(
            found.coefficients[image, :8], expected.coefficients[0], atol=1e-5
        )
        np.testing.assert_allclose(found.intercept[image], expected.intercept[0], atol=1e-5)
        np.testing.assert_allclose(found.r2[image], expected.r2[0], atol=1e-4)
        np.testing.assert_allclose(
            found.local_prediction[image], expected.local_prediction[0], atol=1e-5
        )


def test_errors_are_as_large_as_told_and_smaller_with_pairs_and_control():
    rows, y, weights = every_state(BENT, IMAGES[0], 0)
    truth = slow_ridge(rows, y, weights, 1e-6)[0]
    mean_square, told = {}, {}
    ways = {"plain": lime.PLAIN, "pairs": {"control": False}, "both": {}}
    for name, options in ways.items():
        runs = jax.vmap(
            lambda key, options=options: lime.explain(
                BENT,
                IMAGES[:1],
                TARGETS[:1],
                SEGMENTS,
                key=key,
                hide=0.0,
                alpha=1e-6,
                num_samples=256,
                chunk=256,
                **options,
            )
        )(jax.random.split(KEY, 48))
        error = np.asarray(runs.coefficients[:, 0, :8]) - truth
        mean_square[name] = (error**2).mean()
        told[name] = (np.asarray(runs.coefficient_stderr[:, 0, :8]) ** 2).mean()
        # Unbiased: the mean error is within the error of the mean.
        drift = error.mean(0) / (error.std(0, ddof=1) / np.sqrt(48))
        assert np.abs(drift).max() < 3.5
        assert 0.75 < told[name] / mean_square[name] < 1.35
    assert mean_square["pairs"] < 0.8 * mean_square["plain"]
    assert mean_square["both"] < 0.7 * mean_square["pairs"]


def test_samples_are_drawn_until_the_error_is_small():
    seen = []
    found = explain(
        num_samples=4096, tolerance=0.01, control=None, progress=lambda *report: seen.append(report)
    )
    done, most, error = seen[-1]
    assert found.samples == done < most == 4096
    assert error <= 0.01 < seen[-2][2]
    np.testing.assert_allclose(error, found.coefficient_stderr.max(), rtol=1e-5)
    assert [report[0] for report in seen] == list(range(128, done + 1, 128))
    # The same as when that number is asked for at once.
    once = explain(num_samples=int(done), control=None)
    np.testing.assert_allclose(found.coefficients, once.coefficients, atol=1e-5)
    budget = explain(num_samples=128, tolerance=1e-9, control=None)
    assert budget.samples == 128


def test_chunks_and_batches_and_larger_buckets_do_not_matter():
    whole = explain()
    for image in range(2):
        one = explain(images=IMAGES[image : image + 1], targets=TARGETS[image : image + 1], chunk=5)
        np.testing.assert_allclose(one.coefficients[0], whole.coefficients[image], atol=2e-5)
        np.testing.assert_allclose(
            one.coefficient_stderr[0], whole.coefficient_stderr[image], atol=2e-5
        )
    gaps = explain(segments=np.where(SEGMENTS == 7, 20, SEGMENTS))
    np.testing.assert_allclose(gaps.heatmap, whole.heatmap, atol=0.3)
    assert gaps.coefficients.shape[-1] == 32
    assert not gaps.coefficients[:, 7].any()


def test_compiled_code_gives_the_same():
    compiled = jax.jit(lambda x, s: explain(images=x, segments=s))(IMAGES, jnp.asarray(SEGMENTS))
    np.testing.assert_allclose(compiled.heatmap, explain().heatmap, atol=1e-5)


def test_several_targets_from_one_set_of_forward_runs():
    calls = []

    def box(images):
        calls.append(len(images))
        return np.asarray(BENT(jnp.asarray(images))) if len(images) < 3 else _numpy(images)

    model = Model.from_black_box(box, 3)
    targets = jnp.array([[0, 1, 2], [1, 2, 0]])
    found = explain(model, targets=targets, num_samples=64, chunk=32)
    # One look in the open, one at the whole images, and 64 copies of both, 32 at a time.
    assert sum(calls) <= 2 + 2 + 128
    assert max(calls) == 32
    single = explain(targets=targets[:, 1], num_samples=64)
    np.testing.assert_allclose(found.coefficients[:, 1], single.coefficients, atol=1e-4)


def _numpy(images):
    x = images.reshape(-1, 4, 2, 2, 4).mean((2, 4)).reshape(-1, 8)
    crossed = x[:, :1] * x[:, 1:2] * x[:, 2:3] - x[:, 3:4] * x[:, 4:5]
    w = np.asarray(WEIGHTS)
    return 2 * (x @ w + 2 * crossed * w[:1])


@pytest.mark.parametrize("hide", ["mean", np.full((8, 1, 1), 0.5)], ids=["mean", "given"])
def test_hidden_superpixels_show_what_is_asked(hide):
    ramp = jnp.arange(64.0).reshape(1, 8, 8, 1) / 64
    shown = []

    def box(images):
        shown.append(images)
        return images.mean((1, 2)) * np.array([[1.0, 0.0]])

    explain(Model.from_black_box(box, 2), ramp, TARGETS[:1] * 0, num_samples=64, hide=hide)
    copies = np.concatenate(shown)[..., 0]
    for label in range(8):
        inside = label == SEGMENTS
        original = np.asarray(ramp)[0, inside, 0]
        hidden = original.mean() if isinstance(hide, str) else 0.5
        for copy in copies:
            pixels = copy[inside]
            assert np.allclose(pixels, original) or np.allclose(pixels, hidden, atol=1e-6)


def test_lasso_meets_its_conditions_and_selects():
    found = explain(regression="lasso", penalty=0.2, control=False, antithetic=False)
    rows = jnp.concatenate([jnp.ones((1, 8)), states(Draw(KEY, False, 1), jnp.arange(192), 8)])
    shown = np.asarray(rows)[:, SEGMENTS][..., None] * np.asarray(IMAGES[0])
    y = np.asarray(jax.nn.softmax(BENT(jnp.asarray(shown))))[:, 0].astype(float)
    z = np.asarray(rows, float)
    weights = np.sqrt(np.exp(-((1 - np.sqrt(z.sum(1) / 8)) ** 2) / 0.25**2))
    centred = z - np.average(z, 0, weights)
    spread = y - np.average(y, weights=weights)
    level = 0.2 * np.abs((weights * spread) @ centred).max()
    coef = np.asarray(found.coefficients[0, :8], float)
    slope = (weights * (spread - centred @ coef)) @ centred
    assert 0 < (coef != 0).sum() < 8
    np.testing.assert_allclose(slope[coef != 0], level * np.sign(coef[coef != 0]), rtol=2e-3)
    assert np.abs(slope).max() <= level * 1.002
    expected = lime.fit(rows, jnp.asarray(y, jnp.float32)[:, None], regression="lasso", penalty=0.2)
    np.testing.assert_allclose(expected.coefficients[0], coef, atol=1e-4)


def test_top_superpixels_are_the_largest_in_favour():
    found = explain()
    order = np.argsort(-np.asarray(found.coefficients[0, :8]))
    np.testing.assert_array_equal(found.top(2)[0], np.isin(SEGMENTS, order[:2]))
    against = np.asarray(found.coefficients[0, :8]) < 0
    assert not np.asarray(found.top(99)[0])[np.isin(SEGMENTS, np.flatnonzero(against))].any()
    with pytest.raises(ValueError, match="count=0"):
        found.top(0)


def test_constant_predictions_leave_nothing_to_explain():
    flat = Model.from_function(lambda _, x: x.mean((1, 2)) * 0 + jnp.array([[2.0, 1.0]]))
    found = explain(flat, targets=TARGETS * 0, alpha=0.0)
    np.testing.assert_array_equal(found.coefficients, 0)
    assert np.isnan(found.r2).all()
    np.testing.assert_allclose(found.local_prediction, jax.nn.sigmoid(1.0), rtol=1e-6)
    rows = jnp.eye(8)
    told = lime.fit(rows, jnp.full((8, 1), 0.3))
    np.testing.assert_array_equal(told.coefficients, 0)
    assert np.isnan(told.r2).all()
    assert told.intercept == jnp.float32(0.3)


def _nan_box(images):
    dark = images.reshape(len(images), -1).min(1) == 0
    logits = images.mean((1, 2)) * np.array([[1.0, 2.0, 3.0]])
    return np.where((dark & (images[:, 0, 0, 0] == 0))[:, None], np.nan, logits)


def test_answers_that_are_not_finite_are_counted_and_refused():
    rows = np.asarray(states(Draw(KEY, True, 1), jnp.arange(192), 8))
    count = int((rows[:, 0] == 0).sum())
    with pytest.raises(ValueError, match=f"{count} of 192 perturbed copies of image 0"):
        explain(Model.from_black_box(_nan_box, 3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"segments": np.zeros((8, 8), int)}, ValueError, "there is 1 superpixel"),
        ({"num_samples": 7}, ValueError, "num_samples=7 for the 8 superpixels of image 0"),
        ({"segments": SEGMENTS[:4]}, ValueError, r"segments have shape \(4, 8\)"),
        ({"segments": SEGMENTS * 1.0}, TypeError, "float64"),
        ({"segments": "slick"}, ValueError, "nearest: slic"),
        ({"hide": "blur"}, ValueError, "hide='blur'"),
        ({"hide": np.zeros((9, 8, 1))}, ValueError, r"hide has shape \(9, 8, 1\)"),
        ({"targets": jnp.array([0, 3])}, ValueError, "3 classes"),
        ({"targets": jnp.zeros((2, 0), int)}, ValueError, "at least one"),
        ({"targets": jnp.array([[0, 1], [0, 9]])}, ValueError, "3 classes"),
        ({"regression": "tree"}, ValueError, "regression='tree'"),
        ({"select": "best", "count": 2}, ValueError, "best"),
        ({"count": 0}, ValueError, "count=0"),
        ({"kernel_width": 0.0}, ValueError, "kernel_width"),
        ({"alpha": -1.0}, ValueError, "alpha"),
        ({"penalty": 1.0}, ValueError, "penalty"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"chunk": 0}, ValueError, "chunk=0"),
        ({"images": IMAGES[:0], "targets": TARGETS[:0]}, ValueError, "at least one"),
        ({"model": Model.from_function(lambda _, x: (x, x))}, TypeError, "returns a tuple"),
        ({"control": True, "score": "logit"}, ValueError, "control=True"),
        ({"model": Model.from_black_box(lambda x: x.mean((1, 2, 3)), 3)}, ValueError, "returned"),
        ({"model": Model.from_function(lambda _, x: x.mean(1))}, ValueError, "returns shape"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, message):
    with pytest.raises(error, match=message):
        explain(**change)


def test_a_tolerance_cannot_be_compiled():
    with pytest.raises(ValueError, match="compiled code"):
        jax.jit(lambda x: explain(images=x, tolerance=0.1).heatmap)(IMAGES)
