"""Several processes, and one that is killed: the result is what one would have found."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import chip_worker
import jax
import numpy as np
import pytest
from chip_networks import images, small

from jaxplain.methods.chip import gather

TESTS = Path(__file__).parents[2]
FIELDS = ("packed", "corr", "energy", "weight", "predicted")
LIMIT = 300


def surroundings(devices: int = 1) -> dict[str, str]:
    """Return the environment of a process that has so many devices."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if "device_count" not in flag]
    return {
        **os.environ,
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }


def start(out: Path, *words, devices: int = 1) -> subprocess.Popen:
    command = [sys.executable, str(TESTS / "chip_worker.py"), str(out), *map(str, words)]
    return subprocess.Popen(command, env=surroundings(devices), stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen) -> str:
    """Wait for a process that should end well, or return why it did not."""
    _, error = process.communicate(timeout=LIMIT)
    return "" if process.returncode == 0 else error


def test_two_processes_find_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outs = [tmp_path / f"{index}.npz" for index in range(2)]
    # 21 images in batches of 2: one process has a batch more, and its last one is not full.
    started = [
        start(out, "--processes", 2, "--index", index, "--port", port, devices=2)
        for index, out in enumerate(outs)
    ]
    assert [finished(process) for process in started] == ["", ""]
    alone = gather(small(), [images(21)], ("conv1", "conv2"), key=jax.random.key(0), num_gates=8)
    for out in outs:
        with np.load(out) as found:
            for layer, expected in alone.items():
                for name in FIELDS:
                    own, value = found[f"{layer}/{name}"], np.asarray(getattr(expected, name))
                    scale = np.abs(value).max()
                    np.testing.assert_allclose(own / scale, value / scale, atol=1e-5, err_msg=name)


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path):
    # Every one of them runs the same programs: one compiles them.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    killed = subprocess.run(
        [sys.executable, str(TESTS / "chip_killer.py"), str(tmp_path)],
        env=surroundings() | cache,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert killed.returncode == 0, killed.stderr
    ends = [[int(word) for word in line.split()] for line in killed.stdout.splitlines()]
    # How each ended, and the checkpoints that were whole, or looked so, then.
    expected = [[], [], [], [1], [1, 2], [1, 2], [1, 2], [2, 3], [4, 5], [4, 5]]
    assert ends == [[-signal.SIGKILL, *seals] for seals in expected[:-1]] + [[0, *expected[-1]]]
    assert not (tmp_path / "never.npz").exists()
    chip_worker.main([str(tmp_path / "whole.npz"), "--checkpoint", str(tmp_path / "other")])
    with np.load(tmp_path / "whole.npz") as one, np.load(tmp_path / "resumed.npz") as other:
        assert sorted(one) == sorted(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
            assert np.abs(one[name]).max() > 0
    words = [str(tmp_path / "no.npz"), "--checkpoint", str(tmp_path / "kept"), "--seed", "1"]
    with pytest.raises(ValueError, match="is of other data: the first batch differs"):
        chip_worker.main(words)


def test_what_was_read_is_passed_over_and_compared(tmp_path):
    pictures, stop = images(14), 5
    batches = [pictures[i : i + 2] for i in range(0, 14, 2)]

    def broken_off():
        yield from batches[:stop]
        raise OSError("the disk was pulled out")

    def run(given, folder, **options):
        settings = {"key": jax.random.key(0), "num_gates": 8, "chunk": 4, "every": 1, **options}
        return gather(small(), given, "conv2", checkpoint=folder, **settings)["conv2"]

    with pytest.raises(OSError, match="pulled out"):
        run(broken_off(), tmp_path / "kept")
    for change, message in (
        ({"num_gates": 9}, "num_gates was 8, now 9"),
        ({"keep": 0.4}, "keep was 0.5, now 0.4; sigma was"),
        ({"key": jax.random.key(1)}, r"key was \[0, 0\], now \[0, 1\]"),
        ({"gates": "shared"}, "gates was 'fresh', now 'shared'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(batches, tmp_path / "kept", **change)
    swapped = [batches[0], batches[2], batches[1], *batches[3:]]
    with pytest.raises(ValueError, match=r"the first \d batches are not the same"):
        run(swapped, tmp_path / "kept")
    with pytest.raises(ValueError, match="of other data: they end after 1 batches"):
        run(batches[:1], tmp_path / "kept")
    told = []
    found = run(batches, tmp_path / "kept", progress=told.append)
    assert told[0].resumed == stop // 2 * 4
    expected = run(batches, tmp_path / "other")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch):
    pictures, free = images(8), [10**9]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, free[0]))

    def run():
        options = {"key": jax.random.key(0), "num_gates": 8, "chunk": 4, "every": 1}
        return gather(small(), batches(), "conv2", checkpoint=tmp_path / "kept", **options)

    def batches():
        for start in range(0, 8, 2):
            yield pictures[start : start + 2]
            free[0] = 10**9 if start < 4 or filled else 10**3

    filled = False
    with pytest.raises(OSError, match="the checkpoint of step 2 could not be written") as told:
        run()
    assert told.value.errno == errno.ENOSPC
    assert told.value.filename == str(tmp_path / "kept")
    filled = True
    assert run()["conv2"].settings.images == 8
