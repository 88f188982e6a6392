import json
import math

import jax.numpy as jnp
import pytest

from benchmarks.figures import Figures, run, time_ratio


@pytest.mark.parametrize(
    ("value", "bounds", "line"),
    [
        (1.05, {"at_most": 1.1}, "cost 1.05 <=1.1 ok"),
        (1.15, {"at_most": 1.1}, "cost 1.15 <=1.1 short"),
        (0.99, {"at_least": 0.98}, "cost 0.99 >=0.98 ok"),
        (0.97, {"at_least": 0.98}, "cost 0.97 >=0.98 short"),
        (12.0, {}, "cost 12 - ok"),
        (math.nan, {}, "cost nan - short"),
        (math.nan, {"at_most": 1.1}, "cost nan <=1.1 short"),
    ],
)
def test_a_figure_is_printed_as_one_line(capsys, value, bounds, line):
    Figures().add("cost", value, **bounds)
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize(
    ("name", "bounds"), [("two words", {}), ("", {}), ("cost", {"at_most": 1, "at_least": 0})]
)
def test_unreadable_figures_are_refused(name, bounds):
    with pytest.raises(ValueError, match=r"one word|not both"):
        Figures().add(name, 1.0, **bounds)


def test_the_exit_code_tells_whether_a_figure_fell_short():
    with pytest.raises(SystemExit) as good:
        run(lambda figures: figures.add("cost", 1.0, at_most=1.1), [])
    with pytest.raises(SystemExit) as bad:
        run(lambda figures: figures.add("cost", 1.2, at_most=1.1), [])
    assert (good.value.code, bad.value.code) == (0, 1)


def test_the_record_holds_figures_machine_and_versions(tmp_path):
    path = tmp_path / "new" / "figures.json"
    with pytest.raises(SystemExit):
        run(lambda figures: figures.add("cost", 1.0, at_most=1.1), ["--quick", "--json", str(path)])
    record = json.loads(path.read_text())
    assert record["figures"] == [{"name": "cost", "value": 1.0, "target": "<=1.1", "ok": True}]
    assert record["quick"] is True
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["jax"]


def test_a_ratio_is_timed_in_turns_after_a_warm_up():
    calls = []
    ratio = time_ratio(
        lambda: calls.append("f") or jnp.zeros(()),
        lambda: calls.append("b") or jnp.zeros(()),
        pairs=2,
    )
    assert "".join(calls) == "fb" + "bf" + "fb"
    assert ratio > 0
