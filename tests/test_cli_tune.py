"""`jaxplain train --model`: the command from the pictures to the file, and what it refuses."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jaxplain.cli import app, compilation
from jaxplain.models import load_model
from jaxplain.models.weights import store

CLASSES = ("left", "right")


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setenv(compilation.SWITCH, "off")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result, said):
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert said in line


@pytest.fixture
def bars(tmp_path):
    random = np.random.default_rng(0)
    for number in range(40):
        picture = random.integers(0, 60, (28, 28), np.uint8)
        left = (4, 18)[number % 2] + int(random.integers(0, 3))
        picture[4:24, left : left + 4] += np.uint8(180)
        path = tmp_path / "bars" / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path / "bars"


def test_pictures_become_weights_that_explain(bars, tmp_path):
    (tmp_path / "made").mkdir()
    words = (
        "--model",
        "digits",
        "--data",
        f"folder:{bars}",
        "--head",
        "multilabel",
        "--epochs",
        15,
    )
    result = run("train", *words, "--batch-size", 8, "--learning-rate", 0.05, "--out", "made")
    assert result.exit_code == 0, result.output
    path = tmp_path / "made" / "digits-bars.safetensors"
    assert result.stdout.splitlines()[1] == "made/digits-bars.safetensors"
    assert "mean average precision on the test pictures after" in result.stdout
    assert "2 classes; 26, 6, 8 pictures to learn, choose and test by" in result.stderr
    figures = store.read(path)[1].figures
    assert figures["test_mean_average_precision"] >= 0.9
    model = load_model(path)
    assert (model.name, model.class_names, model.multilabel) == ("digits", CLASSES, True)

    picture = next((bars / "right").iterdir())
    words = ("--weights", path, "--methods", "input_x_gradient", "--target", "right")
    result = run("explain", picture, *words, "--npz", "maps.npz")
    assert result.exit_code == 0, result.output
    with np.load("maps.npz") as arrays:
        chances = arrays["probabilities"]
        assert arrays["class_names"].tolist() == list(CLASSES)
    # Sigmoids, not a softmax: they need not sum to one.
    expected = 1 / (1 + np.exp(-np.asarray(model(model.preprocessing.batch([_read(picture)])))))
    np.testing.assert_allclose(chances, expected, rtol=1e-4)
    refused(run("train", *_again(bars, path), "--out", path), "is the file of weights")


def test_a_shipped_network_learns_other_pictures_from_the_beginning(bars, tmp_path):
    words = ("--data", f"folder:{bars}", "--epochs", 3, "--batch-size", 8, "--out", "own")
    (tmp_path / "own").mkdir()
    result = run("train", "digits", *words)
    assert result.exit_code == 0, result.output
    model = load_model("own/digits.safetensors")
    assert model.class_names == CLASSES
    assert model.name == "digits"
    picture = _read(sorted((bars / "right").glob("*.png"))[0])
    assert model(model.preprocessing.batch([picture])).shape == (1, 2)


def _read(picture):
    return np.asarray(Image.open(picture))


def _again(bars, path):
    return ("--model", "digits", "--data", f"folder:{bars}", "--weights", path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--model is missing; expected --model and --data"),
        (("--model", "digits"), "--data is missing"),
        (("--model", "digit", "--data", "digits"), "unknown model 'digit'; nearest: digits"),
        (("--model", "digits", "--data", "folder:no"), "no such folder: 'no'"),
        (("--model", "digits", "--data", "flowers"), "unknown data 'flowers'; nearest: "),
        (("--model", "digits", "--data", "digits", "--head", "x"), "unknown head 'x'"),
        (("--model", "digits", "--data", "digits", "--freeze", "all"), "unknown freeze 'all'"),
        (("--model", "digits", "--data", "digits", "--weights", "x"), "unknown weights 'x'"),
        (("--model", "digits", "--data", "digits", "--pictures", 3), "expected at least 10"),
        (("--model", "digits", "--data", "digits", "--image-size", 0), "image_size is 0"),
        (("digits", "--pictures", 20), "where --pictures has no meaning"),
        (("digits", "--data", "digits", "--head", "softmax"), "where --head has no meaning"),
        (("digits", "--data", "folder:no"), "no such folder: 'no'"),
        (("digits", "--flip"), "where --flip has no meaning"),
    ],
)
def test_what_cannot_be_trained_is_said(words, said):
    refused(run("train", *words), said)
