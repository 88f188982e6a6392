import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxplain
from jaxplain.evaluation.bootstrap import class_means
from jaxplain.evaluation.energy import energy_inside
from jaxplain.evaluation.mask_iou import mask_iou
from jaxplain.evaluation.pointing import pointing_game
from jaxplain.evaluation.results import Evaluation
from jaxplain.evaluation.run import evaluate

COUNT, SIDE = 7, 8
OPTIONS = {"key": jax.random.key(0), "batch_size": 3, "resamples": 200}


class Method:
    """The least that `evaluate` asks for; `draw(images, targets, key, layer) -> maps`."""

    def __init__(self, name, draw, **traits):
        self.name, self.title, self.draw = name, f"The {name}", draw
        self.traced = 0
        self.__dict__.update(traits)

    def explain(self, model, images, targets, *, key=None, layer=None):
        self.traced += 1
        return SimpleNamespace(heatmap=self.draw(images, targets, key, layer))


def first(images, targets, key, layer):
    return images[..., 0]


@pytest.fixture(scope="module")
def scene():
    """Images whose first channel is noise that leans to the mask, and whose second is the mask."""
    generator = np.random.default_rng(0)
    masks = np.zeros((COUNT, SIDE, SIDE), bool)
    for mask in masks:
        top, left = generator.integers(0, SIDE - 3, 2)
        mask[top : top + 3, left : left + 2] = True
    noise = generator.random(masks.shape) + 0.5 * masks
    images = np.stack([noise, masks], -1).astype(np.float32)
    return images, np.array([0, 1, 1, 0, 1, 0, 0]), masks


def test_figures_are_those_of_the_measures_on_the_whole_set(scene):
    images, targets, masks = scene
    evaluation = evaluate(None, [Method("noise", first)], *scene, **OPTIONS)
    result = evaluation.result("noise")
    iou = mask_iou(images[..., 0], masks)
    measures = {
        "iou_area": iou.areas,
        "pointing": pointing_game(images[..., 0], masks),
        "pointing_plain": pointing_game(images[..., 0], masks, tolerance=0),
        "energy": energy_inside(images[..., 0], masks),
    }
    assert set(result.scores) == set(measures)
    for name, values in measures.items():
        score, values = result.scores[name], np.asarray(values)
        by_class = [values[targets == label].mean() for label in (0, 1)]
        each = [estimate.value for estimate in score.per_class]
        np.testing.assert_allclose(each, by_class, rtol=1e-6)
        np.testing.assert_allclose(score.mean.value, np.mean(by_class), rtol=1e-6)
        assert score.mean.low <= score.mean.value <= score.mean.high
        assert [estimate.count for estimate in score.per_class] == [4, 3]
        assert score.mean.count == COUNT
    curves = np.asarray(iou.curves)
    by_class = [curves[targets == label].mean(0) for label in (0, 1)]
    np.testing.assert_allclose(result.curve, np.mean(by_class, 0), rtol=1e-6)
    area = np.trapezoid(result.curve, evaluation.thresholds)
    np.testing.assert_allclose(area, result.scores["iou_area"].mean.value, rtol=1e-6)


def test_intervals_are_those_of_the_bootstrap(scene):
    images, targets, masks = scene
    measured = evaluate(None, [Method("noise", first)], *scene, **OPTIONS, confidence=0.8)
    found = measured.result("noise").scores["energy"].mean
    widths = [
        float(interval.high - interval.low)
        for interval in (
            class_means(
                energy_inside(images[..., 0], masks),
                targets,
                num_classes=2,
                key=jax.random.key(9),
                resamples=200,
                confidence=confidence,
            ).mean
            for confidence in (0.6, 0.95)
        )
    ]
    assert widths[0] < found.high - found.low < widths[1]


def test_map_equal_to_the_mask_is_perfect_and_its_inverse_hopeless(scene):
    methods = [
        Method("truth", lambda images, *_: images[..., 1]),
        Method("lie", lambda images, *_: 1 - images[..., 1]),
    ]
    rows = {row["method"]: row for row in evaluate(None, methods, *scene, **OPTIONS).rows()}
    share = 6 / SIDE**2
    assert rows["truth"]["energy"] == rows["truth"]["pointing_plain"] == 1
    np.testing.assert_allclose(rows["truth"]["iou_area"], 1 - 0.025 * (1 - share), rtol=1e-6)
    assert rows["lie"]["energy"] == rows["lie"]["pointing_plain"] == 0
    np.testing.assert_allclose(rows["lie"]["iou_area"], 0.025 * share, rtol=1e-6)


def test_batch_size_changes_nothing_and_a_method_is_traced_once(scene):
    methods = [Method("noise", first) for _ in range(2)]
    ragged = evaluate(None, methods[:1], *scene, **OPTIONS).result("noise")
    whole = evaluate(None, methods[1:], *scene, **{**OPTIONS, "batch_size": 50}).result("noise")
    assert [method.traced for method in methods] == [1, 1]
    assert ragged.scores == whole.scores
    assert ragged.curve == whole.curve


def test_random_method_gets_a_key_of_its_own_in_every_batch(scene):
    keys = []

    def draw(images, targets, key, layer):
        jax.debug.callback(lambda data: keys.append(data.tolist()), jax.random.key_data(key))
        return jax.random.uniform(key, images.shape[:3])

    def scores(*methods, seed=0):
        table = evaluate(None, methods, *scene, **{**OPTIONS, "key": jax.random.key(seed)})
        jax.effects_barrier()
        return table.result("dice").scores

    dice, other = Method("dice", draw, random=True), Method("noise", first)
    alone = scores(dice)
    assert len({tuple(key) for key in keys}) == 3
    assert scores(other, dice) == alone
    assert scores(dice, seed=1) != alone


def test_only_layered_methods_get_the_layer_and_only_random_ones_a_key(scene):
    seen = {}

    def remember(name):
        def draw(images, targets, key, layer):
            seen[name] = (key is not None, layer)
            return images[..., 0]

        return draw

    methods = [
        Method("plain", remember("plain")),
        Method("layered", remember("layered"), layered=True),
        Method("random", remember("random"), random=True),
    ]
    methods[2].name = "dice"
    evaluate(None, methods, *scene, **OPTIONS, layer="conv3")
    assert seen == {"plain": (False, None), "layered": (False, "conv3"), "random": (True, None)}


def test_evidence_against_is_cut_off_signed_maps_alone(scene):
    def draw(images, targets, key, layer):
        return images[..., 0] - 0.6

    def positive(images, targets, key, layer):
        return jnp.maximum(images[..., 0] - 0.6, 0)

    methods = [
        Method("signed", draw, signed=True),
        Method("raw", draw),
        Method("positive", positive),
    ]
    table = evaluate(None, methods, *scene, **OPTIONS)
    signed, raw, expected = (table.result(m.name) for m in methods)
    assert signed.scores == expected.scores
    assert raw.scores["iou_area"] != expected.scores["iou_area"]


def test_broken_and_empty_maps_are_counted_and_left_out(scene):
    def draw(images, targets, key, layer):
        maps = images[..., 0].at[0, 0, 0].set(jnp.nan)
        return maps.at[1].set(0.0)

    def infinite(images, targets, key, layer):
        return images[..., 0].at[0, 0, 0].set(-jnp.inf)

    methods = [Method("broken", draw), Method("infinite", infinite, signed=True)]
    table = evaluate(None, methods, *scene, **OPTIONS)
    # Three batches: the third holds one image, whose fillings must not be counted.
    broken = table.result("broken")
    assert (broken.nonfinite, broken.constant) == (3, 2)
    assert broken.scores["iou_area"].mean.count == 4
    assert broken.scores["energy"].mean.count == 2
    assert table.result("infinite").nonfinite == 3
    text = table.to_markdown()
    assert "The broken: 3 of 7 maps hold NaN or infinity" in text
    assert "The broken: 2 of 7 maps are constant" in text
    assert "The broken: energy inside is undefined on 2 more of 7 images" in text
    assert Evaluation.from_json(table.to_json()) == table


def test_method_that_is_never_finite_is_undefined_not_zero(scene):
    table = evaluate(
        None, [Method("nan", lambda images, *_: images[..., 0] * jnp.nan)], *scene, **OPTIONS
    )
    row = table.rows()[0]
    assert row["nonfinite"] == COUNT
    assert row["iou_area"] is row["energy_low"] is None
    assert set(table.result("nan").curve) == {None}
    assert "undefined" in table.to_markdown()
    assert Evaluation.from_json(table.to_json()) == table


def test_work_on_the_host_runs_uncompiled_with_the_same_figures(scene):
    def on_host(images, targets, key, layer):
        return np.asarray(images)[..., 0]

    table = evaluate(None, [Method("host", on_host), Method("device", first)], *scene, **OPTIONS)
    host, device = table.result("host"), table.result("device")
    assert (host.compiled, device.compiled) == (False, True)
    assert host.scores == device.scores
    assert host.seconds_per_image > 0 < device.seconds_per_image
    assert device.compile_seconds > 0
    assert "The host works partly on the host" in table.to_markdown()


def test_method_that_cannot_explain_raises_or_is_reported(scene):
    def refuse(images, targets, key, layer):
        raise ValueError("no global | average pooling")

    methods = [Method("cam", refuse), Method("noise", first)]
    with pytest.raises(ValueError, match="no global"):
        evaluate(None, methods, *scene, **OPTIONS)
    table = evaluate(None, methods, *scene, **OPTIONS, on_error="report")
    assert table.rows()[0]["error"] == "no global | average pooling"
    assert table.rows()[0]["energy"] is None
    assert table.rows()[1]["error"] is None
    assert "The cam is not applicable: no global \\| average pooling" in table.to_markdown()
    assert Evaluation.from_json(table.to_json()) == table


def test_other_errors_are_never_swallowed(scene):
    def wrong(images, targets, key, layer):
        return images.no_such_attribute

    with pytest.raises(AttributeError):
        evaluate(None, [Method("wrong", wrong)], *scene, **OPTIONS, on_error="report")


def test_baselines_are_the_centre_and_noise(scene):
    _, _, masks = scene
    table = evaluate(None, [], *scene, **OPTIONS)
    assert [(row["method"], row["baseline"]) for row in table.rows()] == [
        ("centre", True),
        ("random", True),
    ]
    middle = masks[:, 3:5, 3:5].mean((1, 2))
    labels = np.array([0, 1, 1, 0, 1, 0, 0])
    expected = np.mean([middle[labels == label].mean() for label in (0, 1)])
    np.testing.assert_allclose(table.rows()[0]["pointing_plain"], expected, rtol=1e-6)
    assert abs(table.rows()[1]["energy"] - 6 / SIDE**2) < 0.03
    assert table.rows()[0]["seconds_per_image"] is None


def test_progress_is_told_after_every_batch(scene):
    told = []
    methods = [Method("one", first), Method("two", first)]
    evaluate(None, methods, *scene, **OPTIONS, progress=lambda *where: told.append(where))
    assert told == [(name, done, 7) for name in ("one", "two") for done in (3, 6, 7)]


def test_classes_are_named_by_the_model(scene):
    images, targets, masks = scene
    model = jax.tree_util.Partial(lambda: None)
    model.class_names = ("daisy", "rose", "lily")
    table = evaluate(model, [], images, targets + 1, masks, **OPTIONS)
    assert table.classes == ("rose", "lily")
    assert [row["class"] for row in table.class_rows()] == ["rose", "lily"] * 2
    assert evaluate(None, [], *scene, **OPTIONS).classes == ("0", "1")


def test_methods_come_as_a_mapping_too(scene):
    noise = Method("noise", first)
    table = evaluate(None, {"noise": noise}, *scene, **OPTIONS)
    assert table.results[0].name == "noise"


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        (["grad_cam"], TypeError, "'grad_cam'"),
        ([Method("a", first), Method("a", first)], ValueError, "'a' twice"),
        ([Method("centre", first)], ValueError, "'centre' twice"),
        (
            [Method("small", lambda images, *_: images[:, :4, :4, 0])],
            ValueError,
            r"'small' returned maps of shape \(3, 4, 4\), expected \(3, 8, 8\)",
        ),
    ],
)
def test_bad_methods_are_refused_by_name(scene, methods, error, message):
    with pytest.raises(error, match=message):
        evaluate(None, methods, *scene, **OPTIONS)


@pytest.mark.parametrize(
    ("option", "value"), [("thresholds", (1.0, 0.0)), ("tolerance", -1.0), ("confidence", 2.0)]
)
def test_impossible_options_are_not_blamed_on_a_method(scene, option, value):
    with pytest.raises(ValueError, match=option):
        evaluate(
            None, [Method("a", first)], *scene, **{**OPTIONS, option: value}, on_error="report"
        )


def test_methods_that_read_the_same_run_have_it_together(scene):
    calls = []
    model = jaxplain.Model.from_function(lambda _, x: x.mean((1, 2)))

    def both(model, images, targets, *, key):
        calls.append(key)
        noise = jax.random.uniform(key, images.shape[:3])
        return Halves(images[..., 0] + noise, images[..., 1] + noise)

    class Halves(NamedTuple):
        heatmap: jax.Array
        other: jax.Array

        def turned(self):
            return self._replace(heatmap=self.other)

    line = functools.partial(
        jaxplain.Method,
        function=both,
        heatmap=lambda maps: maps,
        summary="",
        reference="",
        random=True,
        gradient=False,
        host=True,
    )
    one = line("one", "One", view=lambda found: found)
    other = line("other", "Other", view=Halves.turned)
    seen = []
    together = evaluate(
        model,
        [one, Method("noise", first), other],
        *scene,
        **OPTIONS,
        progress=lambda *report: seen.append(report),
    )
    batches = len(calls)
    assert batches == 3
    assert [result.name for result in together.results][:3] == ["one", "noise", "other"]
    assert [report for report in seen if report[0] == "other"] == [
        ("other", 3, 7),
        ("other", 6, 7),
        ("other", 7, 7),
    ]
    for method in (one, other):
        alone = evaluate(model, [method], *scene, **OPTIONS)
        assert alone.result(method.name).scores == together.result(method.name).scores
    assert together.result("one").scores != together.result("other").scores
