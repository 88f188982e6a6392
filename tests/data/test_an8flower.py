"""Flowers: the class shows in one part and nowhere else, and the mask is that part."""

import colorsys

import numpy as np
import pytest

from jaxplain.data.an8flower import (
    COLOURS,
    VARIANTS,
    dataset_arrays,
    find_variant,
    render,
    render_many,
    tight_box,
)

HUES = {"red": 357, "orange": 26, "yellow": 53, "blue": 220, "violet": 274, "pink": 326}
SCENES = [("single_6c", 3), ("double_12c", 4), ("double_12c", 20), ("double_12c", 33)]


def blocks(mask: np.ndarray, factor: int) -> np.ndarray:
    """(S, S, factor²): the fine pixels in each coarse one."""
    side = len(mask) // factor
    return mask.reshape(side, factor, side, factor).swapaxes(1, 2).reshape(side, side, -1)


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask with every neighbour of its pixels."""
    padded = np.pad(mask, 1)
    side = len(mask)
    shifts = [padded[y : y + side, x : x + side] for y in range(3) for x in range(3)]
    return np.any(shifts, axis=0)


def hue_distance(colour: np.ndarray, hue: float) -> float:
    found = 360 * colorsys.rgb_to_hsv(*(colour / 255))[0]
    return abs((found - hue + 180) % 360 - 180)


@pytest.mark.parametrize(("variant", "classes"), [("single_6c", 6), ("double_12c", 12)])
def test_arrays_have_the_promised_form(variant, classes):
    flowers = dataset_arrays(variant, "test", 2 * classes, size=40, start=classes)
    assert flowers.images.shape == (2 * classes, 40, 40, 3)
    assert flowers.images.dtype == np.uint8
    assert flowers.masks.shape == (2 * classes, 40, 40)
    assert flowers.masks.dtype == bool
    assert flowers.boxes.shape == (2 * classes, 4)
    assert flowers.labels.tolist() == 2 * list(range(classes))
    assert len(set(find_variant(variant).class_names)) == classes


def test_the_same_flower_in_any_order_and_process():
    arguments = {"variant": "double_12c", "split": "validation", "seed": 3, "size": 48}
    alone = render(130, **arguments)
    indices = [7, 130, 2, 130]
    here = list(render_many(indices, **arguments))
    there = list(render_many(indices, workers=2, **arguments))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one[2:] == other[2:]
    for at in (1, 3):
        np.testing.assert_array_equal(here[at].image, alone.image)


def test_every_argument_makes_another_flower():
    base = {"variant": "single_6c", "split": "train", "seed": 0}
    changes = [
        {},
        {"split": "test"},
        {"split": "validation"},
        {"seed": 1},
        {"variant": "double_12c"},
    ]
    pictures = [render(6, **(base | change)).image for change in changes]
    pictures.append(render(0, **base).image)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize(("variant", "index"), SCENES)
def test_the_class_shows_in_the_discriminative_part_alone(variant, index):
    """Painted as every class in turn, a scene changes only where the class's parts are visible."""
    names = find_variant(variant).class_names
    versions = [render(index, variant=variant, label=label) for label in range(len(names))]
    # Where a part covers any of a pixel: found at eight times the resolution.
    labels = {name.split()[1]: label for label, name in enumerate(names)}
    visible = {}
    for part, label in labels.items():
        fine = render(index, variant=variant, label=label, size=8 * 112).mask
        visible[part] = grown(blocks(fine, 8).any(axis=-1))
    for one in versions:
        assert one.part == names[one.label].split()[1]
        for other in versions:
            changed = (one.image != other.image).any(axis=-1)
            assert not (changed & ~(visible[one.part] | visible[other.part])).any()
            if other.label != one.label:
                assert changed[one.mask].all()


@pytest.mark.parametrize(("variant", "index"), SCENES)
def test_the_mask_is_where_the_part_covers_at_least_half(variant, index):
    """Against the same scene at four times the resolution."""
    mask = render(index, variant=variant, size=96).mask
    cover = blocks(render(index, variant=variant, size=4 * 96).mask, 4).mean(axis=-1)
    assert mask[cover > 0.75].all()
    assert not mask[cover < 0.25].any()


def test_boxes_are_tight():
    flowers = dataset_arrays("double_12c", "train", 24, size=64)
    for mask, box in zip(flowers.masks, flowers.boxes, strict=True):
        places = [(y, x) for y in range(64) for x in range(64) if mask[y, x]]
        rows, columns = zip(*places, strict=True)
        assert box.tolist() == [min(rows), min(columns), max(rows) + 1, max(columns) + 1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_part_wears_the_colour_of_its_class(variant):
    names = find_variant(variant).class_names
    for flower in render_many(range(24), variant=variant):
        worn = np.median(flower.image[flower.mask], axis=0)
        colour = names[flower.label].split()[0]
        nearest = min(COLOURS, key=lambda name: hue_distance(worn, HUES[name]))
        assert nearest == colour


def test_the_part_that_is_not_the_class_looks_natural():
    """White petals over a stem of class colour, a green stem under petals of class colour."""
    for index in range(12, 24):
        petals, stem = (render(index, variant="double_12c", label=label) for label in (0, 6))
        white = np.median(stem.image[petals.mask], axis=0)
        assert colorsys.rgb_to_hsv(*(white / 255))[1] < 0.25
        green = np.median(petals.image[stem.mask], axis=0)
        assert 70 < 360 * colorsys.rgb_to_hsv(*(green / 255))[0] < 165


def test_class_colours_stand_outside_the_flower_too_whatever_the_class():
    """Saturated colours of all six hues lie outside the mask about equally often."""
    seen = dict.fromkeys(COLOURS, 0)
    for flower in render_many(range(36), variant="single_6c", size=64):
        outside = flower.image[~flower.mask].reshape(-1, 3)
        vivid = outside[np.ptp(outside, axis=1) > 0.5 * outside.max(axis=1)]
        hues = np.array([360 * colorsys.rgb_to_hsv(*(pixel / 255))[0] for pixel in vivid[::7]])
        for name in COLOURS:
            away = np.abs((hues - HUES[name] + 180) % 360 - 180)
            seen[name] += (away < 12).sum() > 4
    assert min(seen.values()) > 8
    assert max(seen.values()) < 3 * min(seen.values())


@pytest.fixture(scope="module")
def large():
    """Shares of the picture that the masks of twelve flowers have at high resolution."""
    return dataset_arrays("double_12c", "train", 12, size=448).masks.mean(axis=(1, 2))


@pytest.mark.parametrize(("size", "tolerance"), [(32, 0.4), (57, 0.25), (112, 0.12), (224, 0.06)])
def test_every_size_shows_the_same_part(large, size, tolerance):
    """A sample on an outline counts as inside, hence not quite equal."""
    small = dataset_arrays("double_12c", "train", 12, size=size).masks.mean(axis=(1, 2))
    np.testing.assert_allclose(small, large, rtol=tolerance)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"variant": "single_5c"}, ValueError, "single_6c"),
        ({"split": "valid"}, ValueError, "validation"),
        ({"index": -1}, ValueError, "index must not be negative, got -1"),
        ({"index": 1.0}, TypeError, "index"),
        ({"seed": True}, TypeError, "seed must be an integer, got True"),
        ({"size": 31}, ValueError, "size must be 32 to 2048 pixels, got 31"),
        ({"size": 2049}, ValueError, "size must be 32 to 2048 pixels, got 2049"),
        ({"label": 6}, ValueError, "label must be below 6 for variant 'single_6c', got 6"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, error, message):
    arguments = {"index": 0, "variant": "single_6c"} | change
    with pytest.raises(error, match=message):
        render(arguments.pop("index"), **arguments)


@pytest.mark.parametrize(("change", "message"), [({"n": 0}, "n must"), ({"workers": 0}, "workers")])
def test_empty_requests_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataset_arrays(**({"variant": "single_6c", "split": "train", "n": 1} | change))


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        tight_box(np.zeros((3, 3), bool))
