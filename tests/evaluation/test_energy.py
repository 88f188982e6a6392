import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation.baselines import random_maps
from jaxplain.evaluation.energy import energy_inside
from jaxplain.evaluation.mask_iou import mask_iou
from jaxplain.evaluation.pointing import pointing_game


def test_equals_the_naive_sum():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(5, 6, 7)).astype(np.float32)
    masks = generator.random((5, 6, 7)) < 0.4
    positive = np.maximum(maps.astype(np.float64), 0)
    expected = (positive * masks).sum((1, 2)) / positive.sum((1, 2))
    np.testing.assert_allclose(energy_inside(maps, masks), expected, rtol=1e-5)


def test_all_inside_is_one_and_all_outside_is_zero():
    mask = jax.random.bernoulli(jax.random.key(0), 0.3, (1, 50, 50))
    values = jax.random.uniform(jax.random.key(1), mask.shape, minval=0.1)
    assert float(energy_inside(values * mask, mask)[0]) == 1
    assert float(energy_inside(values * ~mask, mask)[0]) == 0


def test_constant_positive_map_scores_the_share_of_the_mask():
    mask = jnp.zeros((1, 10, 10), bool).at[0, :2, :3].set(True)
    np.testing.assert_allclose(energy_inside(jnp.full((1, 10, 10), 2.0), mask), [0.06], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 6e37])
def test_scale_does_not_matter(scale):
    mask = jnp.array([[[True, False, False, False]]])
    heatmap = jnp.array([[[3.0, 4.0, 5.0, -5.0]]])
    np.testing.assert_allclose(energy_inside(heatmap * scale, mask), [0.25], rtol=1e-5)


def test_undefined_where_nothing_is_positive_or_finite_or_masked():
    maps = jnp.array(
        [[[0.0, 0.0]], [[-1.0, 0.0]], [[jnp.nan, 1.0]], [[jnp.inf, 1.0]], [[1.0, 1.0]]]
    )
    masks = jnp.ones((5, 1, 2), bool).at[4].set(False)
    assert jnp.isnan(energy_inside(maps, masks)).all()


def test_random_maps_score_what_chance_predicts():
    share, size = 0.2, 100
    mask = jnp.zeros((20, size, size), bool).at[:, : int(share * size)].set(True)
    maps = random_maps(jax.random.key(3), 20, size, size)
    # 200,000 pixels: standard errors near 1e-3.
    np.testing.assert_allclose(energy_inside(maps, mask).mean(), share, atol=0.01)
    np.testing.assert_allclose(pointing_game(maps, mask, tolerance=0.0).mean(), share, atol=0.4)
    result = mask_iou(maps, mask)
    kept = 1 - np.asarray(result.thresholds)
    expected = kept * share / (kept + share - kept * share)
    np.testing.assert_allclose(result.mean_curve, expected, atol=0.01)
