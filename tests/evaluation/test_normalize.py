import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation.normalize import check_pair, constant, finite, min_max


def test_each_map_is_scaled_by_itself():
    maps = jnp.array([[[1.0, 2.0], [3.0, 5.0]], [[-8.0, 0.0], [0.0, 8.0]]])
    expected = [[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.5], [0.5, 1.0]]]
    np.testing.assert_allclose(min_max(maps), expected, rtol=1e-6)


def test_extremes_are_exact():
    maps = jax.random.normal(jax.random.key(0), (200, 7, 5)) * 3.7
    scaled = min_max(maps)
    assert (scaled.max((1, 2)) == 1).all()
    assert (scaled.min((1, 2)) == 0).all()


def test_constant_map_becomes_zero():
    maps = jnp.stack([jnp.full((3, 4), value) for value in (0.0, -2.5, 1e30)])
    assert (min_max(maps) == 0).all()
    assert constant(maps).all()


def test_map_that_spans_the_float_range_does_not_overflow():
    scaled = min_max(jnp.array([[[-3e38, 0.0, 3e38]]]))
    np.testing.assert_allclose(scaled, [[[0.0, 0.5, 1.0]]], rtol=1e-6)


@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf, -jnp.inf])
def test_broken_map_is_nan_everywhere_and_its_neighbour_is_untouched(broken):
    maps = jnp.array([[[0.0, 1.0, 2.0]], [[0.0, broken, 2.0]]])
    scaled = min_max(maps)
    assert finite(maps).tolist() == [True, False]
    assert jnp.isnan(scaled[1]).all()
    np.testing.assert_array_equal(scaled[0], [[0.0, 0.5, 1.0]])


def test_half_precision_is_widened():
    assert min_max(jnp.ones((1, 2, 2), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("maps", "masks", "error", "message"),
    [
        (np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), bool), TypeError, "heatmaps .*int.*floats"),
        (np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), TypeError, "masks .*float.*bool"),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), ValueError, r"heatmaps .*\(2, 2\)"),
        (np.zeros((1, 2, 2)), np.zeros((2, 2, 2), bool), ValueError, r"masks .*\(2, 2, 2\)"),
    ],
)
def test_mismatched_pairs_are_refused_by_name(maps, masks, error, message):
    with pytest.raises(error, match=message):
        check_pair(maps, masks)
