import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation.mask_iou import THRESHOLDS, area_under, mask_iou
from jaxplain.evaluation.normalize import CHUNK


def naive_curve(heatmap: np.ndarray, mask: np.ndarray, thresholds) -> list[float]:
    heatmap = heatmap.astype(np.float64)
    scaled = (heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())
    curve = []
    for threshold in thresholds:
        both = either = 0
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                selected = scaled[y, x] >= threshold
                both += selected and mask[y, x]
                either += selected or mask[y, x]
        curve.append(both / either)
    return curve


def problem(seed: int, count: int = 3, shape: tuple[int, int] = (9, 7)):
    """Maps whose normalised values lie between the thresholds, so that rounding decides nothing."""
    generator = np.random.default_rng(seed)
    levels = (generator.integers(0, 20, (count, *shape)) + 0.5) / 20
    levels[:, 0, 0], levels[:, -1, -1] = 0, 1
    maps = (levels * generator.uniform(1, 9, (count, 1, 1)) - 3).astype(np.float32)
    masks = generator.random((count, *shape)) < 0.3
    masks[:, 2, 2] = True
    return maps, masks


def test_equals_the_naive_loop():
    maps, masks = problem(0)
    result = mask_iou(maps, masks)
    expected = [naive_curve(*pair, THRESHOLDS) for pair in zip(maps, masks, strict=True)]
    np.testing.assert_allclose(result.curves, expected, rtol=1e-6)
    np.testing.assert_allclose(
        result.areas, np.trapezoid(np.array(expected), THRESHOLDS), rtol=1e-6
    )
    np.testing.assert_allclose(result.mean_curve, np.mean(expected, 0), rtol=1e-6)
    np.testing.assert_allclose(
        result.mean_area, area_under(result.mean_curve, THRESHOLDS), rtol=1e-6
    )


def test_perfect_map_scores_one_from_the_first_step_on():
    mask = jnp.zeros((1, 8, 8), bool).at[0, 2:4, 2:6].set(True)
    result = mask_iou(mask.astype(jnp.float32), mask)
    share = 8 / 64
    np.testing.assert_allclose(result.curves[0], [share] + [1] * 20, rtol=1e-6)
    np.testing.assert_allclose(result.areas[0], 1 - 0.05 / 2 * (1 - share), rtol=1e-6)


def test_inverted_map_scores_zero_above_zero():
    mask = jnp.zeros((1, 4, 4), bool).at[0, :, 0].set(True)
    np.testing.assert_array_equal(mask_iou(1.0 - mask, mask).curves[0], [0.25] + [0] * 20)


def test_hand_made_staircase():
    heatmap = jnp.array([[[0.0, 1.0, 2.0, 4.0]]])
    mask = jnp.array([[[False, True, False, True]]])
    result = mask_iou(heatmap, mask, thresholds=(0.0, 0.25, 0.3, 0.5, 0.75, 1.0))
    np.testing.assert_allclose(result.curves[0], [2 / 4, 2 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])


def test_default_thresholds_select_the_values_that_equal_them():
    heatmap = jnp.array(THRESHOLDS, jnp.float32)[None, None]
    result = mask_iou(heatmap, jnp.ones(heatmap.shape, bool))
    np.testing.assert_allclose(result.curves[0], np.arange(21, 0, -1) / 21, rtol=1e-6)


def test_constant_map_selects_everything_at_zero_and_nothing_above():
    mask = jnp.zeros((2, 4, 4), bool).at[:, :2].set(True)
    maps = jnp.stack([jnp.zeros((4, 4)), jnp.full((4, 4), 3.0)])
    np.testing.assert_array_equal(mask_iou(maps, mask).curves, [[0.5] + [0] * 20] * 2)


def test_undefined_images_are_nan_and_left_out_of_the_mean():
    maps, masks = problem(1, count=3)
    maps[1, 0, 0] = np.nan
    masks[2] = False
    result = mask_iou(maps, masks)
    assert np.isnan(result.areas).tolist() == [False, True, True]
    assert np.isnan(result.curves).all(1).tolist() == [False, True, True]
    np.testing.assert_array_equal(result.mean_curve, result.curves[0])
    assert np.isnan(mask_iou(maps[1:], masks[1:]).mean_area)


def test_invariant_to_positive_affine_changes_of_the_map():
    maps, masks = problem(2)
    np.testing.assert_array_equal(
        mask_iou(maps, masks).curves, mask_iou(4 * maps + 16, masks).curves
    )


def test_more_images_than_a_chunk_equal_single_images():
    maps, masks = problem(3, count=CHUNK + 5)
    together = mask_iou(maps, masks).curves
    for index in (0, CHUNK - 1, CHUNK, CHUNK + 4):
        alone = mask_iou(maps[index : index + 1], masks[index : index + 1]).curves[0]
        np.testing.assert_array_equal(together[index], alone)


def test_memory_beside_the_input_does_not_grow_with_images_or_thresholds():
    def temporary(count: int, thresholds: int) -> int:
        shapes = (
            jax.ShapeDtypeStruct((count, 64, 64), jnp.float32),
            jax.ShapeDtypeStruct((count, 64, 64), jnp.bool_),
        )
        levels = np.linspace(0, 1, thresholds)
        measure = jax.jit(lambda maps, masks: mask_iou(maps, masks, thresholds=levels).areas)
        return measure.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(2 * CHUNK, 5), temporary(16 * CHUNK, 50)
    # The curves themselves, 4 bytes a threshold, are part of the answer.
    assert many - few < 16 * CHUNK * 64 * 64 // 2


def test_works_under_jit_and_vmap():
    maps, masks = problem(4, count=4)
    expected = mask_iou(maps, masks).areas
    maps, masks = jnp.asarray(maps), jnp.asarray(masks)
    jitted = jax.jit(lambda h, m: mask_iou(h, m).areas)(maps, masks)
    mapped = jax.vmap(lambda h, m: mask_iou(h[None], m[None]).areas[0])(maps, masks)
    np.testing.assert_allclose(jitted, expected, rtol=1e-6)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)


def test_area_of_a_line_is_its_mean_height_on_any_grid():
    for grid in ([0.0, 0.1, 0.7, 1.0], [0.2, 0.3, 0.6]):
        line = 2 * np.array(grid, np.float32) + 1
        np.testing.assert_allclose(area_under(line, grid), grid[0] + grid[-1] + 1, rtol=1e-6)


@pytest.mark.parametrize("thresholds", [(0.5,), (0.5, 0.5), (1.0, 0.0), (0.0, float("nan"))])
def test_thresholds_that_do_not_increase_are_refused(thresholds):
    maps, masks = problem(5)
    with pytest.raises(ValueError, match="thresholds"):
        mask_iou(maps, masks, thresholds=thresholds)
