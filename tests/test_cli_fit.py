"""`jaxplain fit chip` with the digits and as few gates as can be, and what its file is good for."""

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxplain.cli import app, compilation
from jaxplain.data.digits import digits
from jaxplain.methods import chip
from jaxplain.models import load_model

FEW = ("--pictures", "12", "--gates", "4", "--layers", "conv1,conv2", "--seed", "3")


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setenv(compilation.SWITCH, "off")
    monkeypatch.chdir(tmp_path)
    cached = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", cached)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words, says):
    result = run(*words)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert says in line


def test_what_was_fitted_explains(tmp_path):
    result = run("fit", "chip", "digits", *FEW, "--out", "own.safetensors", "--checkpoints", "kept")
    assert result.exit_code == 0, result.output
    assert "own.safetensors" in result.stdout
    assert "run again for every gate vector" in result.stdout
    found = chip.load(tmp_path / "own.safetensors")
    assert list(found) == ["conv1", "conv2"]
    settings = found["conv2"].settings
    assert (settings.images, settings.num_gates, settings.model) == (12, 4, "digits")

    from PIL import Image

    Image.fromarray(digits("test").images[0, ..., 0]).save("digit.png")
    words = ("explain", "digit.png", "--model", "digits", "--methods", "chip,grad_cam")
    result = run(*words, "--chip", "own.safetensors", "--npz", "maps.npz")
    assert result.exit_code == 0, result.output
    model = load_model("digits")
    image = model.preprocessing.batch(digits("test").images[:1])
    target = model(image).argmax(-1)
    expected = chip.heatmap(model, image, target, importance=found)
    with np.load("maps.npz") as maps:
        np.testing.assert_allclose(maps["maps/chip"][0], expected, rtol=1e-4, atol=1e-6)


def test_importances_of_other_weights_or_for_nothing_are_refused():
    from PIL import Image

    Image.fromarray(digits("test").images[0, ..., 0]).save("digit.png")
    chip.save("own.safetensors", chip.shipped(load_model("digits")))
    flowers = ("explain", "digit.png", "--chip", "own.safetensors", "--methods", "chip")
    refused(*flowers, says="those in own.safetensors are for other weights")
    digit = ("explain", "digit.png", "--model", "digits", "--chip", "own.safetensors")
    refused(*digit, "--methods", "grad_cam", says="has no meaning for grad_cam: none needs it")
    refused(*digit, "--out", "own.safetensors", says="the file of importances")


def test_what_cannot_be_fitted_is_refused_before_any_work(tmp_path):
    refused("fit", "chip", "digit", says="unknown model 'digit'; nearest: digits")
    refused("fit", "chip", "digits", "--layers", "conv9", says="unknown layer 'conv9'")
    refused("fit", "chip", "digits", "--layers", ",", says="--layers names none")
    refused("fit", "chip", "vgg16", "--weights", "random", says="--data is missing: vgg16 has no")
    refused("fit", "chip", "digits", "--data", "tfdss:x", says="unknown data 'tfdss:x'")
    refused("fit", "chip", "digits", *FEW, "--keep", "0", says="all gates would be closed")
    (tmp_path / "taken").mkdir()
    refused("fit", "chip", "digits", "--out", "taken", says="it is a folder")
    refused("fit", "chip", "digits", "--processes", "2", says="coordinator, index missing")


def test_all_layers_are_those_that_separate():
    from jaxplain.cli.fit import choose_layers
    from jaxplain.models import outline

    assert choose_layers("all", outline("digits")) == ["conv1", "pool1", "conv2", "pool2", "conv3"]
    layers = choose_layers("all", outline("resnet18"))
    assert "layer4" in layers
    assert "layer4.1.conv2" not in layers
