"""The leaderboard's figures, against loops over pictures and the measures one by one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.evaluation import box_iou, energy_inside, heatmap_boxes, insertion_deletion, mask_iou
from jaxplain.evaluation.leaderboard import (
    MEASURES,
    STEPS,
    Leaderboard,
    Measured,
    Standing,
    joined,
    left_out_errors,
    measure_maps,
    ranked,
    standing,
)
from jaxplain.evaluation.results import Estimate
from jaxplain.evaluation.thresholds import FRACTIONS
from jaxplain.model import Model

SIZE = 8
MODEL = Model.from_function(
    lambda w, x: jnp.einsum("bhwc,hwck->bk", jnp.tanh(x), w, precision="highest"),
    jax.random.normal(jax.random.key(2), (SIZE, SIZE, 1, 3)),
)
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(4, SIZE, SIZE, 1)).astype(np.float32)
MAPS = RANDOM.random((4, SIZE, SIZE)).astype(np.float32)
TARGETS = np.array([0, 1, 2, 0])
BOXES = np.array([[1, 1, 6, 6], [0, 2, 4, 8], [3, 3, 7, 7], [2, 0, 8, 5]])
MASKS = np.zeros((4, SIZE, SIZE), bool)
for mask, (top, left, bottom, right) in zip(MASKS, BOXES, strict=True):
    mask[top:bottom, left:right] = True


@pytest.fixture(scope="module")
def measured():
    return measure_maps(MODEL, IMAGES, TARGETS, MAPS, MASKS, BOXES, tolerance=1)


def test_measures_are_those_of_the_package(measured):
    np.testing.assert_allclose(measured.values["iou_area"], mask_iou(MAPS, MASKS).areas)
    np.testing.assert_allclose(measured.values["energy"], energy_inside(MAPS, MASKS))
    curves = insertion_deletion(MODEL, IMAGES, TARGETS, MAPS, steps=STEPS)
    np.testing.assert_allclose(measured.values["insertion"], curves.insertion_area, rtol=1e-6)
    np.testing.assert_allclose(measured.curves["deletion"], curves.deletion, rtol=1e-6)
    for i, k in ((0, 3), (3, 12)):
        box = heatmap_boxes(MAPS[i : i + 1], FRACTIONS[k : k + 1])[0, 0]
        assert measured.overlaps[i, k] == box_iou(box, BOXES[i])


def test_pictures_without_a_map_are_undefined_and_harm_no_other(measured):
    maps = MAPS.copy()
    maps[1, 2, 2] = np.nan
    found = measure_maps(MODEL, IMAGES, TARGETS, maps, MASKS, BOXES, tolerance=1)
    for name, values in found.values.items():
        assert np.isnan(values).tolist() == [False, True, False, False], name
        np.testing.assert_allclose(values[[0, 2, 3]], measured.values[name][[0, 2, 3]], rtol=1e-6)
    assert np.isnan(found.overlaps[1]).all()
    assert np.isnan(left_out_errors(found.overlaps)).tolist() == [False, True, False, False]


def by_loop(overlaps):
    """One picture at a time: the threshold is searched for on all the others."""
    errors = []
    for i in range(len(overlaps)):
        others = np.delete(overlaps, i, 0)
        missed = [np.sum(others[:, k] < 0.5) for k in range(overlaps.shape[1])]
        best = [k for k, count in enumerate(missed) if count == min(missed)]
        errors.append(float(overlaps[i, best[len(best) // 2]] < 0.5))
    return errors


@pytest.mark.parametrize("seed", range(20))
def test_no_picture_chooses_its_own_threshold(seed):
    random = np.random.default_rng(seed)
    overlaps = random.random((random.integers(2, 9), random.integers(1, 7)))
    assert left_out_errors(overlaps).tolist() == by_loop(overlaps)


def test_one_picture_has_no_others():
    with pytest.raises(ValueError, match="known of 1 pictures"):
        left_out_errors(np.ones((1, 3)))


def test_a_line_holds_means_over_the_classes_and_their_intervals(measured):
    line = standing("m", "M", measured, TARGETS, [0.3, 0.1, 0.2], key=jax.random.key(0))
    energy = measured.values["energy"]
    expected = np.mean([energy[label == TARGETS].mean() for label in range(3)])
    found = line.estimates["energy"]
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.low <= found.value <= found.high
    assert found.count == 4
    assert line.estimates["seconds"].value == 0.2
    assert set(line.estimates) == {measure.name for measure in MEASURES}
    assert len(line.curves["insertion"]) == STEPS + 1


def test_batches_join_to_the_whole(measured):
    halves = [
        measure_maps(
            MODEL, IMAGES[rows], TARGETS[rows], MAPS[rows], MASKS[rows], BOXES[rows], tolerance=1
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    found = joined(halves)
    for name, values in measured.values.items():
        np.testing.assert_allclose(found.values[name], values, rtol=1e-6)
    np.testing.assert_array_equal(found.overlaps, measured.overlaps)


def line(name, area, **traits):
    estimates = {} if area is None else {"iou_area": Estimate(area, area - 0.1, area + 0.1, 6)}
    return Standing(name, f"The | {name}", traits.pop("pictures", 6), estimates, **traits)


BOARD = Leaderboard(
    "flowers",
    "net",
    "abc",
    0,
    0.995,
    7.5,
    ranked(
        [
            line("random", 0.9, baseline=True),
            line("broken", None, error="it cannot"),
            line("poor", 0.104),
            line("slow", 0.41, costly=True, pictures=2),
            line("good", 0.406),
        ]
    ),
)


def test_lines_stand_by_area_then_baselines_then_what_failed():
    assert [s.name for s in BOARD.standings] == ["slow", "good", "poor", "random", "broken"]


def test_the_best_are_all_who_show_the_best_digits():
    area = MEASURES[0]
    assert BOARD.best(area) == 0.41
    assert BOARD.best(MEASURES[1]) is None
    table = BOARD.to_markdown()
    assert table.count("**0.41**") == 2
    assert "**0.90**" not in table


def test_markdown_tells_what_is_missing_and_what_had_fewer_pictures():
    table = BOARD.to_markdown()
    rows = [row for row in table.splitlines() if row.startswith("|")]
    assert len(rows) == 2 + 4
    assert {row.replace(r"\|", "").count("|") for row in rows} == {len(MEASURES) + 3}
    assert "The | broken is missing: it cannot" in table
    assert "and so fewer pictures (2)" in table


def test_a_figure_without_an_interval_is_told_to_have_none():
    alone = Standing("alone", "Alone", 2, {"iou_area": Estimate(0.3, None, None, 2)})
    table = dataclasses.replace(BOARD, standings=(alone,)).to_markdown()
    assert "| Alone | **0.30** | –" in table
    assert "one picture a class have no interval" in table
    assert "no interval" not in BOARD.to_markdown()


def test_json_keeps_everything(measured):
    whole = standing("m", "M", measured, TARGETS, [], key=jax.random.key(0), options="a = 1")
    board = Leaderboard("d", "n", "x", 1, 1.0, 7.0, (whole, *BOARD.standings), {"jax": "1"})
    assert Leaderboard.from_json(board.to_json()) == board
    assert "NaN" not in board.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "format is None"),
        (json.dumps({"format": "other"}), "format is 'other'"),
        (json.dumps({"format": "jaxplain.leaderboard/1"}), "not the fields"),
    ],
)
def test_other_files_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Leaderboard.from_json(text)


def test_an_undefined_measure_is_no_figure():
    values = {"energy": np.full(3, np.nan)}
    found = Measured(values, {"iou": np.full((3, 2), np.nan)}, np.ones((3, 2)))
    made = standing("m", "M", found, np.zeros(3, int), [], key=jax.random.key(0))
    assert made.value("energy") is None
    assert made.curves == {}
