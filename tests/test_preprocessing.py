"""Preprocessing against a slow NumPy resampler, torchvision's sizes, and hand-made values."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxplain.preprocessing import LONGEST, Preprocessing

IMAGENET = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def triangle_weights(length: int, new: int) -> np.ndarray:
    """Rows of the antialiased bilinear filter, (new, length), written from its definition."""
    scale = length / new
    support = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(length)[None] + 0.5 - centres) / support)
    return weights / weights.sum(1, keepdims=True)


def torchvision_slowly(picture: np.ndarray, resize: int, size: tuple[int, int]) -> np.ndarray:
    """Resize(resize) then CenterCrop(size) in float64, without Pillow."""
    h, w = picture.shape[:2]
    if h <= w:
        new_h, new_w = resize, int(resize * w / h)
    else:
        new_h, new_w = int(resize * h / w), resize
    rows, columns = triangle_weights(h, new_h), triangle_weights(w, new_w)
    x = np.einsum("yh,hwc,xw->yxc", rows, picture / 255, columns, optimize=True)
    top, left = round((new_h - size[0]) / 2.0), round((new_w - size[1]) / 2.0)
    return x[top : top + size[0], left : left + size[1]]


def noise(h, w, c=3, seed=0):
    shape = (h, w, c) if c else (h, w)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("hw", [(90, 131), (131, 90), (64, 64), (20, 33), (75, 50)])
def test_equals_resize_crop_normalise_within_one_grey_level(hw):
    picture = noise(*hw)
    p = Preprocessing((56, 48), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), resize=64)
    expected = torchvision_slowly(picture, 64, (56, 48))
    assert (
        np.abs(p(picture) * np.float32(p.std) + np.float32(p.mean) - expected).max() <= 1.01 / 255
    )


@pytest.mark.parametrize("hw", [(300, 451), (451, 300), (257, 256), (1000, 333), (40, 37)])
def test_the_box_is_the_crop_of_the_resized_picture(hw):
    picture, (h, w) = noise(*hw), hw
    new = (256, int(256 * w / h)) if h <= w else (int(256 * h / w), 256)
    resized = np.asarray(Image.fromarray(picture).resize(new[::-1], Image.Resampling.BILINEAR))
    top, left = round((new[0] - 224) / 2), round((new[1] - 224) / 2)
    expected = resized[top : top + 224, left : left + 224]
    actual = IMAGENET.invert(IMAGENET(picture)) * 255
    # One grey level: Pillow rounds between its two passes and chooses their order by the work.
    assert np.abs(actual - expected).max() <= 1.01


@functools.cache
def photographs():
    with np.load(Path(__file__).parent / "data" / "photographs.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", photographs())
def test_photographs_become_what_torchvision_makes_of_them(case):
    import skimage.data

    name, size, resize, interpolation = case.split("/")
    mean, std = IMAGENET.mean, IMAGENET.std
    p = Preprocessing((int(size),) * 2, mean, std, int(resize), interpolation)
    picture = getattr(skimage.data, name)()
    places = np.random.default_rng(0).integers(0, p.size[0] * p.size[1] * 3, 500)
    expected = photographs()[case]
    # The same for the same Pillow; another version may round otherwise.
    assert np.abs(p.cut(picture).reshape(-1)[places].astype(int) - expected).max() <= 1
    assert np.mean(p.cut(picture).reshape(-1)[places] == expected) >= 0.99
    channel = places % 3
    normalised = (expected / 255 - np.array(mean)[channel]) / np.array(std)[channel]
    assert np.abs(p(picture).reshape(-1)[places] - normalised).max() <= 1.01 / 255 / min(std)


@pytest.mark.parametrize("hw", [(17, 150), (150, 17), (1, 300), (300, 2)])
def test_a_long_picture_is_cut_as_if_it_were_resized_whole(hw):
    picture = noise(*hw)
    assert max(hw) > LONGEST * min(hw)
    p = Preprocessing((24, 20), **PLAIN, resize=32)
    expected = torchvision_slowly(picture, 32, (24, 20)) * 255
    assert np.abs(p.cut(picture) - expected).max() <= 1.01


def test_without_resize_the_whole_picture_is_brought_to_size():
    picture = noise(50, 31)
    p = Preprocessing((20, 40), **PLAIN)
    expected = np.einsum(
        "yh,hwc,xw->yxc", triangle_weights(50, 20), picture / 255, triangle_weights(31, 40)
    )
    assert np.abs(p(picture) - expected).max() <= 1.01 / 255
    assert p.region((50, 31)) == (0, 0, 50, 31)


def test_a_picture_of_the_right_size_is_only_normalised():
    picture = noise(16, 16)
    p = Preprocessing((16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    np.testing.assert_allclose(p(picture), (picture / 255 - 0.5) / 0.25, atol=1e-6)


def test_caffe_units_are_bgr_minus_mean():
    picture = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    p = Preprocessing(
        (8, 8), (124 / 255, 117 / 255, 104 / 255), (1.0, 1.0, 1.0), order="BGR", scale=255.0
    )
    np.testing.assert_allclose(p(picture)[3, 3], (50 - 104, 100 - 117, 200 - 124), atol=1e-4)
    np.testing.assert_allclose(p.invert(p(picture)), picture / 255, atol=1e-6)


def test_grey_and_colour_pictures_fit_grey_and_colour_networks():
    grey, colour = noise(9, 9, 0), noise(9, 9)
    p1, p3 = Preprocessing((9, 9), (0.0,), (1.0,)), Preprocessing((9, 9), **PLAIN)
    np.testing.assert_array_equal(p1(grey), p1(grey[..., None]))
    np.testing.assert_allclose(p1(grey)[..., 0] * 255, grey, atol=1e-4)
    np.testing.assert_array_equal(p3(grey), np.repeat(p1(grey), 3, -1))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(p1(colour)[..., 0] * 255 - luma).max() <= 0.51


@pytest.mark.parametrize(("size", "whole"), [((20, 20), (25, 25)), ((20, 24), (25, 30))])
def test_without_proportions_each_side_is_resized_for_itself(size, whole):
    picture = noise(50, 31)
    p = Preprocessing(size, **PLAIN, resize=25, keep_aspect=False)
    rows, columns = triangle_weights(50, whole[0]), triangle_weights(31, whole[1])
    resized = np.einsum("yh,hwc,xw->yxc", rows, picture / 255, columns)
    top, left = round((whole[0] - size[0]) / 2), round((whole[1] - size[1]) / 2)
    expected = resized[top : top + size[0], left : left + size[1]]
    assert np.abs(p(picture) - expected).max() <= 1.01 / 255
    # Four fifths of each side, but for the rounding of the corner.
    assert p.region((50, 30))[2:] == (40, 24)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([None, 16, 23]), st.booleans())
def test_any_size_gives_a_finite_input_and_a_region_inside(h, w, resize, keep_aspect):
    p = Preprocessing((16, 12), **PLAIN, resize=resize, keep_aspect=keep_aspect)
    x = p(noise(h, w))
    assert x.shape == (16, 12, 3)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    top, left, height, width = p.region((h, w))
    assert top >= 0
    assert left >= 0
    assert height >= 1
    assert width >= 1
    assert top + height <= h
    assert left + width <= w


def test_a_strip_needs_no_enormous_picture():
    assert IMAGENET(np.full((1, 30000), 7, np.uint8)).shape == (224, 224, 3)


def test_region_is_where_the_input_comes_from():
    picture = np.zeros((400, 600, 3), np.uint8)
    top, left, height, width = IMAGENET.region((400, 600))
    picture[top : top + height, left : left + width] = 255
    assert IMAGENET.invert(IMAGENET(picture)).mean() > 0.99
    picture = 255 - picture
    assert IMAGENET.invert(IMAGENET(picture)).mean() < 0.01


def test_batch_equals_single_pictures():
    pictures = [noise(20, 30), noise(40, 31, 0)]
    p = Preprocessing((16, 16), **PLAIN, resize=18)
    np.testing.assert_array_equal(p.batch(pictures), np.stack([p(x) for x in pictures]))
    assert p.batch([]).shape == (0, 16, 16, 3)


def test_bounds_are_black_and_white():
    p = Preprocessing((4, 4), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), order="BGR", scale=2.0)
    low, high = p.bounds()
    np.testing.assert_allclose(low, p(np.zeros((4, 4, 3), np.uint8))[0, 0], rtol=1e-6)
    np.testing.assert_allclose(high, p(np.full((4, 4, 3), 255, np.uint8))[0, 0], rtol=1e-6)


@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.lists(st.floats(-1, 2), min_size=3, max_size=3),
    st.sampled_from([None, 400]),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.sampled_from(["RGB", "BGR"]),
)
def test_json_round_trip_is_equal_and_hashes_alike(size, mean, resize, interpolation, order):
    p = Preprocessing(size, tuple(mean), (0.3, 0.1, 0.2), resize, interpolation, order)
    again = Preprocessing.from_json(p.to_json())
    assert again == p
    assert hash(again) == hash(p)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("size", [0, 4], r"size is .*whole numbers from 1"),
        ("size", [4], "size is .*2 finite numbers"),
        ("size", "44", "size is '44'"),
        ("mean", [0.1, 0.2], "mean is .*1 or 3"),
        ("mean", [0.1, None, 0.1], "mean holds None"),
        ("mean", [0.1, float("nan"), 0.1], "mean holds nan"),
        ("std", [1.0], "std is .*3 finite"),
        ("std", [1.0, 0.0, 1.0], "std is .*above zero"),
        ("std", [1.0, True, 1.0], "std holds True"),
        ("scale", "big", "scale holds 'big'"),
        ("scale", -1.0, "scale is -1.0"),
        ("resize", 10, "resize is 10; .*at least 16"),
        ("resize", 16.5, "resize is 16.5"),
        ("keep_aspect", 1, "keep_aspect is 1; expected True or False"),
        ("interpolation", "bilinar", "nearest: bilinear"),
        ("order", "GBR", "unknown order 'GBR'"),
        ("sice", [4, 4], "unknown preprocessing field 'sice'; nearest: size"),
    ],
)
def test_bad_json_is_refused_by_field(field, value, said):
    fields = json.loads(Preprocessing((16, 16), **PLAIN).to_json()) | {field: value}
    with pytest.raises(ValueError, match=said):
        Preprocessing.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), ("[1]", "JSON list"), ('{"size": [2, 2]}', "lacks mean, std")],
)
def test_text_that_is_no_preprocessing_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        Preprocessing.from_json(text)


def test_the_constructor_checks_too():
    with pytest.raises(ValueError, match="size is"):
        Preprocessing((0, 3), **PLAIN)
    with pytest.raises(ValueError, match="BGR"):
        Preprocessing((3, 3), (0.5,), (0.5,), order="BGR")
    with pytest.raises(ValueError, match="resize"):
        dataclasses.replace(IMAGENET, resize=200)


@pytest.mark.parametrize(
    ("picture", "error", "said"),
    [
        (np.zeros((4, 4, 3)), TypeError, "float64; expected uint8"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, r"\(4, 4, 4\); expected"),
        (np.zeros((4,), np.uint8), ValueError, r"\(4,\); expected"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "no pixels"),
    ],
)
def test_bad_pictures_are_refused(picture, error, said):
    with pytest.raises(error, match=said):
        IMAGENET(picture)


def test_invert_refuses_other_channels():
    with pytest.raises(ValueError, match="expected"):
        IMAGENET.invert(np.zeros((4, 4, 1), np.float32))
