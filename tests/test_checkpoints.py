"""Checkpoints: the newest whole one of the same work, whatever happened to the others."""

import errno
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxplain.checkpoints import Checkpoints

WORK = {"task": "count", "rate": 0.1, "shape": [2, 3]}


def state(step: int) -> dict:
    random = np.random.default_rng(step)
    return {
        "mean": random.standard_normal((20, 30)).astype(np.float32),
        "nested": (np.int32(step), [random.integers(0, 9, 4)]),
        "empty": {},
    }


def same(a, b) -> bool:
    return (
        np.array_equal(a["mean"], b["mean"])
        and a["nested"][0] == b["nested"][0]
        and np.array_equal(a["nested"][1][0], b["nested"][1][0])
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with Checkpoints(folder, WORK) as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(step, state(step), {"step": step, "history": [[0.1, step]]})
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "kept"))


def newest(folder: Path, work=WORK, like=None):
    with Checkpoints(folder, work) as checkpoints:
        return checkpoints.resume(state(0) if like is None else like)


def test_the_newest_comes_back_bit_for_bit(folder):
    step, found, notes = newest(folder)
    assert step == 15
    assert same(found, state(15))
    assert notes == {"step": 15, "history": [[0.1, 15]]}


def test_an_empty_folder_has_none(tmp_path):
    assert newest(tmp_path / "new") is None


def test_two_are_kept(folder):
    assert sorted(path.name for path in folder.glob("*/*")) == ["10", "10", "15", "15"]


def test_one_that_was_killed_in_the_middle_is_passed_over_and_written_anew(folder):
    shutil.copytree(folder / "states" / "15", folder / "states" / "20.orbax-checkpoint-tmp-1")
    shutil.copytree(folder / "states" / "15", folder / "states" / "20")  # killed before the seal
    assert newest(folder)[0] == 15
    with Checkpoints(folder, WORK) as checkpoints:
        checkpoints.save(20, state(20), {})
    assert newest(folder)[0] == 20


def test_killed_in_the_very_first_one_it_begins_anew(folder, tmp_path):
    (tmp_path / "new" / "states").mkdir(parents=True)
    shutil.copytree(folder / "states" / "15", tmp_path / "new" / "states" / "15")
    assert newest(tmp_path / "new") is None


def damaged(whole: bytes, how: str) -> bytes:
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :] if whole else b"?"
    return {"emptied": b"", "cut": whole[:middle], "flipped": flipped}[how]


@pytest.mark.parametrize("how", ["emptied", "cut", "flipped"])
def test_a_damaged_one_is_passed_over_and_written_anew(folder, how, tmp_path):
    paths = [Path("seals/15"), *files(folder, "states/15")]
    assert len(paths) > 3
    for number, name in enumerate(paths):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(damaged(whole, how))
        if (copy / name).read_bytes() == whole:
            continue
        step, found, notes = newest(copy)
        assert step == notes["step"] == 10
        assert same(found, state(10))
    with Checkpoints(copy, WORK) as checkpoints:
        checkpoints.save(15, state(15), {})


def test_if_none_is_whole_nothing_begins_anew_silently(folder):
    for step in ("10", "15"):
        (folder / "seals" / step).write_bytes(b"")
    with pytest.raises(ValueError, match="are damaged; delete them to begin anew"):
        newest(folder)


def files(folder: Path, under: str) -> list[Path]:
    found = (folder / under).rglob("*")
    return sorted(path.relative_to(folder) for path in found if path.is_file())


def test_other_work_is_refused_by_what_differs(folder):
    with pytest.raises(ValueError, match=r"rate was 0\.1, now 0\.2; seed was None, now 1"):
        newest(folder, WORK | {"rate": 0.2, "seed": 1})
    assert newest(folder)[0] == 15


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Checkpoints(tmp_path / "file" / "kept", WORK)


@pytest.fixture
def full_disk(folder):
    """No file may grow beyond 8 kB; what is written is larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_is_an_os_error_and_leaves_the_others_whole(full_disk):
    large = {"x": np.random.default_rng(0).standard_normal(10_000)}
    with Checkpoints(full_disk, WORK) as checkpoints:
        with pytest.raises(OSError, match="step 20 could not be written") as caught:
            checkpoints.save(20, large, {})
        assert caught.value.errno == errno.EFBIG
        assert caught.value.filename == str(full_disk)
        assert not list((full_disk / "states").glob("20*"))
        checkpoints.save(25, {"x": np.float32(1)}, {})
    assert newest(full_disk, like={"x": np.float32(0)})[0] == 25


def test_too_little_room_is_known_before_anything_is_written(folder, monkeypatch):
    room = shutil.disk_usage(folder)._replace(free=2 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with Checkpoints(folder, WORK) as checkpoints:
        with pytest.raises(OSError, match="step 20 could not be written") as caught:
            checkpoints.save(20, {"x": np.zeros(1 << 20)}, {})
        assert caught.value.errno == errno.ENOSPC
        assert not list((folder / "states").glob("20*"))
        checkpoints.save(20, {"x": np.zeros(1 << 16)}, {})
