"""Insertion and deletion against a loop over pixels."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation import insertion_deletion
from jaxplain.methods.descent import gaussian_blur
from jaxplain.model import Model

SIZE = (5, 6)
IMAGES = jax.random.normal(jax.random.key(0), (2, *SIZE, 3))
MAPS = jax.random.normal(jax.random.key(1), (2, *SIZE))
TARGETS = jnp.array([1, 0])
MODEL = Model.from_function(
    lambda w, x: jnp.einsum("bhwc,hwck->bk", jnp.tanh(x), w, precision="highest"),
    jax.random.normal(jax.random.key(2), (*SIZE, 3, 4)) / 3,
)


def by_loop(start, end, counts):
    """The target's probability while pixels of `end` replace those of `start`, highest first."""
    curves = []
    for image in range(2):
        order = np.argsort(-np.asarray(MAPS[image]).ravel(), kind="stable")
        curve = []
        for count in counts:
            shown = np.array(start[image]).reshape(30, 3)
            shown[order[:count]] = np.asarray(end[image]).reshape(30, 3)[order[:count]]
            logits = MODEL(shown.reshape(1, *SIZE, 3))
            curve.append(jax.nn.softmax(logits)[0, TARGETS[image]])
        curves.append(curve)
    return np.array(curves)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_equals_the_loop(chunk):
    found = insertion_deletion(MODEL, IMAGES, TARGETS, MAPS, steps=10, chunk=chunk, blur=1.0)
    counts = range(0, 31, 3)
    np.testing.assert_allclose(found.shares, np.arange(11) / 10)
    empty, blurred = jnp.zeros_like(IMAGES), gaussian_blur(IMAGES, 1.0)
    np.testing.assert_allclose(found.deletion, by_loop(IMAGES, empty, counts), atol=1e-5)
    np.testing.assert_allclose(found.insertion, by_loop(blurred, IMAGES, counts), atol=1e-5)
    for curve, area in (
        (found.deletion, found.deletion_area),
        (found.insertion, found.insertion_area),
    ):
        np.testing.assert_allclose(area, np.trapezoid(curve, dx=0.1), atol=1e-5)


def test_ends_are_the_image_and_what_replaces_it():
    found = insertion_deletion(MODEL, IMAGES, TARGETS, MAPS, steps=7, deleted=0.3, empty=0.3)
    probability = jax.nn.softmax(MODEL(IMAGES))[jnp.arange(2), TARGETS]
    np.testing.assert_allclose(found.deletion[:, 0], probability, atol=1e-6)
    np.testing.assert_allclose(found.insertion[:, -1], probability, atol=1e-6)
    np.testing.assert_allclose(found.deletion[:, -1], found.insertion[:, 0], atol=1e-6)


def test_only_the_order_of_the_pixels_counts():
    one, other = (
        insertion_deletion(MODEL, IMAGES, TARGETS, maps, steps=10) for maps in (MAPS, MAPS**3 * 50)
    )
    np.testing.assert_array_equal(one.deletion, other.deletion)


def test_the_best_order_beats_all_others():
    """In a network that adds up its pixels, deletion is best by contribution."""
    model = Model.from_function(lambda w, x: jnp.einsum("bhwc,hwck->bk", x, w), MODEL.params)
    images = jnp.ones_like(IMAGES)
    best = jnp.stack([MODEL.params[..., int(t)].sum(-1) for t in TARGETS])

    def measured(maps):
        return insertion_deletion(model, images, TARGETS, maps, steps=30, empty=0.0, score="logit")

    found, random = measured(best), measured(MAPS)
    assert (found.deletion_area < random.deletion_area).all()
    assert (found.insertion_area > random.insertion_area).all()


def test_broken_maps_have_no_area():
    maps = MAPS.at[0, 1, 1].set(jnp.nan)
    found = insertion_deletion(MODEL, IMAGES, TARGETS, maps, steps=10)
    assert jnp.isnan(found.deletion_area).tolist() == [True, False]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"heatmaps": MAPS[:, 1:]}, ValueError, r"heatmaps have shape \(2, 4, 6\)"),
        ({"heatmaps": MAPS > 0}, TypeError, "heatmaps are of type bool"),
        ({"targets": jnp.array([0, 4])}, ValueError, "4 classes"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"chunk": 0}, ValueError, "chunk=0"),
        ({"blur": -1.0}, ValueError, "sigma=-1.0"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    given = {"images": IMAGES, "targets": TARGETS, "heatmaps": MAPS} | change
    with pytest.raises(error, match=message):
        inspect.unwrap(insertion_deletion)(MODEL, **given)  # as it is outside of tests
