"""MINT against a slow version of the paper in NumPy, and on boxes whose superpixels are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from scipy.optimize import minimize

from jaxplain import superpixels
from jaxplain.methods import mint
from jaxplain.methods.surrogate import Draw, states
from jaxplain.model import Model
from jaxplain.models import outline

KEY = jax.random.key(0)
COARSE = superpixels.grid((8, 8), rows=2, columns=2)
FINE = superpixels.grid((8, 8), rows=4, columns=4)
SEGMENTS = (COARSE, FINE)
IMAGES = jnp.asarray(np.random.default_rng(3).uniform(0.5, 1.5, (2, 8, 8, 1)), jnp.float32)
TARGETS = jnp.array([0, 2])
PLAIN = {"antithetic": False, "control": False}


def _layered(w, x):
    one = checkpoint_name(jnp.tanh(x * w["shallow"].reshape(1, 1, 1, -1)) + 1, "shallow")
    means = one.reshape(-1, 4, 2, 4, 2, 4).mean((2, 4))
    two = checkpoint_name(jax.nn.relu(jnp.einsum("bhwk,kl->bhwl", means, w["deep"])), "deep")
    return jnp.einsum("bhwk,hwkc->bc", two, w["out"])


def parameters():
    keys = jax.random.split(jax.random.key(5), 3)
    return {
        "shallow": jax.random.uniform(keys[0], (4,), minval=0.5, maxval=1.5),
        "deep": jax.random.normal(keys[1], (4, 6)),
        "out": jax.random.normal(keys[2], (4, 4, 6, 3)) / 3,
    }


MODEL = Model.from_function(
    _layered, parameters(), input_shape=(8, 8, 1), name="layered", default_layer="deep"
)


def explain(model=MODEL, images=IMAGES, targets=TARGETS, segments=SEGMENTS, **options):
    given = {"key": KEY, "num_samples": 128, "shallow": "shallow", "control": False} | options
    return mint.explain(model, images, targets, segments, **given)


def soft(x, level):
    return np.sign(x) * np.maximum(np.abs(x) - level, 0)


def dataset(image, target, count, *, width=0.25, antithetic=False):
    """The paper's perturbed dataset of one image in float64: s^f, h, y."""
    s = np.asarray(states(Draw(KEY, antithetic, 1), jnp.arange(count), 16), float)
    shown = s[:, FINE][..., None] * np.asarray(image, float)[None]
    away = ((np.asarray(image, float)[None] - shown) ** 2).sum((1, 2, 3))
    h = np.exp(-away / (width * (np.asarray(image, float) ** 2).sum()))  # (8)
    return s, h, np.asarray(jax.nn.softmax(MODEL(jnp.asarray(shown))))[:, target]


def features(image):
    """(4) and (6), by loops."""
    layers = {}

    def keep(w, x):
        one = np.tanh(np.asarray(x) * np.asarray(w["shallow"])) + 1
        means = one.reshape(1, 4, 2, 4, 2, 4).mean((2, 4))
        layers["deep"] = np.maximum(means @ np.asarray(w["deep"]), 0)
        layers["shallow"] = one

    keep(MODEL.params, np.asarray(image)[None])
    deep = np.asarray(jax.image.resize(jnp.asarray(layers["deep"].sum(-1)), (1, 8, 8), "bilinear"))[
        0
    ]
    shallow = layers["shallow"].sum(-1)[0]
    return (
        np.array([deep[i == COARSE].mean() for i in range(4)]),
        np.array([shallow[i == FINE].mean() for i in range(16)]),
    )


def algorithm_1(zc, zf, h, y, t, lambda_c, lambda_f, mu=1.0, outer=6000, inner=30):
    """The paper's pseudocode, line by line."""
    gram_c, gram_f = (zc.T * h) @ zc, (zf.T * h) @ zf
    rho_c, rho_f = np.diag(gram_c).mean(), np.diag(gram_f).mean()
    lam = rho_c
    solve_c = np.linalg.inv(gram_c + (lam + rho_c) * np.eye(len(gram_c)))
    solve_f = np.linalg.inv(mu * gram_f + lam * t @ t.T + rho_f * np.eye(len(gram_f)))
    wc = mc = gc = g = np.zeros(len(gram_c))
    wf = mf = gf = np.zeros(len(gram_f))
    for _ in range(outer):
        before = mf
        for _ in range(inner):
            wc = (zc.T @ (h * y) + lam * (wf @ t - g) + rho_c * (mc + gc)) @ solve_c  # (28)
            mc = soft(wc - gc, lambda_c / rho_c)  # (30)
            gc = gc - (wc - mc)  # (31)
        for _ in range(inner):
            wf = (mu * zf.T @ (h * y) + lam * (wc + g) @ t.T + rho_f * (mf + gf)) @ solve_f  # (38)
            mf = soft(wf - gf, lambda_f / rho_f)  # (40)
            gf = gf - (wf - mf)  # (41)
        g = g - (wf @ t - wc)  # (42)
        if np.abs(mf - before).max() < 1e-13 and np.abs(mf @ t - mc).max() < 1e-12:
            break
    return mc, mf


@pytest.fixture(scope="module")
def slow():
    """The reference in float64 of both images, with the penalties at 5% of the correlations."""
    with jax.enable_x64(True):
        found = []
        for image, target in zip(IMAGES, TARGETS.tolist(), strict=True):
            s, h, y = dataset(image, target, 128)
            a_c, a_f = features(image)
            t = superpixels.membership(COARSE, FINE).astype(float)
            zc, zf = s @ (t / t.sum(0)) * a_c, s * a_f  # (3), (5)
            lambda_c = 0.05 * np.abs(zc.T @ (h * y)).max()
            lambda_f = 0.05 * np.abs(zf.T @ (h * y)).max()
            data = zc, zf, h, y, t, lambda_c, lambda_f
            found.append((data, a_c, a_f, algorithm_1(*data)))
        return found


@pytest.mark.parametrize("method", ["nested", "eliminated"])
def test_weights_are_those_of_the_papers_algorithm(method, slow):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, float), MODEL.params)
        model = Model(**{**MODEL.__dict__, "params": wide})
        found = explain(
            model,
            jnp.asarray(IMAGES, float),
            method=method,
            coarse_penalty=0.05,
            fine_penalty=0.05,
            **PLAIN,
        )
        assert found.converged.all()
        for image, (_, a_c, a_f, (w_c, w_f)) in enumerate(slow):
            scale = np.abs(w_f).max()
            np.testing.assert_allclose(found.coarse_weights[image, :4], w_c, atol=1e-6 * scale * 16)
            np.testing.assert_allclose(found.fine_weights[image, :16], w_f, atol=1e-6 * scale)
            np.testing.assert_allclose(  # (43), (44)
                found.coarse_importances[image, :4], w_c * a_c, atol=1e-5 * np.abs(w_c * a_c).max()
            )
            np.testing.assert_allclose(
                found.fine_importances[image, :16], w_f * a_f, atol=1e-5 * np.abs(w_f * a_f).max()
            )


def test_weights_solve_the_problem_in_fine_weights_alone(slow):
    for (zc, zf, h, y, t, lambda_c, lambda_f), _, _, (w_c, w_f) in slow:

        def objective(parts, zc=zc, zf=zf, h=h, y=y, t=t, lambda_c=lambda_c, lambda_f=lambda_f):
            up, down = parts[:16], parts[16:32]
            over, under = parts[32:36], parts[36:]
            w = up - down
            return (
                h @ (zc @ (w @ t) - y) ** 2 / 2
                + h @ (zf @ w - y) ** 2 / 2
                + lambda_f * (up + down).sum()
                + lambda_c * (over + under).sum()
            )

        tie = {"type": "eq", "fun": lambda p, t=t: (p[:16] - p[16:32]) @ t - (p[32:36] - p[36:])}
        best = minimize(
            objective,
            np.full(40, 0.01),
            bounds=[(0, None)] * 40,
            constraints=[tie],
            method="SLSQP",
            options={"maxiter": 1000, "ftol": 1e-14},
        )
        at = np.concatenate([np.maximum(w_f, 0), np.maximum(-w_f, 0)])
        at = np.concatenate([at, np.maximum(w_f @ t, 0), np.maximum(-(w_f @ t), 0)])
        assert objective(at) <= best.fun * (1 + 1e-5) + 1e-9
        np.testing.assert_allclose(w_f @ t, w_c, atol=1e-8)


def _planted(images):
    """Two fine superpixels matter, 5 and 0; both lie in coarse superpixel 0."""
    x = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    p = np.clip(0.1 + 0.5 * x[:, 5] + 0.3 * x[:, 0], 1e-6, 1 - 1e-6)
    return np.stack([np.log(p), np.log(1 - p)], 1)


@pytest.mark.parametrize("options", [PLAIN, {"control": True}], ids=["plain", "pairs and control"])
def test_planted_superpixels_of_a_black_box_are_found_at_both_scales(options):
    box = Model.from_black_box(_planted, 2)
    found = explain(
        box, jnp.ones((1, 8, 8, 1)), jnp.array([0]), features="none", num_samples=512, **options
    )
    assert set(np.argsort(-np.asarray(found.fine_importances[0]))[:2]) == {0, 5}
    assert int(found.fine_importances[0].argmax()) == 5
    assert int(found.coarse_importances[0].argmax()) == 0
    np.testing.assert_array_equal(found.coarse_mask()[0], COARSE == 0)
    np.testing.assert_array_equal(found.fine_mask(0.3)[0], np.isin(FINE, [0, 5]))
    assert found.heatmap.shape == (1, 8, 8)
    np.testing.assert_allclose(found.fine_weights, found.fine_importances)


def test_targets_share_forward_runs_and_fine_superpixels():
    calls = []

    def box(images):
        calls.append(len(images))
        return _planted(images)

    model = Model.from_black_box(box, 2)
    targets = jnp.array([[0, 1]])
    images = jnp.ones((1, 8, 8, 1))
    other = np.stack([COARSE, superpixels.grid((8, 8), rows=4, columns=1)])[None]
    both = explain(model, images, targets, (other, FINE), features="none", num_samples=64, **PLAIN)
    assert sum(calls) == 1 + 1 + 64
    assert both.heatmap.shape == (1, 2, 8, 8)
    assert both.fine_segments.shape == (1, 8, 8)
    for t in range(2):
        alone = explain(
            model,
            images,
            targets[:, t],
            (other[0, t], FINE),
            features="none",
            num_samples=64,
            **PLAIN,
        )
        np.testing.assert_allclose(both.fine_weights[0, t], alone.fine_weights[0], atol=1e-4)
        np.testing.assert_allclose(both.coarse_weights[0, t], alone.coarse_weights[0], atol=1e-4)

    for scale, values, labels in (
        ("coarse", both.coarse_importances, other),
        ("fine", both.fine_importances, np.broadcast_to(FINE, other.shape)),
    ):
        seen = np.asarray(both.at(scale).heatmap)
        for t in range(2):
            np.testing.assert_array_equal(seen[0, t], np.asarray(values)[0, t][labels[0, t]])


def test_an_image_is_cut_where_grad_cam_looks_and_compiled_code_cuts_the_same():
    options = {"segments": None, "num_samples": 128, "scale": "coarse"}
    found = explain(**options)
    for image in range(2):
        superpixels.membership(found.coarse_segments[image], found.fine_segments[image])
    compiled = jax.jit(lambda x: explain(images=x, **options))(IMAGES)
    np.testing.assert_array_equal(compiled.coarse_segments, found.coarse_segments)
    scale = float(jnp.abs(found.heatmap).max())
    np.testing.assert_allclose(compiled.heatmap, found.heatmap, atol=2e-3 * scale)


def _interacting(_, images):
    """Superpixels that only matter together, or where another is hidden."""
    x = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    p = 0.1 + 0.4 * x[:, 5] * x[:, 0] + 0.3 * jnp.maximum(x[:, 3], x[:, 10])
    return jnp.stack([jnp.log(p), jnp.log(1 - p)], 1)


def test_errors_are_as_large_as_told_and_smaller_with_pairs_and_control():
    found = {}
    model = Model.from_function(_interacting, None)
    for name, ways in {"alone": PLAIN, "both": {"control": True}}.items():
        runs = jax.vmap(
            lambda key, ways=ways: explain(
                model,
                images=jnp.ones((1, 8, 8, 1)),
                targets=jnp.array([0]),
                features="none",
                key=key,
                num_samples=256,
                chunk=256,
                coarse_penalty=0.0,
                fine_penalty=1e-4,
                **ways,
            )
        )(jax.random.split(KEY, 24))
        for scale, told, values in (
            ("fine", runs.fine_stderr, runs.fine_importances),
            ("coarse", runs.coarse_stderr[..., :4], runs.coarse_importances[..., :4]),
        ):
            values = np.asarray(values[:, 0])
            spread = values.std(0, ddof=1)
            told = np.sqrt((np.asarray(told[:, 0]) ** 2).mean(0))
            assert 0.7 < np.sqrt((told**2).mean() / (spread**2).mean()) < 1.4
            found[name, scale] = values.mean(0), (spread**2).mean()
    for scale in ("fine", "coarse"):
        (alone, variance), (both, smaller) = found["alone", scale], found["both", scale]
        assert smaller < 0.5 * variance
        assert np.abs(both - alone).max() < 5 * np.sqrt(variance / 24)


def test_normalised_features_do_not_depend_on_the_scale_of_a_layer():
    larger = dict(MODEL.params, deep=MODEL.params["deep"] * 8, out=MODEL.params["out"] / 8)
    scaled = Model(**{**MODEL.__dict__, "params": larger})
    one, other = (explain(m, features="normalised") for m in (MODEL, scaled))
    np.testing.assert_allclose(other.coarse_weights, one.coarse_weights, atol=1e-3)


def test_samples_are_drawn_until_the_error_is_small():
    seen = []
    found = explain(num_samples=2048, tolerance=0.02, progress=lambda *r: seen.append(r))
    assert found.samples == seen[-1][0] < 2048
    assert seen[-1][2] <= 0.02


def test_layers_are_chosen_by_the_network():
    assert mint.deep_layer(MODEL) == "deep"
    assert mint.shallow_layer(MODEL) == "shallow"
    assert mint.shallow_layer(MODEL, "deep") == "deep"


@pytest.mark.parametrize(
    ("name", "shallow", "deep"),
    [("vgg16", "conv1_2", "conv5_3"), ("inception_v3", "Conv2d_2b_3x3", "Mixed_7c")],
)
def test_layers_of_the_papers_networks_are_presets(name, shallow, deep):
    model = outline(name)
    assert mint.shallow_layer(model) == shallow
    assert mint.deep_layer(model) == deep
    fields = {layer.name: layer for layer in model.layers()}
    assert len(fields[shallow].shape) == len(fields[deep].shape) == 3
    assert fields[shallow].shape[0] > 8 * fields[deep].shape[0]


def test_constant_predictions_leave_nothing_to_explain():
    flat = Model.from_black_box(lambda x: np.zeros((len(x), 2), np.float32), 2)
    found = explain(flat, jnp.ones((1, 8, 8, 1)), jnp.array([0]), features="none")
    for values in (found.coarse_weights, found.fine_weights, found.heatmap, found.fine_stderr):
        np.testing.assert_array_equal(values, 0)
    np.testing.assert_allclose(found.prediction, 0.5)


def test_answers_that_are_not_finite_are_counted_and_refused():
    def box(images):
        found = _planted(images)
        return np.where((images[:, 0, 0, 0] == 0)[:, None], np.nan, found)

    hidden = int((states(Draw(KEY, True, 1), jnp.arange(128), 16)[:, 0] == 0).sum())
    with pytest.raises(ValueError, match=f"{hidden} of 128 perturbed copies of image 0"):
        explain(
            Model.from_black_box(box, 2), jnp.ones((1, 8, 8, 1)), jnp.array([0]), features="none"
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"segments": (FINE, COARSE)}, ValueError, "fine superpixel 0 lies in coarse"),
        ({"segments": FINE}, ValueError, "a pair"),
        ({"segments": (COARSE[:4], FINE)}, ValueError, r"shape \(4, 8\)"),
        ({"segments": (COARSE * 0, FINE * 0)}, ValueError, "at least 2"),
        ({"segments": (COARSE * 1.0, FINE)}, TypeError, "float64"),
        ({"num_samples": 15}, ValueError, "num_samples=15 for the 16 superpixels"),
        ({"width": 0.0}, ValueError, "width"),
        ({"coarse_penalty": 1.0}, ValueError, "coarse_penalty"),
        ({"fine_weight": 0.0}, ValueError, "fine_weight"),
        ({"fine_rho": -1.0}, ValueError, "fine_rho must be"),
        ({"coupling": 1.0}, ValueError, "coupling has no meaning for method 'eliminated'"),
        ({"method": "newton"}, ValueError, "method='newton'"),
        ({"layer": "depp"}, ValueError, "nearest: deep"),
        ({"shallow": "logits"}, ValueError, "logits"),
        ({"targets": jnp.array([0, 3])}, ValueError, "3 classes"),
        ({"model": Model.from_black_box(_planted, 2)}, ValueError, "black box"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, message):
    with pytest.raises(error, match=message):
        explain(**change)


def test_every_state_of_the_reference_is_a_state_of_the_method():
    s = np.asarray(states(Draw(KEY, True, 1), jnp.arange(64), 2))
    assert {tuple(row) for row in s} == set(itertools.product([0.0, 1.0], repeat=2))
