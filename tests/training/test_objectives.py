"""Losses and scores against closed forms and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss

from jaxplain.training.objectives import (
    OBJECTIVES,
    average_precision,
    find_objective,
    mean_average_precision,
)

SOFTMAX, MULTILABEL = OBJECTIVES["softmax"], OBJECTIVES["multilabel"]


def drawn(seed, shape=(40, 5)):
    random = np.random.default_rng(seed)
    # A few values only, so that there are ties.
    return random.integers(-6, 7, shape) / 2.0, random.integers(0, 2, shape).astype(np.int8)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns(seed):
    scores, labels = drawn(seed)
    for column in range(5):
        expected = average_precision_score(labels[:, column], scores[:, column])
        found = average_precision(scores[:, column], labels[:, column])
        assert found == pytest.approx(expected, abs=1e-12)
    expected = average_precision_score(labels, scores, average="macro")
    assert mean_average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_pictures_that_do_not_count_do_not_matter():
    scores, labels = drawn(0)
    counted = np.random.default_rng(1).random(labels.shape) < 0.7
    some = np.where(counted, labels, -1).astype(np.int8)
    for column in range(5):
        rows = counted[:, column]
        expected = average_precision(scores[rows, column], labels[rows, column])
        assert average_precision(scores[:, column], some[:, column]) == expected
    loss = float(MULTILABEL.loss(jnp.asarray(scores, jnp.float32), jnp.asarray(some)))
    chances = 1 / (1 + np.exp(-scores))
    assert loss == pytest.approx(log_loss(labels[counted], chances[counted]), rel=1e-5)
    slopes = jax.grad(lambda z: MULTILABEL.loss(z, jnp.asarray(some)))(
        jnp.asarray(scores, jnp.float32)
    )
    expected = np.where(counted, (chances - labels) / counted.sum(), 0)
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-8)
    right = float(MULTILABEL.right(jnp.asarray(scores), jnp.asarray(some)))
    assert right == pytest.approx(np.mean(((scores > 0) == labels)[counted]))


def test_a_class_that_no_picture_shows_is_left_out():
    assert np.isnan(average_precision(np.array([1.0, 2.0]), np.array([0, -1])))
    labels = np.array([[1, 0], [0, 0]])
    assert mean_average_precision(np.array([[0.0, 1.0], [1.0, 0.0]]), labels) == 0.5
    assert float(MULTILABEL.loss(jnp.ones((2, 2)), jnp.full((2, 2), -1))) == 0


def test_one_class_a_picture():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], np.float32)
    labels = np.array([0, 2])
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = float(SOFTMAX.loss(jnp.asarray(logits), jnp.asarray(labels)))
    assert loss == pytest.approx(log_loss(labels, chances, labels=[0, 1, 2]), rel=1e-6)
    assert float(SOFTMAX.right(jnp.asarray(logits), jnp.asarray(labels))) == 0.5
    assert SOFTMAX.score(logits, labels) == 0.5


def test_an_unknown_head_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown head 'multi'; nearest: multilabel"):
        find_objective("multi")
