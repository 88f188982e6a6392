"""The command line, with a network and methods so small that they can be checked by hand."""

import dataclasses
import functools
import re
import subprocess
import sys
import warnings
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

import jaxplain.methods
import jaxplain.models
import jaxplain.training
from jaxplain.cli import app, compilation, console, explain, pictures, request
from jaxplain.cli.console import one_line
from jaxplain.methods import Explanation, Method
from jaxplain.model import Model
from jaxplain.models.weights import store
from jaxplain.models.weights.store import Weights
from jaxplain.names import unknown
from jaxplain.preprocessing import Preprocessing
from jaxplain.training import Epoch, TrainResult

LOAD = jaxplain.models.load_model
CLASSES = ("red", "green", "<b>blue</b>", "dark", "light", "3")


def brightness(weights, images):
    """Logits of six classes from the mean colour of a picture."""
    colour = jax.ad_checkpoint.checkpoint_name(images.mean((1, 2)), "colour")
    return colour @ weights


@functools.cache
def tiny(name, channels=3, size=16, classes=CLASSES):
    return Model.from_function(
        brightness,
        jnp.asarray(np.random.default_rng(0).normal(size=(channels, len(classes))), jnp.float32),
        preprocessing=Preprocessing((size, size), (0.5,) * channels, (0.25,) * channels),
        input_shape=(size, size, channels),
        class_names=classes,
        name=name,
    )


def load_tiny(name, weights=None):
    known = {"rgb": tiny("rgb"), "grey": tiny("grey", 1)}
    if name not in known:
        raise ValueError(unknown("model", name, known))
    if weights == "nan":
        model = known[name]
        return dataclasses.replace(model, params=model.params * jnp.nan)
    return known[name]


def ink(model, images, targets):
    return images.mean(-1)


def noise(model, images, targets, *, key):
    pattern = jax.random.normal(key, images.shape[1:3])
    return Explanation(
        images[..., 0] * pattern[None], stderr=jnp.abs(images[..., 0]), gap=targets * 0.5
    )


def at_layer(model, images, targets, *, layer="colour"):
    return images[..., 0] * len(layer)


def refusing(model, images, targets):
    raise ValueError("this network has no global average")


def broken(model, images, targets):
    return images[..., 0] * jnp.nan


def method(name, function, **traits):
    return Method(
        name, name.title(), function, lambda maps: maps, "Does a thing.", "X 2020", **traits
    )


METHODS = {
    entry.name: entry
    for entry in (
        method("ink", ink),
        method("noise", noise, random=True, signed=True),
        method("layered", at_layer, layered=True),
    )
}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(jaxplain.methods, "METHODS", METHODS)
    monkeypatch.setattr(jaxplain.models, "load_model", load_tiny)
    monkeypatch.setenv(compilation.SWITCH, "off")
    monkeypatch.setattr(console, "PATIENCE", np.inf)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    cached = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", cached)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result, *expected):
    """Exit code 2, and one line on standard error that says why."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for text in expected:
        assert text in line


@pytest.fixture
def picture(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = folder / "rose.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 20, 3), np.uint8)).save(path)
    return path


def outputs(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "pictures")


COMMANDS = (["explain"], ["demo"], ["models"], ["methods"], ["train"], ["data", "build"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_s_help_has_examples(command):
    result = run(*command, "--help")
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"jaxplain {' '.join(command)}" in result.stdout.partition("Examples")[2]


def test_a_paragraph_of_help_breaks_where_the_terminal_does():
    text = typer.main.get_command(app).commands["train"].help
    assert "jaxplain explain --weights takes it. A name and --data train" in text
    assert len(text.split("\n\n")) == 4
    assert "\n" not in text.replace("\n\n", "")


@pytest.mark.parametrize("words", [[], ["data"]], ids=["jaxplain", "data"])
def test_without_a_command_there_is_help(words):
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "--help" in result.stdout


def test_a_picture_becomes_a_report_and_arrays(tmp_path, picture):
    result = run("explain", picture, "--model", "rgb", "--out", "new/r.html", "--npz", "new/m.npz")
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[-2:] == ["new/r.html", "new/m.npz"]
    assert outputs(tmp_path) == ["new"]

    model = tiny("rgb")
    images = model.preprocessing.batch([np.asarray(Image.open(picture))])
    chances = jax.nn.softmax(model(jnp.asarray(images)))
    with np.load("new/m.npz", allow_pickle=False) as arrays:
        assert arrays["pictures"].tolist() == ["rose.png"]
        assert arrays["class_names"].tolist() == list(CLASSES)
        np.testing.assert_allclose(arrays["probabilities"], chances, rtol=1e-5)
        assert arrays["targets"].tolist() == [[int(chances.argmax())]]
        np.testing.assert_allclose(arrays["maps/ink"][:, 0], images.mean(-1), rtol=1e-5)
        assert arrays["stderr/noise"].shape == (1, 1, 16, 16)
        assert arrays["gap/noise"].tolist() == [[arrays["targets"][0, 0] * 0.5]]

    text = (tmp_path / "new" / "r.html").read_text(encoding="utf-8")
    for expected in ("rose.png", "Ink", "Layered", "completeness gap"):
        assert expected in text


def test_the_first_pixels_of_a_picture_do_not_depend_on_how_many_are_explained_at_once(picture):
    other = picture.with_name("other.png")
    Image.open(picture).rotate(90).save(other)
    pictures = (picture, other, picture)
    for name, chunk in (("a.npz", 1), ("b.npz", 2), ("c.npz", 50)):
        words = ("--model", "rgb", "--target", "top5", "--npz", name, "--chunk", chunk)
        assert run("explain", *pictures, *words).exit_code == 0
    with np.load("a.npz") as a, np.load("b.npz") as b, np.load("c.npz") as c:
        assert a["targets"].shape == (3, 5)
        assert sorted(a) == sorted(b) == sorted(c)
        for key in a:
            if a[key].dtype.kind == "f":
                np.testing.assert_allclose(a[key], b[key], rtol=1e-5)
                np.testing.assert_allclose(a[key], c[key], rtol=1e-5)


def test_a_seed_repeats_and_another_does_not(picture):
    for name, seed in (("a.npz", 3), ("b.npz", 3), ("c.npz", 4)):
        words = ("--model", "rgb", "--methods", "noise", "--npz", name, "--seed", seed)
        assert run("explain", picture, *words).exit_code == 0
    maps = [np.load(f"{name}.npz")["maps/noise"] for name in "abc"]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert np.abs(maps[0] - maps[2]).max() > 0.1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("green", 1),
        ("0", 0),
        ("3", 5),
        ("top1", "top1"),
        (" top5 ", "top5"),
        ("<b>blue</b>", 2),
        ("<B>Blue</B>", 2),
        ("DARK", 3),
    ],
)
def test_targets_are_names_before_numbers(text, wanted):
    assert request.parse_target(text, CLASSES) == wanted


def test_a_name_in_the_same_capitals_goes_before_others():
    names = ("Cardigan", "cardigan", "crane", "crane")
    assert request.parse_target("cardigan", names) == 1
    with pytest.raises(ValueError, match=r"one of several: 0 \(Cardigan\), 1 \(cardigan\)"):
        request.parse_target("CARDIGAN", names)
    with pytest.raises(ValueError, match=r"2 \(crane\), 3 \(crane\); give the number"):
        request.parse_target("crane", names)


def test_classes_without_names_have_numbers():
    assert request.parse_target("999", ()) == 999
    with pytest.raises(ValueError, match="nobody named the classes"):
        request.parse_target("rose", ())
    with pytest.raises(ValueError, match="numbered from 0 on"):
        request.parse_target("-1", ())


def test_targets_come_likeliest_first():
    chances = np.float32([[0.1, 0.7, 0.2]])
    assert request.pick_targets("top5", chances).tolist() == [[1, 2, 0]]
    assert request.pick_targets("top1", chances).tolist() == [[1]]
    assert request.pick_targets(2, np.repeat(chances, 2, 0)).tolist() == [[2], [2]]


@pytest.mark.parametrize("model", ["rgb", "grey"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_pictures_of_any_mode_fit_networks_of_either_kind(picture, model, mode):
    path = picture.with_name("mode.png")
    Image.open(picture).convert(mode).save(path)
    result = run("explain", path, "--model", model, "--methods", "ink")
    assert result.exit_code == 0, result.output


def test_rotated_photographs_are_shown_upright(picture):
    path = picture.with_name("turned.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(path, exif=exif)
    read = pictures.read_pictures([path], tiny("rgb"))
    assert read.shown[0].shape == (60, 30, 3)
    assert read.wholes == [None]
    assert read.entered == ["all of its 30 × 60 pixels, squashed to 16 × 16; drawn here unsquashed"]


def test_what_a_crop_leaves_out_is_shown(picture):
    shape = Preprocessing((16, 16), (0.5,) * 3, (0.25,) * 3, resize=24)
    model = dataclasses.replace(tiny("rgb"), preprocessing=shape)
    path = picture.with_name("wide.png")
    pixels = np.zeros((600, 900, 3), np.uint8)
    pixels[100:500, 250:650] = 255  # the centre, 16 of 24 rows of 25 pixels
    Image.fromarray(pixels).save(path)
    read = pictures.read_pictures([path], model)
    assert read.shown[0].shape == (384, 384, 3)
    assert read.shown[0].min() == 255
    whole = read.wholes[0]
    assert whole.picture.shape == (256, 384, 3)
    np.testing.assert_allclose(np.array(whole.region) * 900 / 384, (100, 250, 400, 400))
    assert read.entered == ["the middle 400 × 400 of its 900 × 600 pixels, brought to 16 × 16"]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((16, 16), ""),
        ((333, 334), "all of its 334 × 333 pixels, brought to 16 × 16"),
        ((300, 400), "all of its 400 × 300 pixels, squashed to 16 × 16; drawn here unsquashed"),
    ],
)
def test_a_picture_is_said_to_be_squashed_only_if_it_is(size, said):
    assert pictures.fitted(tiny("rgb").preprocessing, size) == said


def test_names_that_look_like_html_or_a_terminal_s_orders_stay_text(tmp_path, picture):
    path = picture.with_name("<img src=x onerror=alert(1)>\x1b[31m.png")
    path.write_bytes(picture.read_bytes())
    words = ("--model", "rgb", "--methods", "ink", "--target", "<b>blue</b>", "--out", "r.html")
    result = run("explain", path, *words)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "<b>blue" not in text
    assert "&lt;b&gt;blue&lt;/b&gt;" in text
    assert "\x1b[31m" not in result.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--methods", "inc"], ["unknown method 'inc'", "nearest: ink"]),
        (["--methods", " , "], ["--methods names none"]),
        (["--methods", "inc,ink,zzz"], ["unknown methods 'inc' (nearest: ink), 'zzz'"]),
        (["--model", "rgbb"], ["unknown model 'rgbb'", "nearest: rgb"]),
        (["--target", "gren"], ["unknown class 'gren'", "nearest: green"]),
        (["--target", "gren"], ["whatever its capitals, a number from 0 to 5, top1 or top5"]),
        (["--target", "e"], ["unknown class 'e'"]),
        (["--target", "17"], ["class 17 is unknown", "numbered from 0 to 5"]),
        (["--target", "-1"], ["class -1 is unknown", "numbered from 0 to 5"]),
        (["--layer", "color"], ["unknown layer 'color'", "nearest: colour"]),
        (["--layer", "colour", "--methods", "ink"], ["--layer colour has no meaning for ink"]),
        (["--weights", "nan"], ["not finite", "weights"]),
        (["--out", "pictures"], ["cannot write 'pictures': it is a folder"]),
        (["--out", "pictures/rose.png/r.html"], ["is a file"]),
        (["--npz", "pictures/rose.png/m.npz"], ["is a file"]),
        (["--npz", "report.html"], ["--npz and --out are the same file"]),
        (["--chunk", "0"], ["--chunk"]),
        (["--seed", "-1"], ["--seed"]),
        (["--nonsense"], ["--nonsense", "jaxplain explain --help"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    tmp_path, picture, words, expected
):
    words = words if "--model" in words else ["--model", "rgb", *words]
    refused(run("explain", picture, *words), *expected)
    assert outputs(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vgg16"], ["--model vgg16 brings no weights", "imagenet, random, hf:owner/name or a"]),
        (["vgg16", "--weights", "imagnet"], ["'imagnet' is neither a file nor", "imagenet"]),
        (["digits", "--weights", "zzz"], ["'zzz' is neither a file", "shipped, random or a file"]),
        (["digits", "--weights", "hf:a/b"], ["'hf:a/b' is neither a file"]),
    ],
)
def test_weights_that_cannot_be_meant_are_told_what_there_is(tmp_path, picture, words, expected):
    refused(run("explain", picture, "--model", *words), *expected)
    assert outputs(tmp_path) == []


def test_all_that_is_wrong_with_a_file_of_weights_is_told_in_one_line(
    tmp_path, picture, monkeypatch
):
    monkeypatch.setattr(jaxplain.models, "load_model", LOAD)
    shapes = store.variable_shapes(jaxplain.models.find_architecture("digits"), 10)
    arrays = {"/".join(path): np.zeros(shape, np.float32) for path, shape in shapes.items()}
    del arrays["params/conv1/bias"], arrays["params/conv2/bias"]
    arrays |= {"<b>more</b>": np.zeros(1), "params/conv9/bias": np.zeros(1)}
    arrays["params/logits/bias"] = np.zeros(11, np.float32)
    arrays["params/conv3/bias"][0] = np.nan
    own = picture.with_name("own.safetensors")
    told = (
        "own.safetensors",
        "2 missing: params/conv1/bias, params/conv2/bias",
        "2 not of this network: <b>more</b>, params/conv9/bias",
        "1 of another shape: params/logits/bias (11,), expected (10,)",
        "1 with NaN or infinity: params/conv3/bias",
    )
    save_file(arrays, own)
    words = ("explain", picture, "--npz", "m.npz", "--weights", own)
    refused(run(*words, "--model", "digits"), "does not fit the network", *told)
    # With the header that another file had.
    save_file(arrays, own, {"format": "jaxplain", "architecture": '"digits"', "crc32": "0"})
    refused(run(*words), "another program changed it: its checksum is another", *told)
    assert outputs(tmp_path) == []


def test_without_a_model_it_is_said_which_one_answers_and_what_it_knows(
    tmp_path, picture, monkeypatch
):
    monkeypatch.setattr(jaxplain.models, "load_model", lambda name, weights: tiny(name))
    result = run("explain", picture, "--methods", "ink")
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("no --model given: an8flower-single-6c answers, which knows red, green")
    assert "--model vgg16 --weights imagenet" in line
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "trained on one kind of picture alone (rendered flowers" in text
    assert "This network knows 6 classes and no others: red, green" in text
    assert "squashed to 16 × 16" in text

    named = run("explain", picture, "--methods", "ink", "--model", "an8flower-single-6c")
    assert named.stderr == ""


def test_random_weights_are_said_to_know_nothing():
    assert "learned nothing" in explain.caution("resnet18", "random")
    assert explain.caution("resnet18", "imagenet") == ""
    assert explain.caution("digits", "own.safetensors") == ""
    assert "handwritten digits" in explain.caution("digits", None)


def test_what_is_to_be_said_of_the_weights_is_said_in_a_line(picture, monkeypatch):
    def load(name, weights):
        warnings.warn("own.safetensors does not name its classes", stacklevel=2)
        return dataclasses.replace(tiny(name), class_names=())

    monkeypatch.setattr(jaxplain.models, "load_model", load)
    result = run("explain", picture, "--methods", "ink", "--model", "rgb", "--out", "r.html")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["own.safetensors does not name its classes"]


@pytest.mark.parametrize("broken", ["render_report", "write_npz"])
def test_the_report_and_the_arrays_appear_together_or_not_at_all(
    tmp_path, picture, monkeypatch, broken
):
    def fail(*given):
        raise OSError("no space left")

    for name in ("r.html", "m.npz"):
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(explain, broken, fail)
    words = ("--model", "rgb", "--methods", "ink", "--out", "r.html", "--npz", "m.npz")
    refused(run("explain", picture, *words), "no space left")
    assert outputs(tmp_path) == ["m.npz", "r.html"]
    assert {(tmp_path / name).read_text() for name in outputs(tmp_path)} == {"old"}


def damaged(kind, whole):
    return {"empty": b"", "text": b"no picture", "truncated": whole[: len(whole) // 2]}[kind]


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated", "1x1", "bomb"])
def test_files_that_are_no_pictures_are_refused_by_name(tmp_path, picture, kind):
    path = picture.with_name(f"{kind}.png")
    if kind == "folder":
        path.mkdir()
    elif kind == "1x1":
        Image.new("RGB", (1, 1)).save(path)
    elif kind == "bomb":
        Image.new("1", (30000, 30000)).save(path)
    elif kind != "missing":
        path.write_bytes(damaged(kind, picture.read_bytes()))
    refused(run("explain", picture, path, "--model", "rgb", "--npz", "m.npz"), f"{kind}.png")
    assert outputs(tmp_path) == []


def test_a_method_that_cannot_explain_the_network_is_left_out_unless_asked_for(
    tmp_path, picture, monkeypatch
):
    monkeypatch.setitem(METHODS, "cam", method("cam", refusing))
    result = run("explain", picture, "--model", "rgb", "--out", "r.html")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Cam left out: this network has no global average" in result.stderr
    assert "no global average" in (tmp_path / "r.html").read_text(encoding="utf-8")
    refused(run("explain", picture, "--model", "rgb", "--methods", "ink,cam"), "global average")


def test_costly_methods_run_only_if_they_are_named(tmp_path, picture, monkeypatch):
    monkeypatch.setitem(METHODS, "slow_one", method("slow_one", ink, costly=True))
    monkeypatch.setitem(METHODS, "slow_two", method("slow_two", ink, costly=True))
    words = ("explain", picture, "--model", "rgb", "--out", "r.html", "--npz", "m.npz")
    assert run(*words).exit_code == 0
    assert "maps/slow_one" not in np.load(tmp_path / "m.npz")
    assert "try: jaxplain explain IMAGE --methods slow_two" in (tmp_path / "r.html").read_text()
    assert run(*words, "--methods", "slow").exit_code == 0  # both: they are one function's
    assert {"maps/slow_one", "maps/slow_two"} < set(np.load(tmp_path / "m.npz"))
    assert run(*words, "--methods", "all, slow_two").exit_code == 0
    assert {"maps/ink", "maps/slow_two"} < set(np.load(tmp_path / "m.npz"))
    assert "maps/slow_one" not in np.load(tmp_path / "m.npz")
    monkeypatch.setitem(METHODS, "slow_three", method("slow_three", noise))
    refused(run(*words, "--methods", "slow"), "unknown method 'slow'")


def test_maps_that_are_not_finite_are_an_error_of_their_method(tmp_path, picture, monkeypatch):
    monkeypatch.setitem(METHODS, "broken", method("broken", broken))
    refused(run("explain", picture, "--model", "rgb"), "'broken'", "not finite for 1 of 1 pictures")
    assert outputs(tmp_path) == []


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_error_itself(picture, place):
    words = ["explain", picture, "--model", "none"]
    result = run(*(["--debug", *words] if place == "before" else [*words, "--debug"]))
    assert isinstance(result.exception, ValueError)
    assert "unknown model" in str(result.exception)


def test_ctrl_c_ends_the_program_in_a_line(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(jaxplain.training, "train", interrupted)
    result = run("train", "digits")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1] == "stopped"


ENDLESS = """
import sys, threading
import jax, numpy as np
from jaxplain import cli, training

called = threading.Event()

def host(x):
    called.set()
    return np.asarray(x)

def again(x):
    return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

def interrupted(*_, **__):
    endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x > 0, again, x))
    threading.Thread(target=endless, args=(1.0,), daemon=True).start()
    called.wait()
    raise KeyboardInterrupt

training.train = interrupted
sys.argv = ["jaxplain", "train", "digits", "--no-cache"]
print("begun", end="")
cli.main()
"""


def test_ctrl_c_waits_for_no_device_and_loses_nothing_that_was_printed():
    words = [sys.executable, "-c", ENDLESS]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (130, "begun"), result.stderr
    assert result.stderr.splitlines()[-1] == "stopped"


def test_a_wrong_command_suggests_the_right_one():
    refused(run("explan"), "explain", "jaxplain --help")


def test_the_version_is_that_of_the_package():
    result = run("--version")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"jaxplain {metadata.version('jaxplain')}\n"


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    clock = iter(np.arange(0.0, 100, 1))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(console, "PATIENCE", 4.0)
    with console.progress(10) as advance:
        for number in range(10):
            advance(f"step {number}")
    told = capsys.readouterr()
    assert told.out == ""
    # A call of the clock a step, and another for a line: a line each fourth second.
    assert told.err.splitlines() == ["4 of 10: step 3", "8 of 10: step 7"]


def test_one_line_is_one_line_without_control_characters():
    assert one_line("a\n b\r\t\x07c\u202e") == "a b \\x07c\\u202e"


def test_methods_and_models_are_listed(monkeypatch):
    assert all(name in run("methods").stdout for name in METHODS)
    rows = jaxplain.models.MODELS
    monkeypatch.setattr(jaxplain.models, "MODELS", {"digits": rows["digits"]})
    result = run("models")
    assert result.exit_code == 0, result.output
    assert "431,080" in result.stdout
    assert "conv1 pool1 conv2 pool2" in result.stdout


def test_one_model_is_shown_with_its_layers(monkeypatch):
    monkeypatch.setattr(jaxplain.models, "load_model", LOAD)
    result = run("models", "digits")
    (row,) = [line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["conv2"]]
    # Two 5 x 5 convolutions with a 2 x 2 pooling between see 5 + 1 + 8 pixels, two pixels apart.
    assert " ".join(row).startswith("conv2 8 × 8 × 50 14 × 14 px 2 px explained unless")
    assert result.stdout.splitlines()[-2:] == [
        "weights: shipped, or your own",
        "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ]
    refused(run("models", "digit"), "nearest: digits")


def test_compiled_programs_are_kept_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    before = {
        name: getattr(jax.config, name)
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
        )
    }
    try:
        monkeypatch.delenv(compilation.SWITCH)
        assert compilation.keep() == tmp_path / "kept"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "kept")
        assert jax.config.jax_enable_compilation_cache
        assert compilation.keep(option=False) is None
        assert not jax.config.jax_enable_compilation_cache
        monkeypatch.setenv(compilation.SWITCH, "off")
        assert compilation.keep() is None
        monkeypatch.delenv(compilation.SWITCH)
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file" / "kept"))
        assert compilation.keep() is None
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_the_cache_is_in_the_user_s_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "jaxplain" in compilation.folder().parts


def test_the_demo_scores_every_method_and_shows_every_network(tmp_path, monkeypatch):
    names = {"an8flower-single-6c": 6, "an8flower-double-12c": 12, "digits": 10}

    def load(name, weights=None):
        classes = tuple(f"class {n}" for n in range(names[name]))
        size, channels = (28, 1) if name == "digits" else (112, 3)
        return tiny(name, channels, size, classes)

    monkeypatch.setattr(jaxplain.models, "load_model", load)
    monkeypatch.setattr("jaxplain.cli.demo.widened", lambda model, classes: model)
    result = run("demo", "--flowers", 24, "--chunk", 5, "--out", "new/demo.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "new/demo.html"
    for title in ("Ink", "Noise", "Layered", "Centre"):
        assert title in result.stdout
    text = (tmp_path / "new" / "demo.html").read_text(encoding="utf-8")
    for expected in ("12 held-out pictures", "IoU area", "Handwritten digits", *names):
        assert expected in text
    for metric in ("IoU area", "Pointing", "Strict pointing", "Energy inside"):
        # A method's mean over the classes, and one for each class, all with their intervals.
        table = text.partition(f"<caption>{metric}, by class")[2].partition("</table>")[0]
        row = table.partition(">Ink</th>")[2].partition("</tr>")[0]
        assert len(re.findall(r"\d\.\d\d–\d\.\d\d", row)) == 1 + 6


def test_the_demo_looks_at_its_folder_first(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxplain.models, "load_model", lambda name: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    refused(run("demo", "--out", "file/demo.html"), "is a file")


def test_training_writes_weights_that_load(tmp_path, monkeypatch):
    architecture = jaxplain.models.find_architecture("digits")
    random = np.random.default_rng(0)
    flat = store.variable_shapes(architecture, 10)
    variables = {"params": {}}
    for (_, layer, name), shape in flat.items():
        values = random.normal(size=shape).astype(np.float32)
        variables["params"].setdefault(layer, {})[name] = values
    weights = Weights(
        variables, "digits", 10, architecture.preprocessing, tuple("0123456789"), {}, {}
    )

    def train(name, **options):
        assert (name, options["seed"], options["epochs"]) == ("digits", 5, 2)
        return TrainResult(weights, (Epoch(0.1, 0.9, 0.2, 0.95),), 0.975, 3.0)

    monkeypatch.setattr(jaxplain.training, "train", train)
    result = run("train", "digits", "--seed", 5, "--epochs", 2, "--out", "new/own.safetensors")
    assert result.exit_code == 0, result.output
    assert "98 % of the test pictures right" in result.stdout
    loaded = store.load(tmp_path / "new" / "own.safetensors", architecture)
    np.testing.assert_array_equal(
        loaded.variables["params"]["conv1"]["kernel"], variables["params"]["conv1"]["kernel"]
    )
    refused(run("train", "digit"), "nearest: digits")
    (tmp_path / "file").write_text("")
    refused(run("train", "digits", "--out", "file/own.safetensors"), "is a file")


def test_flowers_are_built_where_asked(tmp_path):
    sizes = ("--size", 32, "--train", 1, "--validation", 1, "--test", 1)
    result = run("data", "build", "single_6c", "--folder", "sets", *sizes)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().startswith(str(tmp_path / "sets"))
    what = "6 classes of flowers, 32 × 32 pixels, with their evidence"
    counts = "6 for train, 6 for validation, 6 for test"
    assert f"single_6c: {what}: {counts}" in result.stderr
    again = run("data", "build", "single_6c", "--folder", "sets", *sizes)
    assert again.stdout == result.stdout
    assert f"single_6c: there already, left as it is: {what}: {counts}" in again.stderr
    refused(run("data", "build", "singel_6c", "--folder", "sets"), "nearest: single_6c")


def test_a_wider_network_gives_the_same_maps_and_is_compiled_once_for_both():
    from jaxplain.cli.demo import widened
    from jaxplain.methods import gradient

    def random(name, classes):
        model = jaxplain.models.outline(name)
        values = np.random.default_rng(classes)
        params = jax.tree.map(lambda leaf: values.normal(0, 0.1, leaf.shape), model.params)
        params = jax.tree.map(lambda values: values.astype(np.float32), params)
        return dataclasses.replace(model, params=params, class_names=("x",) * classes)

    narrow, wide = random("an8flower-single-6c", 6), random("an8flower-double-12c", 12)
    both = widened(narrow, 12), widened(wide, 12)
    assert jax.tree.structure(both[0]) == jax.tree.structure(both[1])
    assert jax.tree.map(np.shape, both[0].params) == jax.tree.map(np.shape, both[1].params)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    logits = narrow(images)
    np.testing.assert_allclose(both[0](images)[:, :6], logits, rtol=1e-5)
    assert jax.nn.softmax(both[0](images))[:, 6:].max() == 0
    targets = jnp.array([1, 4])
    np.testing.assert_allclose(
        gradient(both[0], images, targets), gradient(narrow, images, targets), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("option", ["--out", "--npz"])
def test_an_output_never_replaces_a_picture(tmp_path, picture, option):
    before = picture.read_bytes()
    (tmp_path / "link.html").symlink_to(picture)
    for path in (
        picture,
        tmp_path / "link.html",
        tmp_path / "a" / ".." / "pictures" / picture.name,
    ):
        result = run("explain", picture, "--model", "rgb", option, path)
        refused(result, "one of the pictures, which it would replace")
    assert picture.read_bytes() == before


def test_an_output_never_replaces_the_weights(tmp_path, picture):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"weights")
    result = run("explain", picture, "--model", "rgb", "--weights", weights, "--out", weights)
    refused(result, "the file of weights, which it would replace")
    assert weights.read_bytes() == b"weights"
