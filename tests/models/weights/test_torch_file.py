"""Torch's files are read as torch reads them; what is no state dict is refused and nothing runs."""

import builtins
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiny_network import state_dict
from torch_writer import (
    Call,
    Storage,
    Tensor,
    described,
    dump,
    write_legacy,
    write_state_dict,
    write_zip,
)

from jaxplain.models.weights.torch_file import LEGACY_MAGIC, read_torch

# Written by torch 2.13: see tests/data/README.md.
WRITTEN = Path(__file__).parents[2] / "data" / "torch"


def values_of(tensor):
    values = np.empty(tensor.shape, np.float32)
    for rows, piece in tensor.pieces():
        values[rows if tensor.shape else ()] = np.asarray(piece, np.float32)
    return values


@pytest.mark.parametrize("file", ["zip", "legacy", "protocol4", "checkpoint"])
def test_files_that_torch_wrote_are_read_to_the_bit(file):
    tensors = read_torch(WRITTEN / f"{file}.pth")
    with np.load(WRITTEN / "expected.npz") as expected:
        assert set(tensors) == set(expected.files)
        for name in expected.files:
            np.testing.assert_array_equal(values_of(tensors[name]), expected[name], err_msg=name)
    assert tensors["bn.num_batches_tracked"].dtype == np.int64
    assert tensors["half"].dtype == np.float16
    assert tensors["double"].dtype == np.float64


def test_a_pickled_model_is_refused_with_a_hint():
    with pytest.raises(ValueError, match=r"asks for torch\.nn\..*instead of model\.state_dict\(\)"):
        read_torch(WRITTEN / "whole_model.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_long_tensors_come_in_pieces(tmp_path, legacy, monkeypatch):
    monkeypatch.setattr("jaxplain.models.weights.tensors.PIECE", 100)
    written = {"w": np.arange(300, dtype=np.float32).reshape(30, 10), "s": np.array(2, np.int64)}
    tensors = read_torch(write_state_dict(tmp_path / "a.pth", written, legacy=legacy))
    pieces = list(tensors["w"].pieces())
    assert len(pieces) == 15
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), written["w"])


class Ran(Exception):
    """Raised by the payloads below, should one of them run."""


def payload(*_):
    raise Ran


HARMFUL = {
    "os.system": Call(os.system, "echo ran > ran.txt"),
    "builtins.eval": Call(builtins.eval, "open('ran.txt', 'w')"),
    "getattr": Call(getattr, os, "system"),
    "own function": Call(payload),
    "io.open": Call(io.open, "ran.txt", "w"),
    "getattr chain": Call(getattr, Call(getattr, "", "__class__"), "__bases__"),
    "bytes": b"\x00" * 10,
    "set": {1, 2},
    "class": type,
    "nested": {"state_dict": {"a": Call(os.system, "echo ran > ran.txt")}},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_pickle_is_refused_and_nothing_runs(
    tmp_path, monkeypatch, name, protocol, legacy
):
    monkeypatch.chdir(tmp_path)
    modules = {"getattr": os} if name == "getattr" else {}
    value = HARMFUL[name] if not modules else Call(getattr, "os", "system")
    data = pickle.dumps({"weight": value}, protocol)
    path = tmp_path / "harmful.pth"
    (write_legacy if legacy else write_zip)(path, data, [])
    with pytest.raises(ValueError, match=r"harmful\.pth is not a readable torch file: it"):
        read_torch(path)
    assert not (tmp_path / "ran.txt").exists()


# Opcodes that Python's pickler does not write by itself.
RAW = {
    "dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    "instance of a class": b"\x80\x02cos\nsystem\nq\x00(X\x04\x00\x00\x00echotR.",
    "old instance": b"(S'echo'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'echo'\no.",
    "new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "state of a storage type": b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeK\x01sb)R.",
    "items of a tensor": b"\x80\x02ctorch\nFloatStorage\n(K\x01e.",
    "extension": b"\x80\x02\x82\x01.",
    "buffer": b"\x80\x05\x97.",
    "memo that is not there": b"\x80\x02j\xff\xff\xff\x7f.",
    "stack that is empty": b"\x80\x02}\x86\x85\x87s.",
    "mark that is not there": b"\x80\x02}u.",
    "no end": b"\x80\x02}",
    "text longer than the file": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "text of 2**62 bytes": b"\x80\x04\x8d\x00\x00\x00\x00\x00\x00\x00\x40abc.",
    "key that is a tuple": b"\x80\x02}K\x01\x85K\x02s.",
    "nothing": b"",
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", RAW)
def test_a_strange_pickle_is_refused(tmp_path, name, legacy):
    path = tmp_path / "strange.pth"
    (write_legacy if legacy else write_zip)(path, RAW[name], [])
    with pytest.raises(ValueError, match="not a readable torch file: "):
        read_torch(path)


def test_a_memo_of_large_numbers_takes_no_memory(tmp_path):
    data = b"\x80\x02}r\xff\xff\xff\x7f."  # an empty dict, remembered as number 2**31 - 1
    assert read_torch(write_zip(tmp_path / "a.pth", data, [])) == {}


def test_tuples_in_tuples_end_quickly(tmp_path):
    data = b"\x80\x02K\x01" + b"\x86".join([b"q\x00h\x00"] * 200) + b"\x86."
    with pytest.raises(ValueError, match="it holds no dict of tensors"):
        read_torch(write_zip(tmp_path / "a.pth", data, []))


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ((0, (3, 5), (5, 1)), "does not lie in its storage of 12 elements"),
        ((1, (3, 4), (4, 1)), "does not lie in its storage"),
        ((0, (3, 4), (100, 1)), "does not lie in its storage"),
        ((0, (2**40, 4), (0, 1)), "does not lie in its storage"),
        ((0, (4, 4), (0, 1)), "does not lie in its storage"),
        ((2**63, (1,), (1,)), "does not lie in its storage"),
        ((-1, (3, 4), (4, 1)), "numbers from 0"),
        ((0, (3, 4), (-4, 1)), "numbers from 0"),
        ((0, (3, 4), (4,)), "2 axes and 1 strides"),
        ((0, (True, 4), (4, 1)), "numbers from 0"),
        ((0, (1.5, 4), (4, 1)), "numbers from 0"),
        ((0, (0, 4), (4, 1)), "does not lie in its storage"),
        ((0, [3, 4], (4, 1)), "something else than torch does"),
        (("0", (3, 4), (4, 1)), "something else than torch does"),
        ((0, (1,) * 9, (1,) * 9), "9 axes"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, view, message):
    storage = Storage("0", np.zeros(12, np.float32))
    data = dump({"w": Tensor(storage, *view)})
    with pytest.raises(ValueError, match=message):
        read_torch(write_zip(tmp_path / "a.pth", data, [storage]))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_storage_of_another_size_than_described_is_refused(tmp_path, legacy):
    views, storages = described({"w": np.zeros((3, 4), np.float32)})
    data = dump(views, legacy=legacy, sizes={"0": 10**12})
    write = write_legacy if legacy else write_zip
    with pytest.raises(
        ValueError, match=r"has 48 bytes, not 1000000000000|truncated or has another"
    ):
        read_torch(write(tmp_path / "a.pth", data, storages))


def test_storages_that_are_missing_or_left_over_are_refused(tmp_path):
    views, storages = described({"w": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="the bytes of storage '0' are missing"):
        read_torch(write_zip(tmp_path / "a.pth", dump(views), []))
    with pytest.raises(ValueError, match="its list of storages is not that of its tensors"):
        read_torch(write_legacy(tmp_path / "b.pth", dump(views, legacy=True), []))
    path = write_legacy(tmp_path / "c.pth", dump(views, legacy=True), storages)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match="4 bytes follow its last storage"):
        read_torch(path)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(ValueError, match="truncated"):
        read_torch(path)


def test_a_compressed_archive_is_refused(tmp_path):
    views, storages = described({"w": np.zeros(1000, np.float32)})
    path = write_zip(tmp_path / "a.pth", dump(views), storages, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        read_torch(path)


def test_a_changed_byte_in_an_archive_is_found(tmp_path):
    path = write_state_dict(tmp_path / "a.pth", {"w": np.full(1000, 7, np.float32)})
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 7) * 10) + 17] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        read_torch(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "exhausted before seeing STOP"),
        (b"PK\x03\x04nothing", "not a zip file"),
        (b"\x89PNG\r\n", "readable torch file"),
        (pickle.dumps(LEGACY_MAGIC, 2), "exhausted before seeing STOP"),
        (pickle.dumps(5, 2) * 3, "neither a zip archive nor torch's magic number"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_torch(path)


def test_values_that_are_no_tensors_are_named(tmp_path):
    with pytest.raises(ValueError, match="its entry 'epoch' is not a tensor"):
        read_torch(write_zip(tmp_path / "a.pth", dump({"epoch": 3}), []))


def test_both_containers_hold_the_same(tmp_path):
    written = state_dict()
    for legacy in (False, True):
        tensors = read_torch(write_state_dict(tmp_path / "a.pth", written, legacy=legacy))
        assert list(tensors) == list(written)
        for name, values in written.items():
            np.testing.assert_array_equal(values_of(tensors[name]), values)
