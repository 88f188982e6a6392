"""Scores and the check of targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.scores import SCORES, check_targets, score_fn

LOGITS = jnp.array([[1.0, 3.0, -2.0], [0.5, 0.0, 4.0]])
TARGETS = jnp.array([0, 2])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("logit", [1.0, 4.0]),
        ("probability", softmax(np.asarray(LOGITS))[[0, 1], [0, 2]]),
        ("log_probability", np.log(softmax(np.asarray(LOGITS)))[[0, 1], [0, 2]]),
        ("contrast", [1.0 - 3.0, 4.0 - 0.5]),
    ],
)
def test_scores(name, expected):
    np.testing.assert_allclose(score_fn(name)(LOGITS, TARGETS), expected, rtol=1e-6)


def test_independent_classes_have_sigmoids():
    chances = 1 / (1 + np.exp(-np.array([1.0, 4.0])))
    for name, expected in (("probability", chances), ("log_probability", np.log(chances))):
        run = score_fn(name, multilabel=True)
        np.testing.assert_allclose(run(LOGITS, TARGETS), expected, rtol=1e-5)
        assert np.isnan(run(LOGITS, jnp.array([0, 3]))).tolist() == [False, True]
    for name in ("logit", "contrast"):
        assert score_fn(name, multilabel=True) is score_fn(name)
    with pytest.raises(ValueError, match="unknown score 'probably'; nearest: probability"):
        score_fn("probably", multilabel=True)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_derivatives(name, multilabel):
    run = score_fn(name, multilabel=multilabel)
    found = jax.grad(lambda z: run(z, TARGETS).sum())(LOGITS)
    for i, j in np.ndindex(LOGITS.shape):
        step = jnp.zeros_like(LOGITS).at[i, j].set(1e-2)
        numeric = (run(LOGITS + step, TARGETS) - run(LOGITS - step, TARGETS)).sum() / 2e-2
        np.testing.assert_allclose(found[i, j], numeric, atol=2e-3)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("target", [3, -1])
def test_a_class_that_does_not_exist_gives_nan_under_jit(name, target):
    run = jax.jit(lambda z, t: jax.value_and_grad(lambda z: score_fn(name)(z, t).sum())(z))
    value, gradient = run(LOGITS[:1], jnp.array([target]))
    assert jnp.isnan(value)
    assert jnp.isnan(gradient).any()


def test_infinite_logits_of_other_classes_do_no_harm():
    logits = jnp.array([[1.0, -jnp.inf]])
    value, gradient = jax.value_and_grad(lambda z: score_fn("logit")(z, jnp.array([0])).sum())(
        logits
    )
    assert float(value) == 1
    np.testing.assert_array_equal(gradient, [[1.0, 0.0]])


def test_a_function_is_a_score():
    assert score_fn(jnp.add) is jnp.add


def test_an_unknown_score_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'logits'; nearest: logit"):
        score_fn("logits")


def test_good_targets_pass():
    np.testing.assert_array_equal(check_targets(np.array([0, 2]), LOGITS), [0, 2])


def test_targets_must_be_integers():
    with pytest.raises(TypeError, match="float32; expected integers"):
        check_targets(np.array([0.0, 2.0], np.float32), LOGITS)


@pytest.mark.parametrize("targets", [[0], [0, 1, 2], [[0, 1]]])
def test_targets_must_be_one_an_image(targets):
    with pytest.raises(ValueError, match=r"expected \(2,\)"):
        check_targets(np.array(targets), LOGITS)


@pytest.mark.parametrize("targets", [[0, 3], [-1, 0]])
def test_targets_must_exist(targets):
    with pytest.raises(ValueError, match="3 classes"):
        check_targets(np.array(targets), LOGITS)
