import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation import saliency_detection

DRAW = np.random.default_rng(0)
MAPS = DRAW.uniform(-3, 5, (6, 7, 8)).astype(np.float32) ** 3
MASKS = DRAW.uniform(size=(6, 7, 8)) < 0.3


def by_hand(heatmap, mask, beta_squared):
    s = (heatmap.astype(np.float64) - heatmap.min()) / np.ptp(heatmap.astype(np.float64))
    marked = s >= min(2 * s.mean(), s.max())
    precision = (marked & mask).sum() / marked.sum()
    recall = (marked & mask).sum() / mask.sum()
    f = (1 + beta_squared) * precision * recall / (beta_squared * precision + recall)
    return precision, recall, f, np.abs(s - mask).mean()


@pytest.mark.parametrize("beta_squared", [0.3, 1.0])
def test_equals_the_definition(beta_squared):
    found = saliency_detection(MAPS, MASKS, beta_squared=beta_squared)
    expected = [by_hand(m, t, beta_squared) for m, t in zip(MAPS, MASKS, strict=True)]
    np.testing.assert_allclose(np.stack(found, 1), expected, atol=1e-5)


def test_map_that_is_mostly_bright_is_cut_at_its_maximum():
    heatmap = np.ones((1, 2, 4), np.float32)
    heatmap[0, 0, 0] = 0  # twice the mean is beyond 1
    mask = heatmap > 0
    found = saliency_detection(heatmap, mask)
    assert [value.item() for value in found] == [1.0, 1.0, 1.0, 0.0]


def test_map_without_preference_finds_nothing_and_broken_ones_are_no_answer():
    maps = np.stack([np.full((4, 4), 2.0), np.eye(4), np.eye(4)]).astype(np.float32)
    maps[2, 0, 0] = np.nan
    masks = np.stack([np.eye(4), np.zeros((4, 4)), np.eye(4)]).astype(bool)
    found = saliency_detection(maps, masks)
    assert [value[0].item() for value in found] == [0, 0, 0, 0.25]
    for value in found:
        assert jnp.isnan(value[1:]).all()


def test_beta_is_positive():
    with pytest.raises(ValueError, match="beta_squared=0"):
        inspect.unwrap(saliency_detection)(MAPS, MASKS, beta_squared=0)
