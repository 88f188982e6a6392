"""Colours, overlays and figures."""

import numpy as np
import pytest

from jaxplain import plot

RAMP = np.linspace(-1, 1, 9, dtype=np.float32)[None]


def test_the_sequential_colours_grow_lighter_from_level_to_level():
    luma = plot.palette(signed=False).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma[::8]) > 0).all()


def test_the_diverging_colours_are_lightest_and_greyest_at_zero():
    colours = plot.palette(signed=True, size=257).astype(float)
    spread = np.ptp(colours, axis=1)
    assert spread.argmin() == pytest.approx(128, abs=2)
    assert colours.sum(1).argmax() == pytest.approx(128, abs=2)


def test_signed_maps_are_centred_on_zero_whatever_their_range():
    rgb = plot.heatmap_rgb(np.array([[0.0, 5.0, -1.0]]), signed=True, percentile=100).astype(int)
    red, blue = rgb[0, 1], rgb[0, 2]
    assert np.ptp(rgb[0, 0]) <= 2
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_negative_values_of_unsigned_maps_count_as_zero():
    rgb = plot.heatmap_rgb(np.array([[-3.0, 0.0, 1.0]]))
    assert (rgb[0, 0] == rgb[0, 1]).all()


def test_the_scale_is_the_percentile_of_absolute_values():
    values = np.zeros((10, 100))
    values.flat[:200] = -np.arange(200)
    assert plot.scale(values) == pytest.approx(np.percentile(np.abs(values), 99.5), rel=1e-5)
    assert plot.scale(values, percentile=100) == 199


def test_a_map_of_a_few_pixels_is_scaled_by_its_maximum():
    values = np.zeros((100, 100))
    values[3, 4] = 7
    assert plot.levels(values, signed=False)[3, 4] == 1


def test_a_map_of_zeros_is_drawn_as_zeros():
    assert not plot.levels(np.zeros((4, 4)), signed=True).any()
    picture = np.full((4, 4, 3), 90, np.uint8)
    assert (plot.overlay(picture, np.zeros((4, 4))) == 90).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_colours_do_not_depend_on_the_unit_of_the_map(signed, factor):
    values = np.random.default_rng(0).normal(size=(8, 8))
    expected = plot.heatmap_rgb(values, signed=signed)
    assert (
        np.abs(plot.heatmap_rgb(values * factor, signed=signed).astype(int) - expected) <= 3
    ).all()


def test_overlays_have_the_picture_s_size_and_the_map_s_colour_where_it_is_strongest():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    heatmap = np.zeros((10, 15))
    heatmap[:, :5] = 1
    drawn = plot.overlay(picture, heatmap, strength=1)
    assert drawn.shape == picture.shape
    assert (drawn[:, 0] == plot.palette(signed=False)[-1]).all()
    assert (np.ptp(drawn[:, -1].astype(int), axis=1) == 0).all(), (
        "far from the map the picture is grey"
    )


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)])
def test_overlays_take_grey_pictures_and_colours(picture):
    assert plot.overlay(picture, np.ones((2, 2)), signed=True).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot.scale(np.zeros((2, 2, 2))), ValueError, r"\(2, 2, 2\)"),
        (lambda: plot.scale(np.array([[np.nan, np.inf]])), ValueError, "2 values"),
        (lambda: plot.scale(np.zeros((0, 2))), ValueError, r"\(0, 2\)"),
        (lambda: plot.scale(RAMP, percentile=0), ValueError, "percentile is 0"),
        (
            lambda: plot.overlay(np.zeros((2, 2), np.uint8), RAMP, strength=2),
            ValueError,
            "strength is 2",
        ),
        (lambda: plot.iou_curves({}, [0, 1]), ValueError, "curves is empty"),
        (
            lambda: plot.iou_curves({"a": [1, 2, 3]}, [0, 1]),
            ValueError,
            r"curves\['a'\] has shape \(3,\)",
        ),
        (lambda: plot.grid([], {}), ValueError, "pictures is empty"),
        (
            lambda: plot.grid([np.zeros((2, 2), np.uint8)], {"a": np.ones((2, 2, 2))}),
            ValueError,
            "one map a picture",
        ),
        (lambda: plot.grid([np.zeros((2, 2), np.uint8)], {}, signed=["b"]), ValueError, "'b'"),
        (
            lambda: plot.grid([np.zeros((2, 2), np.uint8)], {}, titles=["x", "y"]),
            ValueError,
            "titles has 2",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_curve_charts_show_the_area_that_the_trapezoid_rule_gives():
    thresholds = np.array([0.0, 0.5, 1.0])
    figure = plot.iou_curves(
        {"a": [0, 1, 0], "b": [1, 1, 1]}, thresholds, bands={"a": ([0, 0.8, 0], [0, 1, 0.2])}
    )
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["a  0.50", "b  1.00"]


def test_figures_are_drawn_once_by_notebooks():
    import matplotlib.pyplot as plt

    figure = plot.show(np.zeros((6, 6), np.uint8), np.ones((3, 3)), signed=True, title="Grad-CAM")
    assert plt.get_fignums() == []
    assert "Grad-CAM" in [axis.get_title() for axis in figure.axes]


def test_grids_have_a_row_a_picture_and_a_bar_for_each_kind_of_map():
    pictures = [np.zeros((6, 6), np.uint8)] * 3
    figure = plot.grid(
        pictures,
        {"plain": np.ones((3, 2, 2)), "signed": -np.ones((3, 2, 2))},
        signed=["signed"],
        titles="abc",
    )
    assert len(figure.axes) == 3 * 3 + 2


def test_channels_are_shown_relative_to_the_largest_of_their_class():
    weights = np.zeros((2, 9))
    weights[0, [1, 5]], weights[1, [5, 7]] = (4.0, -2.0), (0.5, 1.0)
    figure = plot.channels(weights, ["red", "blue"], most=3)
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["1", "5", "7"]
    colours = axis.images[0].get_array()
    assert colours.shape == (3, 2, 3)
    strongest = plot.palette(signed=True)[-1]
    assert (colours[0, 0] == strongest).all()
    assert (colours[2, 1] == strongest).all()
    assert colours[1, 0, 2] > colours[1, 0, 0]  # against the class: blue
    with pytest.raises(ValueError, match="weights has 2 rows for 3 class names"):
        plot.channels(weights, ["a", "b", "c"])


def test_shared_counts_are_written_into_their_squares():
    counts = {"top 10": np.array([[10, 3], [3, 10]]), "all": np.array([[7, 0], [0, 2]])}
    figure = plot.shared(counts, ["red", "blue"])
    texts = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert texts == [["10", "3", "3", "10"], ["7", "0", "0", "2"]]
    with pytest.raises(ValueError, match="counts is empty"):
        plot.shared({}, ["red"])
    with pytest.raises(ValueError, match=r"counts\['top 10'\] has 2 rows for 1 class names"):
        plot.shared(counts, ["red"])


def test_features_are_marked_by_their_layers_kind():
    features = [("conv1", "convolution", 3, 1.0), ("fc6", "dense", 11, 0.5)]
    figure = plot.explained(np.zeros((8, 8, 3), np.uint8), "rose", np.ones((2, 8, 8)), features)
    titles = [(axis.get_title(), axis.title.get_color()) for axis in figure.axes[1:3]]
    assert titles == [
        ("conv1 · 3", plot.KIND_COLOURS["convolution"]),
        ("fc6 · 11", plot.KIND_COLOURS["dense"]),
    ]
    for maps in (np.ones((3, 8, 8)), np.ones((8, 8))):
        with pytest.raises(ValueError, match="for 2 features; expected one map each"):
            plot.explained(np.zeros((8, 8), np.uint8), "rose", maps, features)


def test_average_images_stand_in_the_row_of_their_class():
    image = np.full((5, 7, 3), 200.0)
    image[0] = np.nan
    feature = ("conv1", "convolution", 3, 1.0)
    rows = {"rose": [(feature, image)] * 3, "daisy": [(feature, image[..., :1])], "none": []}
    figure = plot.montage(rows, most=2)
    assert len(figure.axes) == 6
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["rose", "daisy", "none"]
    shown = figure.axes[0].images[0].get_array()
    assert shown[0, 0, 0] == 128
    assert shown[1, 0, 0] == 200
    for empty in ({}, {"rose": []}):
        with pytest.raises(ValueError, match="holds no images"):
            plot.montage(empty)


def test_cutout_shows_what_the_mask_shows():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    mask = np.array([[True, False], [False, False]])
    shown = plot.cutout(picture, mask)
    np.testing.assert_array_equal(shown[:2, :2], picture[:2, :2])
    assert (shown[2:] == 225).all()
    assert (shown[:, 2:] == 225).all()


def test_grid_draws_masks_as_cutouts_without_a_colour_bar():
    pictures = [np.zeros((4, 4, 3), np.uint8)]
    mask = np.eye(4, dtype=bool)[None]
    figure = plot.grid(pictures, {"coarse": mask})
    assert len(figure.axes) == 2
    np.testing.assert_array_equal(
        figure.axes[1].images[0].get_array(), plot.cutout(pictures[0], mask[0])
    )


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [(np.eye(4), TypeError, "float64"), (np.ones(4, bool), ValueError, r"shape \(4,\)")],
)
def test_cutout_refuses_what_is_no_mask(mask, error, message):
    with pytest.raises(error, match=message):
        plot.cutout(np.zeros((4, 4), np.uint8), mask)
