"""Files are those of the safetensors library, and damage is found."""

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxplain.models.weights.safetensors_file import read_safetensors, write_safetensors

ARRAYS = {
    "params/a/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "params/b": np.arange(5, dtype=np.float16),
    "scalar": np.array(3, np.int64),
}


def values_of(tensor):
    return np.concatenate([np.atleast_1d(piece) for _, piece in tensor.pieces()])


def test_the_library_reads_what_is_written(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", ARRAYS, {"format": "jaxplain"})
    read = load_file(tmp_path / "a.safetensors")
    assert set(read) == set(ARRAYS)
    for name, values in ARRAYS.items():
        assert read[name].dtype == values.dtype
        np.testing.assert_array_equal(read[name], values)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]


def test_what_the_library_writes_is_read(tmp_path):
    save_file(ARRAYS, tmp_path / "a.safetensors", {"by": "the library"})
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"by": "the library"}
    for name, values in ARRAYS.items():
        assert tensors[name].shape == values.shape
        assert tensors[name].dtype == values.dtype
        np.testing.assert_array_equal(values_of(tensors[name]).reshape(values.shape), values)


def test_writing_and_reading_gives_the_same(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", ARRAYS, {"name": "ä <b>"})
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"name": "ä <b>"}
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(values_of(tensors[name]).reshape(values.shape), values)


def test_any_changed_byte_of_our_own_files_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS, {"format": "jaxplain"})
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 4
        path.write_bytes(changed)
        try:
            tensors, metadata = read_safetensors(path)
        except ValueError:
            continue
        # What is left is the white space between the parts of the header.
        assert metadata == {"format": "jaxplain"}
        assert set(tensors) == set(ARRAYS)


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_safetensors(path)


def test_a_header_that_lies_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for header in (
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        [],
    ):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            read_safetensors(path)
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_safetensors(path)


def test_nothing_is_left_when_a_file_cannot_be_written(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_safetensors(tmp_path / "a.safetensors", ARRAYS, {})
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_safetensors(tmp_path / "file" / "a.safetensors", ARRAYS, {})


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_rights_that_the_user_gives_new_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(2, np.float32)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
