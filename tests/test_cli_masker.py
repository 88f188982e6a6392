"""`jaxplain train masker`, on a classifier of spots, and what its files are for."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from spots import DATA, MODEL
from typer.testing import CliRunner

import jaxplain.models
import jaxplain.training
from jaxplain.cli import app, compilation
from jaxplain.data.digits import digits
from jaxplain.methods import masker


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setenv(compilation.SWITCH, "off")
    monkeypatch.chdir(tmp_path)
    cached = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", cached)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(jaxplain.models, "load_model", lambda name, weights=None: MODEL)
    monkeypatch.setattr(jaxplain.training, "open_data", lambda source, **options: DATA)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def train(*words):
    return run("train", "masker", *words)


def test_a_masker_is_trained_written_and_judged(small, tmp_path):
    options = ("--epochs", 1, "--batch-size", 60, "--learning-rate", 1e-2)
    result = train("--model", "brightest", "--data", "folder:spots", *options)
    assert result.exit_code == 0, result.output
    said, path = result.stdout.splitlines()
    assert "open on" in said
    assert "1 epochs" in said
    assert path == "brightest.masker.safetensors"
    found = masker.load(tmp_path / path)
    masker.check_model(MODEL, found, "it is for others")
    told = json.loads(found.recipe)
    assert told["data"] == "folder:spots"
    assert told["pictures"] == [120, 24, 24]
    assert told["blurred"] == 0.5
    assert set(told["figures"]) == {"loss", "area", "preserved", "destroyed"}


def test_an_own_masker_explains_and_one_of_other_weights_does_not(tmp_path):
    from PIL import Image

    model = jaxplain.models.load_model("digits")
    own = masker.first(model, jax.random.key(0))
    masker.save("own.safetensors", own)
    masker.save("other.safetensors", dataclasses.replace(own, fingerprint=1))
    Image.fromarray(digits("test").images[0, ..., 0]).save("digit.png")
    words = ("explain", "digit.png", "--model", "digits", "--methods", "masker")
    result = run(*words, "--masker", "own.safetensors", "--npz", "maps.npz")
    assert result.exit_code == 0, result.output
    image = model.preprocessing.batch(digits("test").images[:1])
    expected = masker.explain(model, image, model(image).argmax(-1), importance=own)
    with np.load("maps.npz") as maps:
        np.testing.assert_allclose(maps["maps/masker"][0], expected, rtol=1e-4, atol=1e-6)
    for more, says in (
        (("--masker", "other.safetensors"), "other.safetensors is for other weights"),
        (("--masker", "own.safetensors", "--out", "own.safetensors"), "the file of --masker"),
        (("--masker", "none.safetensors"), "none.safetensors"),
        ((), "none ship with it"),
    ):
        result = run(*words, *more)
        assert result.exit_code == 2, result.output
        assert says in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--data", "folder:spots"), "--model is missing"),
        (("--model", "brightest"), "--data is missing"),
        (("--model", "m", "--data", "d", "--flip"), "--flip has no meaning"),
        (("--model", "m", "--data", "d", "--head", "softmax"), "--head has no meaning"),
        (("--model", "m", "--data", "d", "--learning-rate", "-1"), "learning_rate is -1.0"),
        (("--model", "m", "--data", "d", "--out", "file/x"), "is a file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(small, words, expected, tmp_path):
    (tmp_path / "file").write_text("a file")
    result = train(*words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert expected in line
    assert result.stdout == ""
