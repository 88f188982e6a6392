"""Superpixels: every pixel in one, every fine one in one coarse one, the same each time."""

import numpy as np
import pytest
from skimage.measure import label as connected

from jaxplain import superpixels as sp
from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing
from jaxplain.superpixels.crossings import settle

SIZE = (40, 48)


def disc(size=SIZE, radius=11) -> np.ndarray:
    y, x = np.indices(size)
    return (y - size[0] / 2) ** 2 + (x - size[1] / 2) ** 2 < radius**2


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A red disc with a dark stripe on noisy green."""
    noise = np.random.default_rng(0).normal(0, 0.02, (*SIZE, 3))
    colours = np.where(disc()[..., None], (0.8, 0.1, 0.1), (0.2, 0.6, 0.2)) + noise
    colours[18:22, 14:34] = (0.1, 0.1, 0.5)
    return np.clip(colours, 0, 1)


@pytest.fixture(scope="module")
def heat() -> np.ndarray:
    y, x = np.indices(SIZE)
    return np.exp(-((y - 20) ** 2 + (x - 24) ** 2) / 60)


@pytest.fixture(scope="module")
def found(image, heat) -> sp.Nested:
    return sp.nested(image, heat, kernel_size=1, max_dist=8)


def assert_contiguous(labels, size=SIZE):
    assert labels.shape == size
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))


@pytest.mark.parametrize(
    ("cut", "options"),
    [(sp.slic, {}), (sp.quickshift, {"kernel_size": 1, "max_dist": 8})],
    ids=["slic", "quickshift"],
)
def test_a_segmentation_is_contiguous_deterministic_and_follows_edges(cut, options, image):
    labels = cut(image, **options)
    assert_contiguous(labels)
    np.testing.assert_array_equal(labels, cut(image, **options))
    shares = [disc()[labels == n].mean() for n in range(labels.max() + 1)]
    pure = [min(share, 1 - share) < 0.15 for share in shares]
    assert np.mean(pure) > 0.8


def test_quickshift_is_scikit_images_with_the_parameters_of_lime(image):
    from skimage.segmentation import quickshift

    np.testing.assert_array_equal(
        sp.quickshift(image), quickshift(image, kernel_size=4, max_dist=200, ratio=0.2)
    )


def test_quickshift_inside_one_region_is_quickshift(image):
    whole = np.zeros(SIZE, int)
    for options in ({}, {"kernel_size": 2, "max_dist": 6, "ratio": 0.7}):
        np.testing.assert_array_equal(
            sp.quickshift(image, inside=whole, **options), sp.quickshift(image, **options)
        )


def test_quickshift_inside_a_region_is_that_of_the_region_alone(image):
    """Rectangles cut out of the picture, and cut by scikit-image."""
    regions = sp.grid(SIZE, rows=2, columns=3)
    labels = sp.quickshift(image, inside=regions, kernel_size=2)
    assert_contiguous(labels)
    for n in range(6):
        y, x = np.nonzero(regions == n)
        alone = np.s_[y.min() : y.max() + 1, x.min() : x.max() + 1]
        expected = sp.quickshift(image[alone], kernel_size=2)
        np.testing.assert_array_equal(sp.contiguous(labels[alone]), expected)
        assert not np.isin(labels[alone], labels[regions != n]).any()


def test_bytes_and_floats_and_grey_are_the_same_picture(image):
    coarse = np.round(image * 255).astype(np.uint8)
    np.testing.assert_array_equal(sp.slic(coarse), sp.slic(coarse / 255))
    grey = coarse[..., :1]
    np.testing.assert_array_equal(sp.slic(grey), sp.slic(np.repeat(grey, 3, -1)))


def test_slic_stays_inside_its_mask(image):
    labels = sp.slic(image, segments=6, mask=disc())
    np.testing.assert_array_equal(labels >= 0, disc())
    assert_contiguous(labels + 1)
    assert (sp.slic(image, mask=np.zeros(SIZE, bool)) == -1).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (40, 48)])
def test_grid_is_rectangles_of_nearly_equal_size(rows, columns):
    labels = sp.grid(SIZE, rows=rows, columns=columns)
    assert_contiguous(labels)
    assert labels.max() + 1 == rows * columns
    tall, wide = SIZE[0] / rows, SIZE[1] / columns
    for n in range(0, rows * columns, 7):
        y, x = np.nonzero(labels == n)
        assert len(y) == (np.ptp(y) + 1) * (np.ptp(x) + 1)
        assert abs(np.ptp(y) + 1 - tall) < 1
        assert abs(np.ptp(x) + 1 - wide) < 1


def test_grab_cut_finds_the_object_around_the_peak(image, heat):
    foreground, why = sp.grab_cut(image, heat)
    assert why == ""
    both = foreground & disc()
    assert both.sum() / (foreground | disc()).sum() > 0.9
    np.testing.assert_array_equal(foreground, sp.grab_cut(image, heat)[0])


def test_grab_cut_falls_back_as_stated(image, heat):
    nothing = np.zeros(SIZE, bool)
    for flat, reason in ((heat * 0, "no peak"), (heat * 0 + 3, "no peak"), (-heat, "no peak")):
        foreground, why = sp.grab_cut(image, flat)
        np.testing.assert_array_equal(foreground, nothing)
        assert reason in why
    foreground, why = sp.grab_cut(image, 1 + heat / 100)
    np.testing.assert_array_equal(foreground, nothing)
    assert "everywhere" in why
    foreground, why = sp.grab_cut(np.full((*SIZE, 3), 0.3), heat)
    np.testing.assert_array_equal(foreground, heat >= 0.5 * heat.max())
    assert "one colour" in why


def test_grab_cut_that_takes_everything_or_fails_leaves_the_seed(image, heat, monkeypatch):
    import cv2

    seed = heat >= 0.5 * heat.max()

    def everything(picture, state, *rest):
        state[:] = cv2.GC_PR_FGD

    def failing(*rest):
        raise cv2.error("too few samples")

    for replaced, reason in ((everything, "everything"), (failing, "failed")):
        monkeypatch.setattr(cv2, "grabCut", replaced)
        foreground, why = sp.grab_cut(image, heat)
        np.testing.assert_array_equal(foreground, seed)
        assert reason in why


def test_fine_superpixels_lie_in_one_coarse_one_each(found):
    assert_contiguous(found.coarse)
    assert_contiguous(found.fine)
    belongs = sp.membership(found.coarse, found.fine)
    np.testing.assert_array_equal(belongs.sum(1), 1)
    assert (belongs.sum(0) >= 1).all()
    assert found.fallback == ""


def test_the_object_is_one_coarse_superpixel_and_has_parts(found):
    object_ = found.coarse == 0
    assert (object_ & disc()).sum() / (object_ | disc()).sum() > 0.9
    assert found.coarse.max() >= 4
    assert len(np.unique(found.fine[object_])) >= 2


def test_fine_superpixels_are_connected_and_no_slivers_remain(found):
    for n in range(found.fine.max() + 1):
        assert connected(found.fine == n, connectivity=1).max() == 1
    assert np.bincount(found.fine.ravel()).min() >= 0.001 * found.fine.size


def test_nested_is_deterministic(image, heat, found):
    again = sp.nested(image, heat, kernel_size=1, max_dist=8)
    np.testing.assert_array_equal(again.coarse, found.coarse)
    np.testing.assert_array_equal(again.fine, found.fine)


def test_nested_without_a_foreground_is_all_background(image, heat):
    found = sp.nested(image, heat * 0)
    assert "no peak" in found.fallback
    assert found.coarse.max() >= 4
    assert (sp.membership(found.coarse, found.fine).sum(1) == 1).all()


def test_nested_of_one_colour_still_nests(heat):
    found = sp.nested(np.full((*SIZE, 1), 0.5), heat)
    assert "one colour" in found.fallback
    np.testing.assert_array_equal(found.coarse == 0, heat >= 0.5 * heat.max())
    assert (sp.membership(found.coarse, found.fine).sum(1) == 1).all()


def test_fine_superpixels_of_a_tiny_picture_are_a_grid():
    found = sp.nested(np.full((12, 8, 3), 0.5), np.zeros((12, 8)), background=1)
    np.testing.assert_array_equal(found.coarse, 0)
    np.testing.assert_array_equal(found.fine, sp.grid((12, 8), rows=3, columns=2))
    assert (sp.membership(found.coarse, found.fine).sum(1) == 1).all()


def test_the_number_of_fine_superpixels_can_be_limited(image, heat, found):
    few = sp.nested(image, heat, most_fine=int(found.coarse.max()) + 3)
    assert few.fine.max() < found.coarse.max() + 3
    np.testing.assert_array_equal(few.coarse, found.coarse)
    with pytest.raises(ValueError, match="most=2; there are"):
        sp.nested(image, heat, most_fine=2)


def parts(labels: np.ndarray) -> int:
    return connected(labels, background=-1, connectivity=1).max()


@pytest.mark.parametrize("seed", range(6))
def test_settled_superpixels_nest_whatever_they_were(seed):
    """Stripes and blobs at random, that cross in many pieces."""
    rng = np.random.default_rng(seed)
    size = (20, 24)
    spots = rng.uniform(0, size, (4, 6, 2))
    away = ((np.stack(np.indices(size), -1)[None, :, :, None] - spots[:, None, None]) ** 2).sum(-1)
    coarse = list(away.argmin(-1).astype(np.int32))
    for most in (100, 30, 9, 6):
        moved, regions = settle(coarse, 2, most=most)
        assert_contiguous(regions, size)
        assert parts(regions) == regions.max() + 1 <= most
        for labels, before in zip(moved, coarse, strict=True):
            assert_contiguous(labels, size)
            sp.membership(labels, regions)  # refuses what is not nested
            assert (labels[before == 0] == 0).any(), "the foreground is there, and is label 0"
            assert parts(labels) == labels.max() + 1, "as connected as before"
    with pytest.raises(ValueError, match="most=5; there are 6 coarse superpixels"):
        settle(coarse, 2, most=5)


def test_superpixels_that_do_not_cross_in_slivers_stay():
    one = sp.grid((12, 12), rows=2, columns=2)
    other = sp.grid((12, 12), rows=4, columns=1)
    moved, regions = settle([one, other], 18, most=8)
    np.testing.assert_array_equal(moved, [one, other])
    assert regions.max() + 1 == 8


def test_a_speckled_foreground_is_kept_unless_its_specks_are_too_many():
    speckled = np.ones((12, 12), np.int32)
    speckled[::2, ::2] = 0
    speckled[:6, :6] = 0
    (same,), regions = settle([speckled], 0)
    np.testing.assert_array_equal(same, speckled)
    np.testing.assert_array_equal(regions, speckled)
    (few,), regions = settle([speckled], 0, most=4)
    assert parts(regions) == regions.max() + 1 == 4
    sp.membership(few, regions)
    assert (few[:6, :6] == 0).all()


def test_membership_refuses_what_is_not_nested():
    with pytest.raises(ValueError, match=r"fine superpixel 1 lies in coarse superpixels \[0, 1\]"):
        sp.membership(np.array([[0, 0, 1]]), np.array([[0, 1, 1]]))
    with pytest.raises(ValueError, match="expected the same"):
        sp.membership(np.zeros((2, 2), int), np.zeros((3, 2), int))


def test_slivers_join_the_neighbour_of_the_longest_border():
    labels = np.array([[0, 0, 0, 1], [0, 2, 3, 1], [3, 3, 3, 1], [3, 3, 3, 1]])
    merged = sp.merge_small(labels, 2)
    np.testing.assert_array_equal(merged, [[0, 0, 0, 1], [0, 0, 2, 1], [2, 2, 2, 1], [2, 2, 2, 1]])
    # 0 and 3 both touch it twice: the lower label wins.
    assert merged[1, 1] == 0


def test_slivers_do_not_cross_walls():
    labels = np.array([[0, 1, 2, 2]])
    np.testing.assert_array_equal(sp.merge_small(labels, 2), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(
        sp.merge_small(labels, 2, inside=np.array([[0, 1, 1, 1]])), [[0, 1, 1, 1]]
    )
    np.testing.assert_array_equal(
        sp.merge_small(labels, 2, inside=np.array([[0, 1, 2, 2]])), labels
    )


def test_merging_goes_on_until_few_are_left():
    labels = np.random.default_rng(1).integers(0, 30, (12, 12))
    for most in (20, 5, 1):
        merged = sp.merge_small(labels, 0, most=most)
        assert merged.max() + 1 == most
        for n in range(30):
            assert len(np.unique(merged[labels == n])) == 1


def test_picture_undoes_the_preprocessing():
    preprocessing = Preprocessing((4, 4), (0.5,) * 3, (0.25,) * 3, order="BGR")
    model = Model.from_function(lambda _, x: x.mean((1, 2)), preprocessing=preprocessing)
    shown = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    np.testing.assert_allclose(sp.picture(preprocessing(shown), model), shown / 255, atol=1e-6)
    assert (sp.picture(np.full((2, 2, 3), 7.0)) == 0).all()


def test_buckets_are_few_and_large_enough():
    sizes = [sp.bucket(n) for n in range(1, 1000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert all(size <= max(32, 1.5 * n) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 14


PIXELS = np.full((4, 5, 3), 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sp.slic(PIXELS[..., :2]), ValueError, r"image has shape \(4, 5, 2\)"),
        (lambda: sp.slic(PIXELS * 4), ValueError, "values from 2 to 2"),
        (lambda: sp.quickshift(PIXELS * np.nan), ValueError, "values from nan"),
        (lambda: sp.slic(PIXELS, segments=0), ValueError, "segments=0"),
        (lambda: sp.slic(PIXELS, mask=np.ones((5, 4), bool)), ValueError, r"expected booleans"),
        (lambda: sp.quickshift(PIXELS, ratio=2), ValueError, "ratio=2"),
        (lambda: sp.quickshift(PIXELS, kernel_size=0.5), ValueError, "kernel_size=0.5"),
        (lambda: sp.quickshift(PIXELS, inside=np.ones((5, 4))), ValueError, r"shape \(5, 4\)"),
        (lambda: sp.grid((4, 5), rows=5), ValueError, "rows=5"),
        (lambda: sp.grab_cut(PIXELS, np.ones((5, 4))), ValueError, r"shape \(5, 4\)"),
        (lambda: sp.grab_cut(PIXELS, np.full((4, 5), np.nan)), ValueError, "20 non-finite"),
        (lambda: sp.grab_cut(PIXELS, np.eye(4, 5), seed=0.05), ValueError, "seed=0.05"),
        (lambda: sp.nested(PIXELS, np.eye(4, 5), smallest=1), ValueError, "smallest=1"),
        (lambda: sp.check_segments(np.zeros((4, 5)), (2, 4, 5)), TypeError, "float64"),
        (lambda: sp.check_segments(np.zeros((5, 4), int), (2, 4, 5)), ValueError, "for all images"),
        (lambda: sp.check_segments(np.full((4, 5), -1), (2, 4, 5)), ValueError, "label -1"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_images_are_cut_by_name_and_plain_ones_into_a_grid(image):
    images = np.stack([image, np.full_like(image, 0.5)]).astype(np.float32)
    labels = sp.segment(images, "slic")
    np.testing.assert_array_equal(labels[0], sp.slic(sp.picture(images[0])))
    few = sp.segment(images, "slic", most=9)
    assert few.max((1, 2)).tolist() == [8, 8]
    rectangles = sp.segment(images, "quickshift")[1]
    np.testing.assert_array_equal(rectangles, sp.grid(SIZE))
    tiny = sp.segment(images[:1, :2, :3], "grid")
    assert tiny.max() == 3  # cells of 4 pixels, were there as many; at least two a side


def test_unknown_way_to_cut_names_the_nearest():
    with pytest.raises(ValueError, match="'quick_shift'; nearest: quickshift"):
        sp.segment(np.zeros((1, 4, 4, 3), np.float32), "quick_shift")
