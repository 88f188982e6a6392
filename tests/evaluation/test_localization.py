"""Localisation under the ILSVRC protocol, against an image by image reckoning."""

import numpy as np
import pytest

from jaxplain.evaluation.boxes import box_iou, heatmap_boxes
from jaxplain.evaluation.localization import (
    BoxRule,
    localize,
    localize_methods,
    localize_true,
    tune,
)


def blobs(boxes, size=16):
    """Maps that are 1 in a box and fade to 0.4 on a rim around it."""
    maps = np.zeros((len(boxes), size, size), np.float32)
    for heatmap, (top, left, bottom, right) in zip(maps, boxes, strict=True):
        heatmap[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 0.4
        heatmap[top:bottom, left:right] = 1.0
    return maps


TRUTH = np.array([[3, 3, 8, 9], [5, 6, 10, 10], [2, 4, 7, 8]])


def test_the_threshold_is_the_middle_of_the_best():
    found = tune(blobs(TRUTH), TRUTH)
    # From 0.45 on only the inner boxes are left; below, the rim makes them too large.
    assert found.errors.tolist() == [1.0] * 8 + [0.0] * 11
    assert found.rule == BoxRule(0.7, "max", "largest")


def test_means_have_a_grid_of_their_own():
    found = tune(blobs(TRUTH), TRUTH, relative_to="mean", part="all")
    assert found.thresholds.tolist() == [i / 2 for i in range(21)]
    assert found.rule.relative_to == "mean"
    assert found.errors.min() == 0


@pytest.mark.parametrize("kind", [list, np.array])
def test_a_grid_of_ones_own_is_a_sequence_or_an_array(kind):
    found = tune(blobs(TRUTH), TRUTH, thresholds=kind([0.1, 0.6, 0.8]))
    assert found.rule.threshold == 0.8
    assert found.errors.tolist() == [1.0, 0.0, 0.0]


def test_a_grid_without_a_threshold_is_refused():
    with pytest.raises(ValueError, match="thresholds are"):
        tune(blobs(TRUTH), TRUTH, thresholds=[])


def slow(heatmaps, guesses, labels, boxes, rule):
    """The protocol in the words of the challenge: an image, a guess, a box at a time."""
    images, count = guesses.shape
    errors = np.ones((images, count))
    for i in range(images):
        for k in range(count):
            found = []
            for j in range(k + 1):
                box = heatmap_boxes(heatmaps[i, j][None], [rule.threshold])[0, 0]
                overlap = max(float(box_iou(box, np.array(b))) for b in boxes[i])
                wrong_class, wrong_place = guesses[i, j] != labels[i], overlap < 0.5
                found.append(max(wrong_class, wrong_place))
            errors[i, k] = min(found)
    return errors.mean(0)


def test_errors_are_those_of_the_protocol():
    rng = np.random.default_rng(3)
    images, count = 40, 3
    labels = rng.integers(0, 5, images)
    guesses = np.stack([rng.permutation(5)[:count] for _ in range(images)])
    boxes = []
    maps = rng.random((images, count, 16, 16)).astype(np.float32) * 0.3
    for i in range(images):
        corner = rng.integers(0, 8, (rng.integers(1, 3), 2))
        boxes.append(np.concatenate([corner, corner + 6], 1))
        for j in range(count):
            top, left = boxes[i][0][:2] + rng.integers(0, 4, 2)
            maps[i, j, top : top + 6, left : left + 6] += 1
    rule = BoxRule(0.6)
    found = localize(maps, guesses, labels, boxes, rule)
    np.testing.assert_allclose(found.localization_error, slow(maps, guesses, labels, boxes, rule))
    assert 0.2 < found.localization_error[-1] < 0.9
    assert (np.diff(found.localization_error) <= 0).all()
    assert (found.localization_error >= found.classification_error - 1e-12).all()


def test_with_the_class_known_only_the_box_counts():
    maps = blobs(TRUTH)[:, None]
    labels = np.array([4, 1, 2])
    found = localize(maps, labels[:, None], labels, TRUTH, BoxRule(0.7))
    assert found.localization_error.tolist() == [0.0]
    assert found.classification_error.tolist() == [0.0]
    np.testing.assert_array_equal(found.iou, 1.0)


def test_methods_are_tuned_on_some_images_and_judged_on_others():
    calls = []

    def good(images, classes):
        calls.append((len(images), classes.tolist()))
        return images[..., 0]

    def blind(images, classes):
        return np.ones(images.shape[:3], np.float32)

    images = blobs(TRUTH)[..., None]
    logits = np.array([[0.0, 1, 2], [3, 1, 0], [0, 4, 1]])
    labels = np.array([2, 0, 2])
    found = localize_methods(
        {"good": good, "blind": blind}, images, logits, labels, TRUTH, tuning=1, top=2
    )
    # The true class of every image, and no other map.
    assert calls == [(3, [2, 0, 2])]
    assert found["good"][1].localization_error.tolist() == [0.5, 0.0]
    assert found["good"][1].classification_error.tolist() == [0.5, 0.0]
    assert found["blind"][1].localization_error.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("relative_to", "part"), [("max", "largest"), ("mean", "all")])
def test_maps_of_the_true_class_decide_all_errors(relative_to, part):
    """Against `localize`, which is given the map of every guess."""
    rng = np.random.default_rng(5)
    images, classes, tuning, top = 60, 4, 20, 3
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    corners = rng.integers(0, 9, (images, 2))
    boxes = np.concatenate([corners, corners + 6], 1)
    maps = rng.random((images, classes, 16, 16)).astype(np.float32) * 0.3
    for i in range(images):
        for j in range(classes):
            top_, left = boxes[i, :2] + rng.integers(0, 4, 2)
            maps[i, j, top_ : top_ + 6, left : left + 6] += 1
    options = {"relative_to": relative_to, "part": part}
    true = maps[np.arange(images), labels]
    tuned, found = localize_true(true, logits, labels, boxes, tuning=tuning, top=top, **options)
    guesses = np.argsort(-logits[tuning:], 1)[:, :top]
    every = maps[np.arange(tuning, images)[:, None], guesses]
    expected = localize(every, guesses, labels[tuning:], boxes[tuning:], tuned.rule)
    np.testing.assert_array_equal(found.localization_error, expected.localization_error)
    np.testing.assert_array_equal(found.classification_error, expected.classification_error)
    np.testing.assert_array_equal(found.hits, expected.hits)
    named = guesses == labels[tuning:, None]
    np.testing.assert_array_equal(found.iou[named], expected.iou[named])
    assert np.isnan(found.iou[~named]).all()
    assert 0.1 < found.localization_error[0] < 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guesses": np.array([[1], [1], [1]])}, "heatmaps have shape"),
        ({"guesses": np.array([[1, 1], [1, 2], [3, 2]])}, "a class twice"),
        ({"labels": np.array([1, 2])}, "labels have shape"),
        ({"boxes": TRUTH[:2]}, "boxes are given for 2 images, expected 3"),
        ({"boxes": [[[4, 4, 4, 8]]] * 3}, "bottom below top"),
        ({"boxes": [np.zeros((0, 4))] * 3}, r"boxes\[0\] has shape \(0, 4\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    options = {
        "guesses": np.array([[1, 0], [1, 2], [3, 2]]),
        "labels": np.array([1, 2, 3]),
        "boxes": TRUTH,
        **change,
    }
    maps = np.repeat(blobs(TRUTH)[:, None], 2, 1)
    with pytest.raises(ValueError, match=message):
        localize(maps, options["guesses"], options["labels"], options["boxes"], BoxRule(0.5))


@pytest.mark.parametrize(("tuning", "top"), [(0, 1), (3, 1), (1, 0), (1, 9)])
def test_bad_splits_are_refused(tuning, top):
    with pytest.raises(ValueError, match="expected from 1 to"):
        localize_methods({}, blobs(TRUTH), np.eye(3), np.arange(3), TRUTH, tuning=tuning, top=top)
