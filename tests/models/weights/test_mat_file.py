"""MATLAB's files as SciPy writes and reads them."""

import struct
import zlib

import numpy as np
import pytest
from matconvnet_writer import cells
from scipy import io

from jaxplain.models.weights.mat_file import read_mat

WORKSPACE = {
    "doubles": np.arange(24.0).reshape(2, 3, 4) / 7,
    "singles": np.float32([[1.5, -2.5]]),
    "whole": np.arange(6.0).reshape(2, 3),
    "bytes": np.uint8([[1, 255]]),
    "long": np.int64([[-(2**40)]]),
    "text": "größe",
    "cell": cells(["a", np.ones((2, 2)), cells(["b"])]),
    "struct": {"name": "conv1", "pad": np.array([[1.0, 2.0]]), "inner": {"x": np.array([[3.0]])}},
    "empty": np.empty((0, 3)),
}


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_are_read_as_written(tmp_path, compressed):
    io.savemat(tmp_path / "a.mat", WORKSPACE, do_compression=compressed)
    found = read_mat(tmp_path / "a.mat", WORKSPACE)
    assert set(found) == set(WORKSPACE)
    for name in ("doubles", "singles", "whole", "bytes", "long", "empty"):
        np.testing.assert_array_equal(found[name], WORKSPACE[name])
        assert found[name].dtype == WORKSPACE[name].dtype
    assert found["text"] == "größe"
    first, second, (third,) = found["cell"]
    assert (first, third) == ("a", "b")
    np.testing.assert_array_equal(second, np.ones((2, 2)))
    assert found["struct"]["name"] == "conv1"
    np.testing.assert_array_equal(found["struct"]["pad"], [[1, 2]])
    np.testing.assert_array_equal(found["struct"]["inner"]["x"], [[3]])


def test_only_the_wanted_variables_are_returned(tmp_path):
    io.savemat(tmp_path / "a.mat", WORKSPACE)
    assert set(read_mat(tmp_path / "a.mat", ("text", "missing"))) == {"text"}


def test_an_array_of_structs_is_a_list_in_matlabs_order(tmp_path):
    structs = np.array([(1.0, "a"), (2.0, "b")], [("n", object), ("s", object)])
    io.savemat(tmp_path / "a.mat", {"structs": structs})
    found = read_mat(tmp_path / "a.mat", ("structs",))["structs"]
    assert [(float(s["n"].item()), s["s"]) for s in found] == [(1.0, "a"), (2.0, "b")]


def header(version=0x100, order=b"IM"):
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", version) + order


def element(kind, data):
    return struct.pack("<2I", kind, len(data)) + data + bytes(-len(data) % 8)


def array(kind, shape, rest):
    flags = element(6, struct.pack("<2I", kind, 0))
    return element(14, flags + element(5, np.int32(shape).tobytes()) + element(1, b"x") + rest)


def nested(depth):
    inner = array(6, (1, 1), element(9, bytes(8)))
    for _ in range(depth):
        inner = array(1, (1, 1), inner)
    return inner


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin like one"),
        (header(order=b"MI"), "does not begin like one"),
        (header(0x200), r"version 7\.3"),
        (header(0x300), "version 0x300"),
        (header() + b"1234", "truncated"),
        (header() + struct.pack("<2I", 14, 2**31), "truncated"),
        (header() + element(9, bytes(8)), "type 9 where a variable belongs"),
        (header() + array(6, (2, 2), element(9, bytes(8))), r"shape \(2, 2\) has 1 numbers"),
        (header() + array(6, (2**31 - 1,) * 3, element(9, bytes(8))), "has 1 numbers"),
        (header() + array(6, (-1, -1), element(9, bytes(8))), r"has the shape \(-1, -1\)"),
        (header() + array(6, (1,), element(9, bytes(8))), r"has the shape \(1,\)"),
        (header() + array(6, (1, 1), element(99, bytes(8))), "numbers of type 99"),
        (header() + array(1, (2**20, 2**10), b""), "1073741824 values in 0 bytes"),
        (header() + array(2, (1, 1), element(5, bytes(4)) + element(1, b"")), "fields of a struct"),
        (header() + array(4, (1, 1), element(16, b"\xff")), "can't decode"),
        (header() + array(4, (1, 1), element(99, b"a")), "text of type 99"),
        (header() + nested(100), "nested deeper than 32"),
        (header() + struct.pack("<2I", 0x50001, 0), "longer than four bytes"),
        (header() + struct.pack("<2I", 15, 5) + b"12345", "Error -3"),
    ],
)
def test_what_is_damaged_is_refused(tmp_path, content, message):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.mat is not a readable MATLAB file: .*{message}"):
        read_mat(tmp_path / "a.mat", ("x",))


def test_the_checksum_of_a_compressed_variable_is_compared(tmp_path):
    data = bytearray(zlib.compress(array(6, (1, 1), element(9, bytes(8)))))
    (tmp_path / "a.mat").write_bytes(header() + struct.pack("<2I", 15, len(data)) + data)
    assert read_mat(tmp_path / "a.mat", ("x",))["x"] == 0
    data[-1] ^= 1
    (tmp_path / "a.mat").write_bytes(header() + struct.pack("<2I", 15, len(data)) + data)
    with pytest.raises(ValueError, match="incorrect data check"):
        read_mat(tmp_path / "a.mat", ("x",))


def test_a_bomb_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxplain.models.weights.mat_file.LARGEST", 1000)
    data = zlib.compress(array(6, (1000, 1000), element(9, bytes(8_000_000))))
    (tmp_path / "a.mat").write_bytes(header() + struct.pack("<2I", 15, len(data)) + data)
    with pytest.raises(ValueError, match="damaged or too large"):
        read_mat(tmp_path / "a.mat", ("x",))
