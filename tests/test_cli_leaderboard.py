"""`jaxplain evaluate` on a network and methods so small that what they do can be counted."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxplain.methods
import jaxplain.models
from jaxplain.cli import app, compilation, console
from jaxplain.data.an8flower import VARIANTS
from jaxplain.evaluation.leaderboard import Leaderboard
from jaxplain.methods import Method
from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing

SIZE = 32
CALLS: list[tuple[str, int]] = []
STOP: set[str] = set()


def brightness(weights, images):
    return images.mean((1, 2)) @ weights


@functools.cache
def model(scale=1.0, classes=VARIANTS["single_6c"].class_names):
    weights = np.random.default_rng(0).normal(size=(3, len(classes))) * scale
    return Model.from_function(
        brightness,
        jnp.asarray(weights, jnp.float32),
        preprocessing=Preprocessing((SIZE, SIZE), (0.5,) * 3, (0.25,) * 3),
        input_shape=(SIZE, SIZE, 3),
        class_names=classes,
        name="small",
    )


def called(name, images):
    if not isinstance(images, jax.core.Tracer):
        CALLS.append((name, len(images)))
        if name in STOP:
            raise KeyboardInterrupt


def colourful(model, images, targets):
    called("colourful", images)
    return jnp.asarray(images).std(-1)


def noise(model, images, targets, *, key):
    called("noise", images)
    return jax.random.normal(key, images.shape[:3])


def slow(model, images, targets):
    called("slow", images)
    return jnp.asarray(images)[..., 0] * 0 + 1


def refusing(model, images, targets):
    raise ValueError("this network has no layers")


def method(name, function, **traits):
    return Method(
        name, name.title(), function, lambda maps: maps, "Does a thing.", "X 2020", **traits
    )


METHODS = {
    entry.name: entry
    for entry in (
        method("slow", slow, costly=True),
        method("colourful", colourful),
        method("noise", noise, random=True, signed=True),
        method("refusing", refusing),
    )
}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(jaxplain.methods, "METHODS", METHODS)
    monkeypatch.setattr(jaxplain.models, "load_model", lambda name, weights=None: model())
    monkeypatch.setenv(compilation.SWITCH, "off")
    monkeypatch.setattr(console, "PATIENCE", np.inf)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    CALLS.clear()
    STOP.clear()
    cached = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", cached)


def run(*words):
    words = ("evaluate", "--data", "an8flower/single_6c", "--out", "board", *words)
    return CliRunner().invoke(app, [str(word) for word in words])


def board(folder):
    return Leaderboard.from_json((folder / "leaderboard.json").read_text())


def test_every_method_is_in_the_table_or_missed_with_a_reason(tmp_path):
    result = run("--count", 12, "--costly", 4)
    assert result.exit_code == 0, result.output
    found = {line.name: line for line in board(tmp_path / "board").standings}
    assert set(found) == {*METHODS, "centre", "random"}
    assert found["refusing"].error == "this network has no layers"
    assert (found["slow"].pictures, found["colourful"].pictures) == (4, 12)
    assert found["colourful"].estimates["iou_area"].count == 12
    text = (tmp_path / "board" / "leaderboard.md").read_text()
    assert "Refusing is missing: this network has no layers" in text
    page = (tmp_path / "board" / "leaderboard.html").read_text()
    assert "Colourful" in page
    assert "Slow" in page
    # The costly one comes last, in batches of one size.
    names = [name for name, _ in CALLS]
    assert names == sorted(names, key=["colourful", "noise", "slow"].index)
    assert {count for name, count in CALLS if name == "slow"} == {1}


def test_what_is_done_is_kept_and_the_same_command_goes_on(tmp_path):
    STOP.add("noise")
    result = run("--count", 12)
    assert result.exit_code == 130
    # Of four methods and two maps that know nothing.
    assert "1 of 6 lines of the table are in board/kept; the same command" in result.stderr
    assert not (tmp_path / "board" / "leaderboard.json").exists()
    assert [name for name, _ in CALLS].count("noise") == 1
    CALLS.clear()
    STOP.clear()
    assert run("--count", 12).exit_code == 0
    assert {name for name, _ in CALLS} == {"noise", "slow"}
    first = board(tmp_path / "board")
    CALLS.clear()
    assert run("--count", 12).exit_code == 0
    assert CALLS == []
    again = board(tmp_path / "board")
    assert again == first


@pytest.mark.parametrize("change", ["seed", "count", "weights", "options"])
def test_what_changes_a_figure_measures_it_anew(change, monkeypatch):
    words = ["--count", 12, "--methods", "colourful"]
    assert run(*words).exit_code == 0
    CALLS.clear()
    if change == "seed":
        words += ["--seed", 1]
    elif change == "count":
        words[1] = 13
    elif change == "weights":
        monkeypatch.setattr(jaxplain.models, "load_model", lambda name, weights=None: model(2.0))
    else:
        changed = method("colourful", lambda *a, extra: colourful(*a), options=(("extra", 1),))
        monkeypatch.setattr(jaxplain.methods, "METHODS", {"colourful": changed})
    assert run(*words).exit_code == 0
    assert CALLS


def test_a_damaged_file_is_measured_anew(tmp_path):
    words = ("--count", 12, "--methods", "colourful")
    assert run(*words).exit_code == 0
    (kept,) = (tmp_path / "board" / "kept").glob("colourful-*.json")
    whole = json.loads(kept.read_text())
    for damage in ("{", "[]", json.dumps({**whole, "measured": 3})):
        kept.write_text(damage)
        CALLS.clear()
        assert run(*words).exit_code == 0
        assert CALLS
        assert json.loads(kept.read_text())["measured"] == whole["measured"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "an8flower/single_7c"], "unknown"),
        (["--data", "folder:x"], "only pictures whose evidence is known"),
        (["--methods", "colorful"], "colourful"),
        (["--methods", "refusing"], "no method can explain model 'small'"),
        (["--count", "2"], "--count"),
        (["--data", "an8flower/double_12c"], "not those of an8flower/double_12c"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(words, expected):
    result = run(*([] if "--count" in words else ["--count", 12]), *words)
    assert result.exit_code == 2, result.output
    assert expected in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "board").write_text("a file")
    result = run("--count", 12)
    assert result.exit_code == 2
    assert "is a file" in result.stderr
    assert CALLS == []
