import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation import fast_gradient_sign, rank_correlation
from jaxplain.model import Model

MODEL = Model.from_function(
    lambda w, x: jnp.einsum("bhwc,hwck->bk", jnp.tanh(x), w),
    jax.random.normal(jax.random.key(0), (5, 6, 3, 4)),
)
IMAGES = jax.random.normal(jax.random.key(1), (3, 5, 6, 3)) / 4
TARGETS = MODEL(IMAGES).argmax(-1)


def test_attack_takes_the_class_and_moves_every_pixel_by_epsilon():
    attacked = fast_gradient_sign(MODEL, IMAGES, TARGETS, 0.3)
    np.testing.assert_allclose(jnp.abs(attacked - IMAGES), 0.3, atol=1e-6)
    before, after = (jax.nn.softmax(MODEL(x))[jnp.arange(3), TARGETS] for x in (IMAGES, attacked))
    assert (after < before).all()
    assert (MODEL(attacked).argmax(-1) != TARGETS).all()
    np.testing.assert_array_equal(fast_gradient_sign(MODEL, IMAGES, TARGETS, 0.0), IMAGES)


def test_attack_goes_down_the_gradient_of_the_loss():
    def loss(x):
        return -jax.nn.log_softmax(MODEL(x))[jnp.arange(3), TARGETS].sum()

    expected = IMAGES + 0.1 * jnp.sign(jax.grad(loss)(IMAGES))
    found = fast_gradient_sign(MODEL, IMAGES, TARGETS, 0.1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def spearman(a, b):
    """Pearson's correlation of mean ranks, by comparing all pairs."""

    def ranks(v):
        return (v[None] < v[:, None]).sum(1) + ((v[None] == v[:, None]).sum(1) + 1) / 2

    return np.corrcoef(ranks(a.ravel()), ranks(b.ravel()))[0, 1]


@pytest.mark.parametrize("levels", [3, 10**6])
def test_correlation_is_that_of_mean_ranks(levels):
    draw = np.random.default_rng(levels)
    first = draw.integers(0, levels, (4, 6, 7)).astype(np.float32)
    second = first + draw.integers(0, levels, (4, 6, 7)).astype(np.float32)
    expected = [spearman(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-5)


def test_large_maps_keep_their_precision():
    first = np.random.default_rng(0).normal(size=(1, 224, 224)).astype(np.float32)
    assert abs(float(rank_correlation(first, first)[0]) - 1) < 1e-5
    assert abs(float(rank_correlation(first, first[:, ::-1])[0])) < 0.02


def test_maps_without_an_order_have_no_correlation():
    maps = jnp.stack([jnp.ones((2, 3)), jnp.arange(6.0).reshape(2, 3)])
    broken = maps.at[1, 0, 0].set(jnp.nan)
    assert jnp.isnan(rank_correlation(maps, broken)).all()
    assert jnp.isnan(rank_correlation(maps, maps)).tolist() == [True, False]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="epsilon=-1"):
        fast_gradient_sign(MODEL, IMAGES, TARGETS, -1.0)
    with pytest.raises(ValueError, match=r"shapes \(1, 2, 3\) and \(1, 3, 2\)"):
        inspect.unwrap(rank_correlation)(jnp.ones((1, 2, 3)), jnp.ones((1, 3, 2)))
