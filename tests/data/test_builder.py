"""Flowers on disk are the rendered ones, and a folder holds a whole data set or none."""

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxplain.data import builder
from jaxplain.data.an8flower import PARTS, VARIANTS, find_variant, render
from jaxplain.data.builder import An8flower, build, data_folder, flowers
from jaxplain.data.loaders import batches

COUNTS = {"train": 36, "validation": 12, "test": 24}
SMALL = {"size": 32, "per_class": (3, 1, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def double(folder):
    return build("double_12c", folder, seed=4, **SMALL)


@pytest.mark.parametrize(("split", "count"), COUNTS.items())
def test_every_example_is_the_rendered_flower(double, split, count):
    source = flowers(double, split)
    names = find_variant("double_12c").class_names
    assert len(source) == count
    assert source.class_names == names
    seen = set()
    for example in (source[number] for number in range(count)):
        kept, index = example["id"].split("-")
        assert kept == split
        seen.add(int(index))
        flower = render(int(index), variant="double_12c", split=split, seed=4, size=32)
        np.testing.assert_array_equal(example["image"], flower.image)
        np.testing.assert_array_equal(example["mask"], flower.mask)
        assert tuple(example["box"]) == flower.box
        assert example["label"] == flower.label
        assert PARTS[example["part"]] == flower.part
    assert seen == set(range(count))


def test_classes_are_balanced(double):
    labels = [flowers(double, "train")[number]["label"] for number in range(36)]
    assert np.bincount(labels).tolist() == [3] * 12


def test_the_records_are_not_sorted_by_class(double):
    labels = [int(flowers(double, "train")[number]["label"]) for number in range(36)]
    assert labels != [number % 12 for number in range(36)]


def test_batches_come_from_disk(double):
    (batch,) = batches(flowers(double, "validation"), 12, shuffle=True)
    assert batch["image"].shape == (12, 32, 32, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["mask"].shape == (12, 32, 32)
    assert batch["mask"].dtype == bool
    assert sorted(batch["label"]) == list(range(12))


def test_tfds_reads_it_by_name(folder, double, monkeypatch):
    """As anybody would who knows TFDS, with the configurations of the builder itself."""
    default = An8flower.BUILDER_CONFIGS[1]
    monkeypatch.setattr(default, "size", 32)
    monkeypatch.setattr(default, "per_class", (1, 1, 1))
    monkeypatch.setattr(builder, "PER_CLASS", (1, 1, 1))
    An8flower(
        data_dir=folder, config="double_12c", file_format="array_record"
    ).download_and_prepare()
    source = tfds.data_source("an8flower/double_12c", split="test", data_dir=folder, download=False)
    assert len(source) == 12
    assert source[0]["image"].shape == (32, 32, 3)
    assert "tensorflow" not in sys.modules


def test_the_builders_own_configurations_hold_1000_pictures_of_each_class():
    assert {config.name for config in An8flower.BUILDER_CONFIGS} == set(VARIANTS)
    for config in An8flower.BUILDER_CONFIGS:
        assert (config.variant, config.size, config.seed) == (config.name, 112, 0)
        assert sum(config.per_class) == 1000


def test_it_is_built_once_and_tells_how_far_it_is(tmp_path, capfd):
    steps = []
    options = {"size": 32, "per_class": (2, 1, 1), "progress": lambda *step: steps.append(step)}
    path = build("single_6c", tmp_path, **options)
    assert steps == [(done, 24) for done in range(1, 25)]
    times = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert build("single_6c", tmp_path, **options) == path
    assert len(steps) == 24
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == times
    assert capfd.readouterr() == ("", "")


def test_other_arguments_are_another_data_set(tmp_path):
    paths = {
        build("single_6c", tmp_path, size=32, per_class=(1, 1, 1), seed=seed) for seed in (0, 1)
    }
    paths.add(build("single_6c", tmp_path, size=33, per_class=(1, 1, 1)))
    assert len(paths) == 3


def test_an_interrupted_build_leaves_nothing_and_the_next_begins_anew(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("single_6c", tmp_path, **SMALL, progress=interrupt)
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in left} <= {".lock", "metadata.json"}
    assert len(flowers(build("single_6c", tmp_path, **SMALL), "test")) == 12


def test_what_a_killed_build_left_is_cleared_away(tmp_path):
    """The process dies in the middle, without a chance to tidy up."""
    script = f"""
import os, signal
from jaxplain.data.builder import build

def die(done, total):
    if done == 9:
        os.kill(os.getpid(), signal.SIGKILL)

build("single_6c", {str(tmp_path)!r}, size=32, per_class=(3, 1, 2), progress=die)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("incomplete.*"))
    assert not list(tmp_path.rglob("dataset_info.json"))
    path = build("single_6c", tmp_path, **SMALL)
    assert len(flowers(path, "train")) == 18
    assert not list(tmp_path.rglob("incomplete.*"))


def test_two_builds_at_once_wait_for_each_other(tmp_path):
    """The second starts while the first is at work, and finds it done."""
    results, steps = [], []

    def second() -> None:
        results.append(build("single_6c", tmp_path, **SMALL, progress=lambda *_: steps.append(2)))

    other = threading.Thread(target=second)

    def first(done: int, total: int) -> None:
        steps.append(1)
        if done == 1:
            other.start()

    results.append(build("single_6c", tmp_path, **SMALL, progress=first))
    other.join()
    assert results[0] == results[1]
    assert set(steps) == {1}


@pytest.mark.parametrize("name", ["*validation*", "dataset_info.json", "features.json"])
@pytest.mark.parametrize("kept", [0.0, 0.5, None])
def test_a_damaged_data_set_is_refused(tmp_path, name, kept):
    """A file is cut off, emptied or deleted."""
    path = build("single_6c", tmp_path, size=32, per_class=(1, 1, 1))
    (file,) = path.glob(name)
    content = file.read_bytes()
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises((ValueError, FileNotFoundError), match=r"is damaged; delete|no data set in"):
        flowers(path, "validation")
    with pytest.raises(ValueError, match="is damaged; delete the folder and build it again"):
        build("single_6c", tmp_path, size=32, per_class=(1, 1, 1))


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no data set in .*jaxplain data build"):
        flowers(tmp_path, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "double_6c"}, "single_6c"),
        ({"size": 8}, "size must be 32 to 2048"),
        ({"per_class": (1, 0, 1)}, "per_class must be"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_there_is_a_folder(tmp_path, change, message):
    arguments = {"variant": "single_6c", "data_dir": tmp_path / "new", **SMALL} | change
    with pytest.raises(ValueError, match=message):
        build(**arguments)
    assert not (tmp_path / "new").exists()


def test_an_unknown_split_is_refused(double):
    with pytest.raises(ValueError, match="nearest: validation"):
        flowers(double, "valid")


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPLAIN_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    path = build("single_6c", size=32, per_class=(1, 1, 1))
    assert path.is_relative_to(tmp_path)
    monkeypatch.delenv("JAXPLAIN_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    if sys.platform == "linux":
        assert data_folder() == tmp_path / "home" / "jaxplain"


def test_a_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(NotADirectoryError, match="file' is a file"):
        build("single_6c", tmp_path / "file", **SMALL, progress=lambda *_: pytest.fail("rendered"))
