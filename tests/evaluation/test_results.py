import json

import pytest

from jaxplain.evaluation.results import Estimate, Evaluation, MethodResult, Score


def score(*values: float | None) -> Score:
    estimates = [
        Estimate(None, None, None, 0) if value is None else Estimate(value, value - 0.1, None, 5)
        for value in values
    ]
    return Score(estimates[0], tuple(estimates[1:]))


def table(*results: MethodResult) -> Evaluation:
    return Evaluation(
        results, ("rose", "lily"), (0.0, 0.5, 1.0), 7.5, 10, (112, 112), 32, 500, 0.9, (0, 42)
    )


GOOD = MethodResult(
    "good",
    "Good",
    {"iou_area": score(0.7, 0.6, 0.8), "energy": score(0.9, 1.0, 0.8)},
    (0.1, 0.9, 0.4),
    seconds_per_image=0.01234,
    compile_seconds=2.5,
)
POOR = MethodResult("poor", "Poor", {"iou_area": score(0.2, 0.2, None)}, (0.1, None, 0.0))
RANDOM = MethodResult("random", "Random", {"iou_area": score(0.8, 0.8, 0.8)}, (0.1, 0.1, 0.1), True)


def test_json_round_trip_is_exact():
    evaluation = table(GOOD, POOR, RANDOM)
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    assert Evaluation.from_json(evaluation.to_json(indent=2)) == evaluation


def test_json_is_strict_and_undefined_is_null():
    content = json.loads(
        table(POOR).to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert content["results"][0]["curve"][1] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "format is None"),
        ('{"format": "other"}', "format is 'other'"),
        ('{"format": "jaxplain.evaluation/1"}', "results"),
        ('{"format": "jaxplain.evaluation/1", "results": [{"name": "a"}]}', "fields"),
        (table(GOOD).to_json().replace('"images"', '"colour": 1, "images"'), "colour"),
    ],
)
def test_other_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Evaluation.from_json(text)


def test_rows_are_flat_with_the_same_columns_for_all():
    good, poor = table(GOOD, POOR).rows()
    assert good.keys() == poor.keys()
    assert good["iou_area"] == 0.7
    assert good["iou_area_low"] == 0.7 - 0.1
    assert good["iou_area_count"] == 5
    assert good["seconds_per_image"] == 0.01234
    assert poor["energy"] is poor["energy_low"] is None
    assert poor["energy_count"] == 0


def test_class_rows_name_the_class():
    rows = table(GOOD, POOR).class_rows()
    found = [(row["method"], row["class"], row["iou_area"]) for row in rows]
    assert found == [
        ("good", "rose", 0.6),
        ("good", "lily", 0.8),
        ("poor", "rose", 0.2),
        ("poor", "lily", None),
    ]


def test_markdown_is_a_table_with_the_best_method_in_bold():
    lines = table(GOOD, POOR, RANDOM).to_markdown().splitlines()
    assert {line.count("|") for line in lines[:5]} == {8}
    assert "**0.700**" in lines[2]
    assert "0.0123" in lines[2]
    assert "**" not in lines[3]
    # The baseline is higher, but it is no method.
    assert "(baseline)" in lines[4]
    assert "**" not in lines[4]


def test_markdown_cannot_be_broken_by_a_name():
    nasty = MethodResult("x", "a|b\n<script>*c*", {}, (), error="line\n\n| cell | <b>")
    lines = table(nasty).to_markdown().splitlines()
    assert lines[2].startswith("| a\\|b &lt;script&gt;\\*c\\* |")
    assert "<" not in "".join(lines)
    assert [line for line in lines[4:] if line and not line.startswith("- ")] == []


def test_unknown_result_names_the_nearest():
    assert table(GOOD).result("good") is GOOD
    with pytest.raises(ValueError, match=r"'god' was not evaluated; nearest: good"):
        table(GOOD, POOR).result("god")
