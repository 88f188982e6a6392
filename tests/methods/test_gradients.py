"""Gradients against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jaxplain.methods import METHODS, gradient, integrated_gradients, saliency, smooth_grad
from jaxplain.model import Model

SHAPE = (2, 5, 4, 3)
X = jax.random.normal(jax.random.key(1), SHAPE)
WEIGHTS = jax.random.normal(jax.random.key(2), (*SHAPE[1:], 2))
T = jnp.array([1, 0])


def _power(degree: int) -> Model:
    """Logits sum_p w_p x_p^degree: the gradient is degree w x^(degree - 1)."""
    return Model.from_function(
        lambda w, x: jnp.einsum("bhwc,hwck->bk", x**degree, w, precision="highest"), WEIGHTS
    )


def _weights(targets):
    return jnp.moveaxis(WEIGHTS, -1, 0)[targets]


def test_saliency_of_a_linear_model_is_the_largest_weight():
    found = saliency(_power(1), X, T)
    np.testing.assert_allclose(found, jnp.abs(_weights(T)).max(-1), rtol=1e-6)


@pytest.mark.parametrize(("rule", "exact_degree"), [("trapezoid", 2), ("midpoint", 2)])
def test_integrated_gradients_are_exact_where_the_quadrature_is(rule, exact_degree):
    found = integrated_gradients(_power(exact_degree), X, T, steps=3, rule=rule, baseline=0.5)
    np.testing.assert_allclose(found.attribution, _weights(T) * (X**2 - 0.25), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(found.gap, 0, atol=1e-3)


@pytest.mark.parametrize("rule", ["trapezoid", "midpoint"])
def test_gap_shrinks_as_the_quadrature_says(rule):
    """For x^4 from 0 the error of n steps is proportional to 1 / n^2."""
    gaps = [integrated_gradients(_power(4), X, T, steps=n, rule=rule).gap for n in (4, 8, 16)]
    np.testing.assert_allclose(gaps[0] / gaps[1], 4, rtol=0.1)
    np.testing.assert_allclose(gaps[1] / gaps[2], 4, rtol=0.1)


def test_gap_is_what_the_attributions_miss():
    model = _power(3)
    found = integrated_gradients(model, X, T, steps=5)
    rise = jnp.take_along_axis(model(X) - model(X * 0), T[:, None], 1)[:, 0]
    np.testing.assert_allclose(
        found.gap + found.attribution.sum((1, 2, 3)), rise, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("rule", ["trapezoid", "midpoint"])
@pytest.mark.parametrize("chunk", [2, 5, 64])
def test_integrated_gradients_do_not_depend_on_the_chunk(rule, chunk):
    alone = integrated_gradients(_power(3), X, T, steps=7, rule=rule, chunk=1)
    np.testing.assert_allclose(
        integrated_gradients(_power(3), X, T, steps=7, rule=rule, chunk=chunk).attribution,
        alone.attribution,
        rtol=1e-4,
        atol=1e-5,
    )


def _noise(key, samples):
    spread = 0.2 * (X.max((1, 2, 3), keepdims=True) - X.min((1, 2, 3), keepdims=True))
    patterns = [jax.random.normal(jax.random.fold_in(key, i), SHAPE[1:]) for i in range(samples)]
    return np.stack([X + spread * p[None] for p in patterns]).astype(np.float64)


@pytest.mark.parametrize("chunk", [1, 4, 50])
@pytest.mark.parametrize("kind", ["mean", "squared", "variance"])
def test_smooth_grad_is_the_statistic_of_the_gradients(kind, chunk):
    key, n = jax.random.key(5), 9
    g = 3 * np.asarray(_weights(T), np.float64) * _noise(key, n) ** 2
    found = smooth_grad(_power(3), X, T, key=key, samples=n, noise=0.2, kind=kind, chunk=chunk)
    centred = g - g.mean(0)
    expected = {
        "mean": (g.mean(0), g.std(0, ddof=1) / np.sqrt(n)),
        "squared": ((g**2).mean(0), (g**2).std(0, ddof=1) / np.sqrt(n)),
        "variance": (
            g.var(0, ddof=1),
            np.sqrt(np.maximum((centred**4).mean(0) - (centred**2).mean(0) ** 2, 0) / n),
        ),
    }[kind]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=5e-3, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", ["mean", "squared", "variance"])
def test_standard_error_is_honest(kind):
    """Over many keys the estimates scatter as the reported standard errors say."""
    found = jax.vmap(lambda key: smooth_grad(_power(2), X, T, key=key, samples=40, kind=kind))(
        jax.random.split(jax.random.key(0), 200)
    )
    scatter = jnp.std(found.attribution, axis=0)
    claimed = jnp.sqrt((found.stderr**2).mean(0))
    ratio = np.asarray(scatter / claimed)
    assert 0.9 < np.median(ratio) < 1.15


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 1}, "samples=1"), ({"chunk": 0}, "chunk=0"), ({"kind": "median"}, "'median'")],
)
def test_smooth_grad_refuses_bad_options(options, message):
    with pytest.raises((ValueError, TypeCheckError), match=message):
        smooth_grad(_power(2), X, T, key=jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("options", "message"), [({"steps": 0}, "steps=0"), ({"rule": "simpson"}, "'simpson'")]
)
def test_integrated_gradients_refuse_bad_options(options, message):
    with pytest.raises((ValueError, TypeCheckError), match=message):
        integrated_gradients(_power(2), X, T, **options)


def test_standard_error_of_the_map_is_that_of_the_channel_it_shows():
    model, key = _power(2), jax.random.key(3)
    found = smooth_grad(model, X, T, key=key, samples=16)
    shown = METHODS["smooth_grad"].explain(model, X, T, key=key)
    for b, h, w in np.ndindex(shown.heatmap.shape):
        channel = np.argmax(np.abs(found.attribution[b, h, w]))
        np.testing.assert_allclose(shown.stderr[b, h, w], found.stderr[b, h, w, channel], rtol=1e-5)


def test_probabilities_of_a_multilabel_model_are_sigmoids():
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
    several = Model.from_function(
        lambda w, x: x.mean((1, 2)) @ w,
        jnp.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]),
        multilabel=True,
    )
    targets = jnp.array([1, 2])
    expected = jax.grad(
        lambda x: jnp.take_along_axis(jax.nn.sigmoid(several(x)), targets[:, None], 1).sum()
    )(images)
    found = gradient(several, images, targets, score="probability")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
