"""Box occlusion, against patches laid one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation import box_occlusion
from jaxplain.evaluation.occlusion import occluded
from jaxplain.model import Model

KEY = jax.random.key(3)


def bright():
    """The logit of class 0 is the sum of the left half, of class 1 that of the right half."""

    def apply(_, x):
        halves = jnp.split(x.sum((1, 3)), 2, axis=-1)
        return jnp.stack([half.sum(-1) for half in halves], -1) / 16

    return Model.from_function(apply, input_shape=(16, 16, 1))


@pytest.mark.parametrize("patch", [1, 2, 5])
def test_patches_are_added_whole_until_the_share_is_covered(patch):
    heatmap = np.random.default_rng(0).uniform(size=(12, 9)).astype(np.float32)
    heatmap[2:4] = 0
    levels = (0.1, 0.3, 0.8)
    found = np.asarray(occluded(jnp.asarray(heatmap), KEY, patch=patch, levels=levels))
    # The same draws, one patch after the other.
    noise = np.asarray(jax.random.gumbel(KEY, heatmap.shape))
    score = np.where(heatmap > 0, np.log(np.where(heatmap > 0, heatmap, 1)), -1e6) + noise
    covered, step = np.zeros(heatmap.shape, bool), 0
    for place in np.argsort(-score, axis=None):
        y, x = np.unravel_index(place, heatmap.shape)
        top, left = y - patch // 2, x - patch // 2
        covered[max(0, top) : top + patch, max(0, left) : left + patch] = True
        while step < len(levels) and covered.mean() >= levels[step]:
            np.testing.assert_array_equal(found[step], covered)
            step += 1
    assert step == len(levels)


def test_positions_are_drawn_in_proportion_to_the_map():
    heatmap = jnp.array([[1.0, 3.0], [0.0, 4.0]])
    keys = jax.random.split(KEY, 4000)
    first = jax.vmap(lambda k: occluded(heatmap, k, patch=1, levels=(0.25,))[0])(keys)
    np.testing.assert_allclose(first.mean(0), heatmap / 8, atol=0.03)


def test_maps_that_know_the_evidence_cost_more_confidence():
    images, targets = jnp.ones((4, 16, 16, 1)), jnp.array([0, 1, 0, 1])
    left = jnp.broadcast_to(jnp.arange(16) < 8, (4, 16, 16))
    right_halves = jnp.where((targets == 0)[:, None, None], left, ~left).astype(jnp.float32)
    found = [
        box_occlusion(bright(), images, targets, maps, key=KEY, batch_size=3)
        for maps in (right_halves, jnp.ones_like(right_halves), 1 - right_halves)
    ]
    known, blind, wrong = (one.falls.mean() for one in found)
    assert known > blind > wrong
    np.testing.assert_allclose(found[0].before, 0.5, atol=1e-6)
    # 30 % of the image are 77 pixels of the half of 128.
    p = 1 / (1 + np.exp(77 / 16))
    np.testing.assert_allclose(found[0].after[:, -1], p, atol=0.02)
    assert (np.diff(found[0].after, axis=1) < 0).all()


def test_batches_change_nothing_and_keys_do():
    images = jax.random.uniform(jax.random.key(0), (3, 16, 16, 1))
    maps, targets = images[..., 0], jnp.array([0, 1, 1])
    one, other, drawn_again = (
        box_occlusion(bright(), images, targets, maps, key=key, batch_size=size).after
        for key, size in ((KEY, 2), (KEY, 3), (jax.random.key(4), 3))
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)
    assert not np.allclose(other, drawn_again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ()}, "levels are"),
        ({"levels": (0.3, 0.2)}, "levels are"),
        ({"levels": (0.5, 1.5)}, "levels are"),
        ({"patch": 0}, "patch is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"heatmaps": jnp.ones((2, 8, 8))}, "heatmaps have shape"),
        ({"heatmaps": jnp.full((2, 16, 16), jnp.nan)}, "NaN or infinity"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change, message):
    maps = change.pop("heatmaps", jnp.ones((2, 16, 16)))
    with pytest.raises(ValueError, match=message):
        box_occlusion(
            bright(), jnp.ones((2, 16, 16, 1)), jnp.array([0, 1]), maps, key=KEY, **change
        )
