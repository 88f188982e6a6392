"""The shipped digits are scikit-learn's, and every one is in exactly one split."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxplain.data import SPLITS
from jaxplain.data.digits import CLASS_NAMES, digits


def test_at_their_own_resolution_they_are_scikit_learns():
    bundled = load_digits()
    for split in SPLITS:
        ours = digits(split, size=10)
        theirs = np.rint(bundled.images[ours.numbers] * 255 / 16)
        np.testing.assert_array_equal(ours.images[:, 1:-1, 1:-1, 0], theirs)
        np.testing.assert_array_equal(ours.labels, bundled.target[ours.numbers])
        assert not ours.images[:, [0, -1]].any()
        assert not ours.images[:, :, [0, -1]].any()


def test_every_digit_is_in_one_split():
    numbers = np.concatenate([digits(split, size=10).numbers for split in SPLITS])
    assert sorted(numbers) == list(range(1797))


@pytest.mark.parametrize(("split", "share"), [("train", 0.65), ("validation", 0.15), ("test", 0.2)])
def test_splits_hold_the_same_share_of_every_class(split, share):
    everywhere = np.bincount(load_digits().target)
    here = np.bincount(digits(split, size=10).labels, minlength=len(CLASS_NAMES))
    assert np.abs(here - share * everywhere).max() <= 1.01


def test_enlarged_they_keep_their_ink():
    """The share of ink in a picture, but for the overshoot at edges that clipping takes away."""
    small, large = digits("test", size=10), digits("test")
    assert large.images.shape == (359, 28, 28, 1)
    assert large.images.dtype == np.uint8
    ink = small.images.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(large.images.mean(axis=(1, 2, 3)), ink, rtol=0.1)


@pytest.mark.parametrize(
    ("split", "size", "message"), [("tset", 28, "nearest: test"), ("test", 9, "at least 10 pixels")]
)
def test_bad_arguments_are_refused_by_name(split, size, message):
    with pytest.raises(ValueError, match=message):
        digits(split, size=size)
