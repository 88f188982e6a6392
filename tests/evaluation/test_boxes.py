"""Boxes from heat maps, against scikit-image and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import label, regionprops

from jaxplain.evaluation.boxes import box_iou, heatmap_boxes, largest_component_box, tight_box


@settings(max_examples=60)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_the_component_is_the_largest_of_those_that_scikit_image_finds(mask):
    found = largest_component_box(mask)
    regions = regionprops(label(mask, connectivity=2))
    if not regions:
        assert found == (0, 0, *mask.shape)
        return
    largest = max(region.area for region in regions)
    assert found in [region.bbox for region in regions if region.area == largest]
    first = min(region.bbox[:2] for region in regions if region.area == largest)
    assert found[:2] == first


@settings(max_examples=60)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_the_tight_box_holds_all_and_no_row_too_much(mask):
    top, left, bottom, right = tight_box(mask)
    if mask.any():
        assert mask[top:bottom, left:right].sum() == mask.sum()
        assert all(mask[i, left:right].any() for i in (top, bottom - 1))
        assert all(mask[top:bottom, j].any() for j in (left, right - 1))
    else:
        assert (top, left, bottom, right) == (0, 0, *mask.shape)


def test_thresholds_are_fractions_of_the_maximum_or_multiples_of_the_mean():
    heatmap = np.zeros((1, 4, 8), np.float32)
    heatmap[0, 1, 1:7] = [1, 2, 4, 8, 4, 2]  # mean 21 / 32
    found = heatmap_boxes(heatmap, [0.25, 0.5, 1.0])
    assert found[0].tolist() == [[1, 2, 2, 7], [1, 3, 2, 6], [1, 4, 2, 5]]
    found = heatmap_boxes(heatmap, [0.0, 3.0, 20.0], relative_to="mean", part="all")
    assert found[0].tolist() == [[1, 1, 2, 7], [1, 2, 2, 7], [0, 0, 4, 8]]


def test_negative_values_are_no_evidence():
    heatmap = np.full((1, 4, 4), -5.0, np.float32)
    heatmap[0, 2, 3] = 0.1
    assert heatmap_boxes(heatmap, [0.0, 0.9])[0].tolist() == [[2, 3, 3, 4]] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmaps": np.zeros((1, 4), np.float32)}, "heatmaps have shape"),
        ({"heatmaps": np.full((2, 3, 3), np.nan)}, r"heatmaps\[0\] holds NaN"),
        ({"thresholds": []}, "thresholds are"),
        ({"thresholds": [-0.1]}, "none negative"),
        ({"relative_to": "median"}, "relative_to"),
        ({"part": "second"}, "part"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    options = {"heatmaps": np.zeros((1, 3, 3)), "thresholds": [0.5], **change}
    # Under test the types of arguments are checked before the function sees them.
    with pytest.raises((ValueError, TypeError), match=f"{message}|Type-check"):
        heatmap_boxes(options.pop("heatmaps"), options.pop("thresholds"), **options)


def test_iou_counts_pixels():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (200, 2, 2))
    a, b = (
        np.concatenate([c, c + rng.integers(1, 9, (200, 2))], 1)
        for c in (corners[:, 0], corners[:, 1])
    )
    masks = np.zeros((2, 200, 24, 24), bool)
    for which, boxes in enumerate((a, b)):
        for image, (top, left, bottom, right) in enumerate(boxes):
            masks[which, image, top:bottom, left:right] = True
    both, either = (masks[0] & masks[1]).sum((1, 2)), (masks[0] | masks[1]).sum((1, 2))
    np.testing.assert_allclose(box_iou(a, b), both / either, rtol=1e-12)
    assert box_iou(np.zeros(4), np.zeros(4)) == 0
