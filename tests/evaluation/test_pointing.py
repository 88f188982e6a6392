import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation.baselines import centre_map
from jaxplain.evaluation.pointing import pointing_game, scaled_tolerance


def pixels(*places, shape=(224, 224)) -> np.ndarray:
    mask = np.zeros((1, *shape), bool)
    mask[0, *np.array(places).T] = True
    return mask


def point(y: int, x: int, shape=(224, 224)) -> np.ndarray:
    return pixels((y, x), shape=shape).astype(np.float32)


def naive_score(heatmap: np.ndarray, mask: np.ndarray, tolerance: float) -> float:
    truth = np.argwhere(mask)
    hits = [
        any(math.dist(peak, pixel) < tolerance or tuple(peak) == tuple(pixel) for pixel in truth)
        for peak in np.argwhere(heatmap == heatmap.max())
    ]
    return sum(hits) / len(hits)


@pytest.mark.parametrize(
    ("dy", "dx", "hit"),
    [
        (0, 0, 1),
        (0, 14, 1),
        (14, 0, 1),
        (-14, 0, 1),
        (0, -14, 1),
        (0, 15, 0),
        (15, 0, 0),
        (-15, 0, 0),
        (9, 11, 1),
        (9, 12, 0),
        (100, 100, 0),
    ],
)
def test_fourteen_pixels_hit_and_fifteen_miss(dy, dx, hit):
    assert float(pointing_game(point(110 + dy, 110 + dx), pixels((110, 110)))[0]) == hit


@pytest.mark.parametrize(("distance", "hit"), [(7, 1), (8, 0)])
def test_tolerance_scales_with_the_shorter_side(distance, hit):
    shape = (112, 200)
    assert scaled_tolerance(shape) == 7.5
    score = pointing_game(point(50, 50 + distance, shape), pixels((50, 50), shape=shape))
    assert float(score[0]) == hit


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0])
def test_plain_game_wants_the_mask_itself(tolerance):
    mask = pixels((5, 5), shape=(12, 12))
    hits = [
        float(pointing_game(point(5, x, (12, 12)), mask, tolerance=tolerance)[0]) for x in (4, 5, 6)
    ]
    assert hits == [0, 1, 0]


@pytest.mark.parametrize("tolerance", [0.0, 1.5, 3.0, 4.3, 100.0])
def test_equals_the_naive_search(tolerance):
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 12, (6, 11, 8)).astype(np.float32)
    masks = generator.random((6, 11, 8)) < 0.04
    masks[:, 3, 1] = True
    expected = [naive_score(*pair, tolerance) for pair in zip(maps, masks, strict=True)]
    np.testing.assert_allclose(pointing_game(maps, masks, tolerance=tolerance), expected, rtol=1e-6)


def test_tied_maxima_score_their_share_of_hits():
    heatmap = jnp.array([[[2.0, 2.0, 0.0, 2.0, 2.0]]])
    mask = jnp.array([[[True, False, True, False, False]]])
    assert float(pointing_game(heatmap, mask, tolerance=0.0)[0]) == 0.25


def test_constant_map_scores_what_pointing_at_random_does():
    mask = jnp.zeros((1, 10, 10), bool).at[0, :2, :3].set(True)
    for value in (0.0, -1.0):
        score = pointing_game(jnp.full((1, 10, 10), value), mask, tolerance=0.0)
        np.testing.assert_allclose(score, [0.06], rtol=1e-6)


def test_maximum_is_the_largest_value_not_the_largest_magnitude():
    heatmap = jnp.array([[[-9.0, -1.0]]])
    assert float(pointing_game(heatmap, jnp.array([[[False, True]]]), tolerance=0.0)[0]) == 1


def test_undefined_images_are_nan():
    maps = jnp.stack([jnp.eye(4), jnp.eye(4).at[0, 0].set(jnp.inf), jnp.eye(4)])
    masks = jnp.ones((3, 4, 4), bool).at[2].set(False)
    assert jnp.isnan(pointing_game(maps, masks)).tolist() == [False, True, True]


def test_centre_map_points_at_the_centre_of_odd_and_even_images():
    for shape, places in (((5, 7), [(2, 3)]), ((4, 6), [(1, 2), (1, 3), (2, 2), (2, 3)])):
        cone = np.asarray(centre_map(*shape))[None]
        assert np.argwhere(cone[0] == cone.max()).tolist() == [list(place) for place in places]
        assert float(pointing_game(cone, pixels(*places, shape=shape), tolerance=0.0)[0]) == 1
        score = pointing_game(cone, pixels(places[0], shape=shape), tolerance=0.0)
        assert float(score[0]) == 1 / len(places)


def test_works_under_jit_and_vmap():
    maps = jax.random.uniform(jax.random.key(1), (5, 16, 16))
    masks = jax.random.bernoulli(jax.random.key(2), 0.1, maps.shape)
    expected = pointing_game(maps, masks)
    np.testing.assert_array_equal(jax.jit(pointing_game)(maps, masks), expected)
    one = jax.vmap(lambda heatmap, mask: pointing_game(heatmap[None], mask[None])[0])
    np.testing.assert_array_equal(one(maps, masks), expected)


@pytest.mark.parametrize("tolerance", [-1.0, math.inf, math.nan])
def test_impossible_tolerances_are_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance"):
        pointing_game(jnp.ones((1, 2, 2)), jnp.ones((1, 2, 2), bool), tolerance=tolerance)
