"""The examination of flower classifiers: known pictures, known models."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.data.an8flower import COLOURS, FlowerArrays, dataset_arrays
from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing
from jaxplain.training import find_evidence
from jaxplain.training.evidence import covered_squares, greyed, transplanted

PLAIN = Preprocessing((48, 48), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def flowers() -> FlowerArrays:
    return dataset_arrays("single_6c", "test", 12, size=64)


def described(apply, params=()):
    return Model.from_function(apply, params, input_shape=(48, 48, 3), preprocessing=PLAIN)


def test_greyed_parts_have_no_colour_and_the_rest_is_untouched(flowers):
    images = greyed(flowers)
    inside = images[flowers.masks]
    assert (inside == inside[:, :1]).all()
    changed = (images != flowers.images).any(-1)
    assert changed[flowers.masks].mean() > 0.9
    assert changed.mean() < 4 * flowers.masks.mean()


def test_transplanted_pictures_keep_the_part_and_little_else(flowers):
    images = transplanted(flowers, np.random.default_rng(0), margin=4)
    np.testing.assert_array_equal(images[flowers.masks], flowers.images[flowers.masks])
    kept = (images == flowers.images).all(-1).mean()
    assert flowers.masks.mean() < kept < 0.5


@pytest.mark.parametrize("inside", [True, False])
def test_squares_lie_where_they_should(flowers, inside):
    images = covered_squares(flowers, np.random.default_rng(0), inside=inside)
    changed = (images != flowers.images).any(-1)
    assert (changed.sum((1, 2)) <= 16 * 16).all()
    assert (changed.sum((1, 2)) > 200).all()
    touched = (changed & flowers.masks).any((1, 2))
    assert touched.all() if inside else not touched.any()


def test_a_classifier_that_sees_nothing_goes_by_nothing():
    found = find_evidence(described(lambda _, x: jnp.zeros((len(x), 6))), "single_6c", n=12)
    assert found.accuracy == pytest.approx(1 / 6)
    assert found.greyed == found.transplanted == found.accuracy
    assert found.gradient_inside == found.drop_inside == found.drop_outside == 0
    assert 0.01 < found.area < 0.2


def test_a_classifier_that_knows_the_scenes_by_heart_is_found_out():
    # It recognises a test picture by its top left corner, where no flower is, and says its label.
    scenes = dataset_arrays("single_6c", "test", 12, size=48)
    corners = jnp.asarray(PLAIN.batch(list(scenes.images)))[:, :3, :3]

    def apply(params, images):
        known = ((images[:, None, :3, :3] - params[None]) ** 2).sum((2, 3, 4))
        return -100 * known.reshape(len(images), 2, 6).min(1)

    found = find_evidence(described(apply, corners), "single_6c", n=12)
    assert found.accuracy == found.greyed == 1
    assert found.repainted == 0
    assert found.drop_inside == pytest.approx(0, abs=1e-6)


def test_a_constant_gradient_lies_inside_as_the_area_does():
    def apply(_, images):
        return jnp.stack([images.sum((1, 2, 3)) * k for k in range(len(COLOURS))], -1) * 1e-6

    found = find_evidence(described(apply), "single_6c", n=12)
    assert found.gradient_inside == pytest.approx(found.area, rel=1e-3)


def test_what_cannot_be_examined_is_refused():
    model = described(lambda _, x: jnp.zeros((len(x), 6)))
    with pytest.raises(ValueError, match="n is 5; expected at least 12"):
        find_evidence(model, "single_6c", n=5)
    with pytest.raises(ValueError, match="unknown variant"):
        find_evidence(model, "single")
    bare = Model.from_function(lambda _, x: jnp.zeros((len(x), 6)), ())
    with pytest.raises(ValueError, match="has no preprocessing"):
        find_evidence(bare, "single_6c", n=12)
