"""`jaxplain localize` on a made-up ILSVRC, small enough that its errors can be counted by hand."""

import functools
import io
import json
import logging
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from typer.testing import CliRunner

import jaxplain.methods
import jaxplain.models
from jaxplain.cli import app, compilation, console, localize
from jaxplain.methods import Method
from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing

SYNSETS = ("n01440764", "n01443537", "n02391049")
COUNT, TUNING, SIZE = 12, 4, 16
HEIGHT, WIDTH = 32, 48
ASTRAY = {2, 5, 9}
"""Pictures whose boxes are where the object is not."""
MISTAKEN = {1, 5, 8}
"""Pictures whose object looks like one of the next class, and only then like its own."""
OBJECT = (8, 12, 24, 36)  # top, left, bottom, right; exclusive
CALLS: list[str] = []
STOP: list[int] = []


def name(number):
    return f"ILSVRC2012_val_{number:08d}"


def picture(number):
    """A bright object on dark ground, in the colour of its class or of another one."""
    found = np.full((HEIGHT, WIDTH, 3), 10, np.uint8)
    label = number % 3
    top, left, bottom, right = OBJECT
    found[top:bottom, left:right, label] = 120
    found[top:bottom, left:right, (label + (number in MISTAKEN)) % 3] = 240
    return found


def annotation(number):
    """The object among others: a box elsewhere of its class, and one of another class on it."""
    top, left, bottom, right = OBJECT
    own, other = SYNSETS[number % 3], SYNSETS[(number + 1) % 3]
    here = (left, top, right - 1, bottom - 1)  # the last pixel is inside
    boxes = [(own, (0, 0, 3, 3)), (other, here)]
    if number not in ASTRAY:
        boxes.append((own, here))
    inner = "".join(
        f"<object><name>{synset}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for synset, (x0, y0, x1, y1) in boxes
    )
    return f"<annotation>{inner}</annotation>"


def encoded(number):
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "JPEG", quality=95)
    file.seek(0)
    return file


class Imagenet2012(tfds.core.GeneratorBasedBuilder):
    """The data set's name and features, with labels in another order than the network's."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=SYNSETS[::-1]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        for number in range(COUNT):
            yield (
                number,
                {
                    "image": encoded(number),
                    "label": SYNSETS[number % 3],
                    "file_name": f"{name(number)}.JPEG",
                },
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    Imagenet2012(data_dir=folder, file_format="array_record").download_and_prepare(
        download_dir=folder / "none"
    )
    logger.setLevel(level)
    return folder


@functools.cache
def model():
    return Model.from_function(
        lambda scale, images: images.mean((1, 2)) * scale,
        jnp.asarray(20.0),
        preprocessing=Preprocessing((SIZE, SIZE), (0.0,) * 3, (1.0,) * 3),
        input_shape=(SIZE, SIZE, 3),
        class_names=("tench", "goldfish", "zebra"),
        name="small",
    )


def bright(model, images, targets):
    CALLS.append("bright")
    if STOP and len(CALLS) == STOP[0]:
        raise KeyboardInterrupt
    return jnp.asarray(images).max(-1)


def dark(model, images, targets):
    return 1 - jnp.asarray(images).max(-1)


def refusing(model, images, targets):
    raise ValueError("this network has no layers")


def method(name, function, **traits):
    return Method(
        name, name.title(), function, lambda maps: maps, "Does a thing.", "X 2020", **traits
    )


METHODS = {
    entry.name: entry
    for entry in (
        method("bright", bright, host=True),
        method("dark", dark),
        method("refusing", refusing),
        method("slow", dark, costly=True),
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


@pytest.fixture
def ilsvrc(tmp_path):
    """The challenge's folders, a folder for each synset, and the names of the classes."""
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    for number in range(COUNT):
        (boxes / f"{name(number)}.xml").write_text(annotation(number))
        folder = tmp_path / "val" / SYNSETS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number)).save(folder / f"{name(number)}.JPEG", quality=95)
    (tmp_path / "synsets.txt").write_text("".join(f"{synset} a fish\n" for synset in SYNSETS))
    return tmp_path


def run(*words):
    fixed = ("localize", "small", "--annotations", "boxes", "--synsets", "synsets.txt")
    words = (*fixed, "--tuning", TUNING, "--out", "found", "--chunk", 3, *words)
    return CliRunner().invoke(app, [str(word) for word in words])


def found(folder):
    text = json.loads((folder / "found" / "localization.json").read_text())
    lines = {(line["method"], line["relative_to"]): line for line in text["lines"]}
    return text, lines


def expected(judged):
    """Errors of a map that is bright where the object is, picture by picture."""
    astray = np.array([number in ASTRAY for number in judged])
    mistaken = np.array([number in MISTAKEN for number in judged])
    return (astray | mistaken).mean(), astray.mean(), mistaken.mean()


def test_errors_are_those_that_can_be_counted(ilsvrc):
    result = run("--data", "folder:val")
    assert result.exit_code == 0, result.output
    text, lines = found(ilsvrc)
    judged = np.random.default_rng(0).permutation(COUNT)[TUNING:]
    first, known, wrong = expected(judged)
    assert 0 < known < first < 1  # the pictures of each kind are among those judged
    assert (text["tuning"], text["judged"]) == (TUNING, COUNT - TUNING)
    for rule in ("max", "mean"):
        line = lines["bright", rule]
        assert line["top"]["1"]["value"] == pytest.approx(first)
        assert line["top"]["3"]["value"] == pytest.approx(known)
        assert line["known"]["value"] == pytest.approx(known)
        assert line["known"]["low"] < known < line["known"]["high"]
        assert lines["dark", rule]["known"]["value"] > known
        assert ("centre", rule) in lines
    assert text["answers"]["1"]["value"] == pytest.approx(wrong)
    assert text["answers"]["3"]["value"] == 0
    # Nobody asked for those that cannot explain the network, or for the slow ones.
    assert {method for method, _ in lines} == {"bright", "dark", "centre"}
    assert "Refusing left out: this network has no layers" in result.stderr
    table = (ilsvrc / "found" / "localization.md").read_text()
    assert f"{COUNT - TUNING} pictures of folder:val" in table
    assert f"| {100 * first:.1f} (" in table


def test_tensorflow_datasets_gives_the_same(ilsvrc, prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert run("--methods", "bright", "--count", 5).exit_code == 0
    text, lines = found(ilsvrc)
    assert text["judged"] == 5
    assert lines["bright", "max"]["known"]["count"] == 5
    # TFDS shuffles: which picture is where is read from the data set itself.
    source = tfds.data_source("imagenet2012", data_dir=prepared, split="validation")
    names = [example["file_name"].decode() for example in source]
    order = np.random.default_rng(0).permutation(COUNT)[TUNING : TUNING + 5]
    judged = [int(names[index][-13:-5]) for index in order]
    first, known, _ = expected(judged)
    assert lines["bright", "max"]["known"]["value"] == pytest.approx(known)
    assert lines["bright", "max"]["top"]["1"]["value"] == pytest.approx(first)


def test_a_stopped_command_goes_on_to_the_same_errors(ilsvrc, monkeypatch):
    words = ("--data", "folder:val", "--methods", "bright")
    assert run(*words, "--out", "whole").exit_code == 0
    all_calls = len(CALLS)
    CALLS.clear()
    STOP.append(all_calls - 1)
    assert run(*words).exit_code == 130
    assert not (ilsvrc / "found" / "localization.json").exists()
    STOP.clear()
    before = len(CALLS)
    assert run(*words).exit_code == 0
    # The batch at which it was stopped, and those behind it; tracing asks once more.
    assert len(CALLS) - before < all_calls - 1
    assert found(ilsvrc)[0] == json.loads((ilsvrc / "whole" / "localization.json").read_text())
    CALLS.clear()
    monkeypatch.setattr(localize, "run_batch", None)  # nothing is left to explain
    assert run(*words).exit_code == 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", None])
def test_a_damaged_file_is_measured_anew(ilsvrc, damage):
    words = ("--data", "folder:val", "--methods", "dark")
    assert run(*words).exit_code == 0
    whole = found(ilsvrc)
    (kept,) = (ilsvrc / "found" / "kept").glob("dark-*.npz")
    if damage is None:
        with zipfile.ZipFile(kept, "w") as file:
            file.writestr("told.npy", b"nothing")
    else:
        kept.write_bytes(damage)
    assert run(*words).exit_code == 0
    assert found(ilsvrc) == whole


def test_one_class_an_annotation_needs_no_folders(ilsvrc):
    for path in (ilsvrc / "val").rglob("*.JPEG"):
        path.rename(ilsvrc / "val" / path.name)
    words = ("--data", "folder:val", "--methods", "bright")
    result = run(*words)
    assert result.exit_code == 2
    assert "12 of 12 annotations: " in result.stderr
    assert "which is the class?" in result.stderr
    for number in range(COUNT):
        other = SYNSETS[(number + 1) % 3]
        (ilsvrc / "boxes" / f"{name(number)}.xml").write_text(
            annotation(number).replace(other, SYNSETS[number % 3])
        )
    assert run(*words).exit_code == 0
    # With the other box of its own class, too, no picture is astray.
    assert found(ilsvrc)[1]["bright", "max"]["known"]["value"] == 0


ENTITIES = '<!DOCTYPE a [<!ENTITY x "n01440764">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, f"1 of 12 pictures have no annotation in boxes: {name(4)}.xml"),
        ("<annotation>", f"1 of 12 annotations: {name(4)}.xml is no annotation of ILSVRC"),
        (ENTITIES, f"{name(4)}.xml is no annotation of ILSVRC: it declares a document type (a)"),
        ("<annotation/>", f"{name(4)}.xml has no box of n01443537"),
    ],
)
def test_bad_annotations_are_told_before_any_work(ilsvrc, text, message):
    path = ilsvrc / "boxes" / f"{name(4)}.xml"
    path.unlink() if text is None else path.write_text(text)
    result = run("--data", "folder:val")
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert message in line
    assert CALLS.count("bright") <= 1  # asked once whether it can explain the network at all


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "an8flower/single_6c"], "expected tfds:imagenet2012, or folder:PATH"),
        (["--data", "folder:nowhere"], "no such folder: 'nowhere'"),
        (["--data", "folder:boxes"], "holds no pictures"),
        (["--data", "folder:val", "--annotations", "nowhere"], "is no folder"),
        (["--data", "folder:val", "--tuning", 12], "has 12 pictures; 12 for the thresholds"),
        (["--data", "folder:val", "--count", 9], "has 12 pictures; 4 for the thresholds and 9"),
        (["--data", "folder:val", "--methods", "brite"], "nearest: bright"),
        (["--data", "folder:val", "--methods", "refusing"], "this network has no layers"),
        (["--data", "folder:val", "--synsets", "one.txt"], "has 3 classes, and 1 synsets"),
        (["--data", "folder:val", "--synsets", "none.txt"], "names no synset"),
        (["--data", "folder:val", "--out", "synsets.txt"], "is a file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(ilsvrc, words, message):
    (ilsvrc / "one.txt").write_text("n01440764\n")
    (ilsvrc / "none.txt").write_text("\n")
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_a_picture_that_cannot_be_read_is_named_and_what_was_done_is_kept(ilsvrc):
    number = int(np.random.default_rng(0).permutation(COUNT)[-1])
    (path,) = (ilsvrc / "val").rglob(f"{name(number)}.JPEG")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    words = ("--data", "folder:val", "--methods", "bright")
    result = run(*words)
    assert result.exit_code == 2
    assert path.name in result.stderr.splitlines()[-1]
    path.write_bytes(whole)
    CALLS.clear()
    assert run(*words).exit_code == 0
    assert CALLS.count("bright") <= 2


def test_whole_pictures_are_squashed_if_asked_for(ilsvrc, monkeypatch):
    cropping = Preprocessing((SIZE, SIZE), (0.0,) * 3, (1.0,) * 3, resize=24)
    seen = []
    original = localize.read_batch

    def watched(request, model, *others):
        seen.append(model.preprocessing)
        return original(request, model, *others)

    monkeypatch.setattr(localize, "read_batch", watched)
    own = Model(**{**vars(model()), "preprocessing": cropping})
    monkeypatch.setattr(jaxplain.models, "load_model", lambda name, weights=None: own)
    words = ("--data", "folder:val", "--methods", "bright")
    assert run(*words).exit_code == 0
    assert {each.resize for each in seen} == {24}
    seen.clear()
    assert run(*words, "--whole").exit_code == 0
    assert {each.resize for each in seen} == {None}
