"""RISE against the explicit sum over its masks, and its masks against their definition."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimised import IMAGES, MODEL, SIZE, TARGETS

from jaxplain.methods import rise
from jaxplain.methods.rise import rise_masks
from jaxplain.model import Model

KEY = jax.random.key(5)
COUNT = 24
sampled = functools.partial(rise, key=KEY, samples=COUNT, grid=3)


@pytest.mark.parametrize("probability", [0.5, 0.2])
@pytest.mark.parametrize("antithetic", [False, True])
def test_mean_of_the_masks_is_the_probability_at_every_pixel(probability, antithetic):
    masks = rise_masks(
        KEY, jnp.arange(4000), (9, 14), grid=4, probability=probability, antithetic=antithetic
    )
    assert masks.shape == (4000, 1 + antithetic, 9, 14)
    assert 0 <= float(masks.min()) < float(masks.max()) <= 1 + 1e-6
    # Four standard errors of what varies most, a mask of zeros and ones.
    bound = 4 * math.sqrt(probability * (1 - probability) / 4000)
    np.testing.assert_allclose(masks.mean((0, 1)), probability, atol=bound)
    if antithetic and probability == 0.5:
        np.testing.assert_allclose(masks.sum(1), 1, atol=1e-6)


def test_masks_are_cut_out_of_enlarged_grids():
    size, grid = (9, 14), 4
    mask = np.asarray(rise_masks(KEY, jnp.array([7]), size, grid=grid)[0, 0])
    cells_key, *offset_keys = jax.random.split(jax.random.fold_in(KEY, 7), 3)
    cells = (jax.random.uniform(cells_key, (grid, grid)) < 0.5).astype(jnp.float32)
    cell = [math.ceil(n / grid) for n in size]
    large = jax.image.resize(cells, tuple((grid + 1) * c for c in cell), "bilinear")
    top, left = (
        int(jax.random.randint(k, (), 0, c)) for k, c in zip(offset_keys, cell, strict=True)
    )
    np.testing.assert_allclose(mask, large[top : top + 9, left : left + 14], atol=1e-6)


@pytest.mark.parametrize("chunk", [7, 24])
@pytest.mark.parametrize("antithetic", [False, True])
def test_equals_the_explicit_sum(chunk, antithetic):
    found = sampled(MODEL, IMAGES, TARGETS, antithetic=antithetic, chunk=chunk, baseline=0.3)
    each = 1 + antithetic
    masks = rise_masks(KEY, jnp.arange(COUNT // each), SIZE[:2], grid=3, antithetic=antithetic)
    masks = np.asarray(masks, np.float64)
    wide = masks[:, :, None, ..., None]  # (pairs, each, 1, H, W, 1)
    shown = np.asarray(IMAGES) * wide + 0.3 * (1 - wide)
    logits = np.asarray(jax.jit(MODEL)(shown.reshape(-1, *SIZE).astype(np.float32)), np.float64)
    f = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    f = f.reshape(-1, each, 2, 4)[..., [0, 1], np.asarray(TARGETS)]
    terms = (f[..., None, None] * masks[:, :, None] / 0.5).mean(1)
    np.testing.assert_allclose(found.heatmap, terms.mean(0), atol=1e-5)
    np.testing.assert_allclose(
        found.stderr, terms.std(0, ddof=1) / math.sqrt(len(terms)), atol=1e-5
    )
    np.testing.assert_array_equal(found.samples, COUNT)


def test_standard_error_is_that_of_the_map():
    maps = jnp.stack(
        [sampled(MODEL, IMAGES, TARGETS, key=jax.random.key(n)).heatmap for n in range(60)]
    )
    said = sampled(MODEL, IMAGES, TARGETS, samples=2400).stderr * 10
    np.testing.assert_allclose(said.mean(), maps.std(0).mean(), rtol=0.15)


def test_pairs_of_opposites_need_fewer_forwards_for_the_same_error():
    plain = sampled(MODEL, IMAGES, TARGETS, samples=2400).stderr
    pairs = sampled(MODEL, IMAGES, TARGETS, samples=2400, antithetic=True).stderr
    assert float((pairs**2).mean() / (plain**2).mean()) < 0.5


def test_stops_for_each_image_when_its_error_is_small():
    run = functools.partial(rise, key=KEY, grid=3, samples=3000, tolerance=0.1, chunk=20)
    found = run(MODEL, IMAGES, TARGETS)
    assert (found.samples < 3000).all()
    assert (found.samples % 20 == 0).all()
    ratio = found.stderr.mean((1, 2)) / jnp.ptp(found.heatmap, (1, 2))
    assert (ratio <= 0.1).all()
    for number in range(2):
        one = np.s_[number : number + 1]
        alone = run(MODEL, IMAGES[one], TARGETS[one])
        np.testing.assert_array_equal(alone.samples, found.samples[one])
        np.testing.assert_allclose(alone.heatmap, found.heatmap[one], atol=1e-5)


def test_black_boxes_are_called_once_a_chunk_for_all_targets():
    sizes = []

    def box(images):
        sizes.append(len(images))
        return np.stack([images[:, :5].mean((1, 2, 3)), images[:, 5:].mean((1, 2, 3))], 1)

    model = Model.from_black_box(box, 2, name="halves")
    images = np.ones((1, *SIZE), np.float32)
    found = jax.vmap(
        lambda t: rise(model, images, t, key=KEY, samples=400, chunk=100, score="logit").heatmap
    )(jnp.array([[0], [1]]))
    assert sizes == [100] * 4
    upper = found[:, 0, :5].mean((1, 2)) - found[:, 0, 5:].mean((1, 2))
    assert float(upper[0]) > 0.01
    assert float(upper[1]) < -0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples=1"),
        ({"samples": 5, "antithetic": True}, "samples=5: expected an even number"),
        ({"grid": 0}, "grid=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"probability": 1.0}, "probability=1.0"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampled(MODEL, IMAGES, TARGETS, **options)
