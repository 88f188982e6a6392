"""Extremal perturbations against their equations, written out pixel by pixel and step by step."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimised import IMAGES, MODEL, SIZE, TARGETS

from jaxplain.methods import extremal_channels, extremal_perturbation
from jaxplain.methods.extremal import _area_loss, _perturbed, _ranked
from jaxplain.methods.smooth_masks import cropped, grid_of, smooth_masks
from jaxplain.model import Model
from jaxplain.models.layers import tap

CELL, SIGMA, AREAS = 2, 3, (0.2, 0.5)
GRIDS = (grid_of(SIZE[0], CELL, SIGMA), grid_of(SIZE[1], CELL, SIGMA))


def mask_of(parameters, size, *, mirror=False):
    """Equation (5) at every pixel of one image, with zeros around its parameters, or a mirror."""
    middle, wide = ((CELL - 1) / 2, 5) if mirror else (0, 0)
    parameters = np.pad(parameters, wide, mode="symmetric")
    reach, padding = 1 + math.ceil(SIGMA / CELL), 1 + math.ceil(2 * SIGMA / CELL)
    found = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            values = []
            first = [(at + SIGMA) // CELL - padding for at in (y, x)]
            for i in range(first[0], first[0] + 2 * reach + 1):
                for j in range(first[1], first[1] + 2 * reach + 1):
                    row, column = i + wide, j + wide
                    inside = 0 <= row < parameters.shape[0] and 0 <= column < parameters.shape[1]
                    distance = math.hypot(y - middle - CELL * i, x - middle - CELL * j) / SIGMA
                    value = parameters[row, column] if inside else 0.0
                    values.append(value * math.exp(-2 * max(distance - 0.5, 0) ** 2))
            v = np.array(values)
            found[y, x] = (v * np.exp(20 * v)).sum() / np.exp(20 * v).sum()
    return found


@pytest.mark.parametrize("mirror", [True, False])
def test_masks_are_smooth_maxima_of_the_kernels(mirror):
    parameters = np.random.default_rng(0).uniform(size=(2, 5, 6)) ** 2
    found = cropped(smooth_masks(jnp.asarray(parameters), GRIDS, CELL, mirror=mirror), GRIDS)
    assert found.shape == (2, 10, 12)
    for number in range(2):
        expected = mask_of(parameters[number], (10, 12), mirror=mirror)
        np.testing.assert_allclose(found[number], expected, atol=1e-5)


@pytest.mark.parametrize(("cell", "sigma"), [(7, 21), (4, 6), (5, 1), (1, 3), (3, 3)])
def test_masks_cover_the_image_whatever_the_kernel(cell, sigma):
    grids = (grid_of(30, cell, sigma), grid_of(33, cell, sigma))
    ones = jnp.ones((1, grids[0].parameters, grids[1].parameters))
    m = cropped(smooth_masks(ones, grids, cell), grids)
    assert m.shape == (1, 30, 33)
    middle = m[:, 5:25, 5:25]
    assert float(middle.min()) > (0.5 if sigma >= cell else 0)


@pytest.mark.parametrize("levels", [1, 4, 1000])
def test_area_loss_is_the_distance_of_sorted_values(levels):
    """Its slope is the mean over all orders of what ties."""
    draw = np.random.default_rng(1)
    m = np.round(draw.uniform(size=(2, 60)) * levels) / levels
    expected, slopes = np.zeros(2), np.zeros((2, 60))
    for number, area in enumerate(AREAS):
        r = np.arange(60) >= int(60 * (1 - area))
        expected[number] = ((np.sort(m[number]) - r) ** 2).mean()
        for _ in range(4000):
            mixed = draw.permutation(60)
            order = mixed[np.argsort(m[number, mixed], kind="stable")]
            slopes[number, order] += 2 * (m[number, order] - r) / 60 / 4000
    given = jnp.asarray(m, jnp.float32)
    slope = jax.grad(lambda m: _area_loss(m, AREAS).sum())(given)
    np.testing.assert_allclose(slope, slopes, atol=2e-3 if levels < 1000 else 1e-6)
    if levels == 1000:
        np.testing.assert_allclose(_area_loss(given, AREAS), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_values_are_found_by_their_rank_in_every_precision(dtype):
    drawn = np.random.default_rng(4).uniform(size=37)
    drawn[[3, 8, 20]] = 0, drawn[9], np.inf  # a zero, and a tie
    values = jnp.asarray(drawn, dtype)
    found = jax.vmap(_ranked, (None, 0))(values, jnp.arange(37))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.sort(np.asarray(values)))


def test_rounding_does_not_choose_among_equal_places():
    m = 0.99 + 1e-7 * np.random.default_rng(2).integers(-4, 5, (1, 50))
    slope = jax.grad(lambda m: _area_loss(m, (0.2,)).sum())(jnp.asarray(m, jnp.float32))
    np.testing.assert_allclose(slope, 2 * (0.99 - 0.2) / 50, rtol=1e-4)


def test_precedence_orders_what_ties_and_nothing_else():
    m = jnp.array([[0.9, 0.5, 0.5, 0.1, 0.5, 0.5, 0.1, 0.1], [0.5] * 8])
    ranks = jnp.array([[0.0, 1, 3, 9, 0, 2, 9, 9], [4, 1, 1, 1, 5, 0, 0, 0]])
    slope = jax.grad(lambda m: _area_loss(m, (0.375, 0.5), ranks).sum())(m)
    inside = m - slope * 8 / 2
    # Three places of the first, and four of the second, of which three share the room of two.
    np.testing.assert_allclose(inside[0], [1, 0, 1, 0, 0, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(inside[1], [1, 2 / 3, 2 / 3, 2 / 3, 1, 0, 0, 0], atol=1e-6)


def test_mask_begins_where_precedence_says():
    blind = Model.from_function(lambda w, x: x.mean((1, 2, 3))[:, None] * w, jnp.zeros((1, 2)))
    first = jnp.zeros((1, 16, 16)).at[:, 2:6, 10:14].set(1)
    found = extremal_perturbation(
        blind, jnp.ones((1, 16, 16, 3)), jnp.array([0]), areas=1 / 16, steps=30, precedence=first
    )
    inside, outside = found.masks[first[None] > 0], found.masks[first[None] == 0]
    assert float(inside.mean()) > float(outside.mean()) + 0.2


def test_slope_of_masks_is_their_difference_quotient():
    draw = np.random.default_rng(3)
    parameters, away = draw.uniform(size=(2, 2, 5, 6)) * 0.9
    for mirror in (True, False):

        def total(p, mirror=mirror):
            m = np.stack([mask_of(each, (10, 12), mirror=mirror) for each in p])
            return (m * np.cos(np.arange(12))).sum()

        expected = (total(parameters + 1e-5 * away) - total(parameters - 1e-5 * away)) / 2e-5
        slope = jax.grad(
            lambda p, mirror=mirror: (
                cropped(smooth_masks(p, GRIDS, CELL, mirror=mirror), GRIDS)
                * jnp.cos(jnp.arange(12.0))[None, None]
            ).sum()
        )(jnp.asarray(parameters, jnp.float32))
        np.testing.assert_allclose((slope * away).sum(), expected, rtol=1e-3)


def test_images_lie_between_two_levels_of_blur():
    pyramid = jnp.arange(4.0)[:, None, None, None] ** 2 * jnp.ones((1, 1, 7, 1))
    mask = jnp.array([0.0, 1 / 6, 1 / 3, 0.5, 5 / 6, 1.0, 1.0])[None, None]
    found = _perturbed(pyramid, mask)[0, 0, :, 0]
    np.testing.assert_allclose(found, [0, 0.5, 1, 2.5, 6.5, 9, 9], atol=1e-5)


def blurred(image, sigma):
    """Return an image blurred with zeros around it, as a product with NumPy's own convolution."""
    if sigma == 0:
        return np.asarray(image, np.float64)
    reach = math.ceil(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()

    def line(values):
        return np.convolve(values, kernel)[reach:-reach]

    return np.apply_along_axis(line, 1, np.apply_along_axis(line, 0, image))


@pytest.mark.parametrize("border", ["mirror", "zero"])
def test_steps_equal_gradient_descent_written_out(border):
    steps, levels = 3, 3
    options = {"areas": AREAS, "variant": "dual", "steps": steps, "levels": levels, "blur": 1.5}
    options |= {"cell": CELL, "sigma": SIGMA, "border": border}
    found = extremal_perturbation(MODEL, IMAGES, TARGETS, **options)
    mirror = border == "mirror"
    image, target = IMAGES[1], int(TARGETS[1])
    pyramid = jnp.stack(
        [jnp.asarray(blurred(image, 1.5 * (1 - n / 2)), jnp.float32) for n in range(levels)]
    )

    @functools.partial(jax.jit, static_argnums=1)
    def losses(parameters, flipped):
        whole = smooth_masks(parameters, GRIDS, CELL, mirror=mirror)
        m = cropped(whole, GRIDS)
        whole = m if mirror else whole
        shown = jnp.concatenate([_perturbed(pyramid, m), _perturbed(pyramid, 1 - m)])
        scores = MODEL(shown[:, :, ::-1] if flipped else shown)[:, target]
        return _area_loss(whole.reshape(2, -1), AREAS), scores[:2] - scores[2:]

    parameters, mean, history = np.ones((2, 5, 6)), None, []
    for step in range(steps):
        weight = 300 * 1.0035**step

        def loss(p, weight=weight, step=step):
            area, reward = losses(p, step % 2 == 0)
            return (weight * area - reward).sum()

        value, slope = jax.value_and_grad(loss)(jnp.asarray(parameters, jnp.float32))
        history.append(value)
        mean = np.asarray(slope) if mean is None else 0.9 * mean + 0.1 * np.asarray(slope)
        parameters = np.clip(parameters - 0.01 * mean, 0, 1)
    np.testing.assert_allclose(found.history[1], history, rtol=1e-4)
    expected = np.stack([mask_of(p, SIZE[:2], mirror=mirror) for p in parameters])
    np.testing.assert_allclose(found.masks[1], expected, atol=1e-4)
    np.testing.assert_allclose(found.heatmap[1], expected.sum(0), atol=1e-4)
    np.testing.assert_allclose(found.covered[1], expected.mean((1, 2)), atol=1e-4)
    assert found.masks.min() < 0.5 < found.masks.max()


STRIPES = np.where(np.arange(29) % 2 == 0, 1.0, -1.0)[None, :, None, None]
LEFT = np.zeros((29, 37), bool)
LEFT[8:20, 4:16] = True


def squares(w, x):
    """Two classes: the contrast of stripes in a square on the left, and in one on the right."""
    contrast = x * STRIPES
    found = [contrast[:, 8:20, 4:16].mean((1, 2, 3)), contrast[:, 8:20, 21:33].mean((1, 2, 3))]
    return jnp.stack(found, 1) * w


@pytest.mark.parametrize(
    ("variant", "border"), [("preserve", "mirror"), ("delete", "zero"), ("dual", "zero")]
)
def test_mask_goes_where_the_class_is_and_has_its_area(variant, border):
    # In two levels, so that the picture loses contrast in proportion to the mask. In eight, stripes
    # of one pixel lose all of it to the weakest blur: a deletion then feels nothing of the class
    # before its mask is below 1/7, and by that time the area has chosen the places.
    # Both halves of a dual reward rise with the mask, here by the same amount.
    weight = 10.0 if variant == "dual" else 20.0
    # Cells of which the one side is the mirror image of the other.
    cell = 1 if border == "mirror" else 2
    found = extremal_perturbation(
        Model.from_function(squares, jnp.full((1, 2), weight)),
        jnp.broadcast_to(jnp.asarray(STRIPES, jnp.float32), (2, 29, 37, 1)), jnp.array([0, 1]),
        # With zeros around, it is a share of what is wider than the image by sigma on every side.
        areas=144 / (29 * 37 if border == "mirror" else 37 * 45), variant=variant, border=border,
        steps=200, growth=1.01, blur=8.0, levels=2, cell=cell, sigma=4, flip=False,
    )  # fmt: skip
    for mask, square in zip(found.masks[:, 0] > 0.5, (LEFT, LEFT[:, ::-1]), strict=True):
        assert (mask & square).sum() / (mask | square).sum() > 0.75
        assert abs(mask.sum() / 144 - 1) < 0.15
    # Neither side is preferred.
    np.testing.assert_allclose(found.masks[0], found.masks[1, :, :, ::-1], atol=2e-2)


def test_no_place_of_a_small_image_starts_ahead():
    # The frame one pixel wide has 60 of the 256 pixels.
    blind = Model.from_function(lambda w, x: x.mean((1, 2, 3))[:, None] * w, jnp.zeros((1, 2)))
    images, targets = jnp.ones((1, 16, 16, 3)), jnp.zeros(1, jnp.int32)
    found = extremal_perturbation(blind, images, targets, areas=60 / 256, steps=30)
    np.testing.assert_allclose(found.masks, float(found.masks.mean()), atol=1e-4)
    assert float(found.masks.mean()) < 0.9
    theirs = extremal_perturbation(
        blind, images, targets, areas=60 / 256, steps=30, border="zero"
    ).masks[0, 0]
    assert float(jnp.ptp(theirs)) > 0.3


def test_channels_are_those_that_the_class_reads():
    def apply(w, x):
        return tap(tap(x @ jnp.eye(3, 8), "wide") + 1, "features").mean((1, 2)) @ w

    # Class 0 reads channels 1 and 5, class 1 channel 2; areas are shares of eight channels.
    weights = jnp.zeros((8, 2)).at[jnp.array([1, 5]), 0].set(1e3).at[2, 1].set(1e3)
    with jax.numpy_rank_promotion("allow"):
        found = extremal_channels(
            Model.from_function(apply, weights, input_shape=(4, 4, 3)),
            jnp.ones((2, 4, 4, 3)),
            jnp.array([0, 1]),
            layer="features",
            areas=(0.125, 0.25),
        )
    chosen = found.masks > 0.5
    assert chosen[0, 1].tolist() == [c in (1, 5) for c in range(8)]
    assert chosen[1, 0].tolist() == [c == 2 for c in range(8)]


def test_smoothing_and_several_areas_make_one_map():
    options = {"areas": AREAS, "steps": 2, "cell": CELL, "sigma": SIGMA}
    found = extremal_perturbation(MODEL, IMAGES, TARGETS, **options)
    smooth = extremal_perturbation(
        MODEL, IMAGES, TARGETS, **options | {"areas": list(AREAS), "smooth": 0.09}
    )
    np.testing.assert_array_equal(found.heatmap, found.masks.sum(1))
    np.testing.assert_array_equal(smooth.masks, found.masks)
    assert float(jnp.ptp(smooth.heatmap)) < float(jnp.ptp(found.heatmap))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"areas": 0.0}, "areas="),
        ({"areas": (0.1, 1.0)}, "areas="),
        ({"areas": ()}, "areas="),
        ({"steps": 0}, "steps=0"),
        ({"levels": 1}, "levels=1"),
        ({"sigma": 6}, "sigma=6.*shorter side is 10"),
        ({"cell": 0}, "cell=0"),
        ({"blur": -1.0}, "sigma=-1.0"),
        ({"precedence": jnp.ones((1, 3, 3))}, r"precedence has shape \(1, 3, 3\); expected"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        extremal_perturbation(MODEL, IMAGES, TARGETS, **options)


def test_unknown_layer_of_channels_is_refused():
    with pytest.raises(ValueError, match="unknown layer 'conv9'; nearest: conv"):
        extremal_channels(MODEL, IMAGES, TARGETS, layer="conv9")
