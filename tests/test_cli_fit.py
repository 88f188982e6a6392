"""`jaxplain fit` with the digits and as few pictures and gates as can be, and its files' use."""

import dataclasses

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxplain.cli import app, compilation
from jaxplain.cli.features import match_labels
from jaxplain.data.digits import digits
from jaxplain.data.labelled import Pictures
from jaxplain.methods import chip, interpretation
from jaxplain.models import load_model

FEW = ("--pictures", "12", "--gates", "4", "--layers", "conv1,conv2", "--seed", "3")
SOME = ("--pictures", "60", "--layers", "conv1,conv2", "--batch-size", "30")


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
    refused(*flowers, says="own.safetensors is for other weights")
    digit = ("explain", "digit.png", "--model", "digits", "--chip", "own.safetensors")
    refused(*digit, "--methods", "grad_cam", says="has no meaning for grad_cam: none needs it")
    refused(*digit, "--out", "own.safetensors", says="the file of --chip")


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
    from jaxplain.cli.channels import separating
    from jaxplain.models import outline

    assert separating(outline("digits")) == ["conv1", "pool1", "conv2", "pool2", "conv3"]
    layers = separating(outline("resnet18"))
    assert "layer4" in layers
    assert "layer4.1.conv2" not in layers


def test_what_was_selected_explains_and_is_drawn(tmp_path):
    from PIL import Image

    result = run(
        "fit", "features", "digits", *SOME, "--mu", "5", "--out", "own.safetensors",
        "--montage", "own.png", "--patches", "4", "--checkpoints", "kept",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "own.safetensors" in result.stdout
    assert "of 70 channels selected" in result.stdout
    found = interpretation.load(tmp_path / "own.safetensors")
    settings = found.settings
    assert (settings.count, settings.mu, settings.labels) == (60, 5.0, "true")
    assert [block.layer for block in found.blocks] == ["conv1", "conv2"]
    assert int(found.images.sum()) == 60
    with Image.open("own.png") as drawn:
        assert drawn.size[0] > 100

    Image.fromarray(digits("test").images[0, ..., 0]).save("digit.png")
    words = ("explain", "digit.png", "--model", "digits", "--methods", "interpretation")
    result = run(*words, "--features", "own.safetensors", "--npz", "maps.npz")
    assert result.exit_code == 0, result.output
    model = load_model("digits")
    image = model.preprocessing.batch(digits("test").images[:1])
    target = model(image).argmax(-1)
    expected = interpretation.explain(model, image, target, importance=found).heatmap
    with np.load("maps.npz") as maps:
        np.testing.assert_allclose(maps["maps/interpretation"][0], expected, rtol=1e-4, atol=1e-5)

    flowers = ("explain", "digit.png", "--methods", "interpretation")
    refused(*flowers, "--features", "own.safetensors", says="is for other weights")
    for more, says in (
        (("--methods", "gradient"), "has no meaning for gradient: none needs it"),
        (("--methods", "interpretation", "--out", "own.safetensors"), "the file of --features"),
    ):
        words = ("explain", "digit.png", "--model", "digits", "--features", "own.safetensors")
        refused(*words, *more, says=says)


def test_features_that_cannot_be_selected_are_refused_before_any_work(tmp_path):
    refused("fit", "features", "digit", says="unknown model 'digit'; nearest: digits")
    refused("fit", "features", "digits", "--layers", "conv9", says="unknown layer 'conv9'")
    refused("fit", "features", "digits", "--layers", ",", says="--layers names none")
    refused("fit", "features", "digits", "--mu", "0", says="--mu is 0.0; expected above 0")
    refused("fit", "features", "digits", "--pool", "conv", says="nearest: convolution")
    refused("fit", "features", "digits", "--labels", "tru", says="nearest: true")
    refused("fit", "features", "vgg16", "--weights", "random", says="--data is missing: vgg16")
    flowers = ("--data", "an8flower/single_6c", "--pictures", "12")
    refused("fit", "features", "digits", *flowers, says="unknown class")
    alone = ("--montage", "own.png", "--processes", "2", "--process", "0")
    refused("fit", "features", "digits", *alone, says="coordinator missing")
    (tmp_path / "taken").mkdir()
    refused("fit", "features", "digits", "--montage", "taken", says="it is a folder")


def test_a_folder_with_a_class_a_folder_is_matched_by_name(tmp_path):
    from PIL import Image

    part = digits("train")
    for label in (7, 1):
        folder = tmp_path / "own" / str(label)
        folder.mkdir(parents=True)
        for number in range(5):
            picture = part.images[part.labels == label][number, ..., 0]
            Image.fromarray(picture).save(folder / f"{number}.png")
    result = run(
        "fit", "features", "digits", "--data", "folder:own", "--layers", "conv1,conv2",
        "--batch-size", "30", "--out", "own.safetensors",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = interpretation.load("own.safetensors")
    assert np.flatnonzero(found.images).tolist() == [1, 7]


def test_labels_are_matched_by_name_or_by_number():
    model = load_model("digits")
    labels = np.array([[1, 0], [0, 1]], np.int8)
    found = match_labels(Pictures(np.zeros((2, 28, 28, 1), np.uint8), labels), ("9", "3"), model)
    assert found.argmax(1).tolist() == [9, 3]
    nameless = dataclasses.replace(model, class_names=())
    with pytest.raises(ValueError, match="the data have 2 classes, model 'digits' has 10"):
        match_labels(Pictures(np.zeros((2, 28, 28, 1), np.uint8), labels), ("a", "b"), nameless)
