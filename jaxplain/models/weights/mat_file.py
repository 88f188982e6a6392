"""Reads MATLAB's workspaces of version 5, the files that `save -v6` and `save -v7` write.

SciPy reads them too, but a damaged file can crash its reader, and with it the whole process. Here
every length is compared with what is left before anything is read.

Format: "MAT-File Format", The MathWorks,
https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf, chapter 1.
"""

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HEADER = 128
COMPRESSED, MATRIX = 15, 14
CELL, STRUCT, OBJECT, CHARACTERS = 1, 2, 3, 4

# miINT8 ... miUINT64: how numbers are stored.
STORED = {
    1: np.dtype("i1"),
    2: np.dtype("u1"),
    3: np.dtype("<i2"),
    4: np.dtype("<u2"),
    5: np.dtype("<i4"),
    6: np.dtype("<u4"),
    7: np.dtype("<f4"),
    9: np.dtype("<f8"),
    12: np.dtype("<i8"),
    13: np.dtype("<u8"),
}
# mxDOUBLE_CLASS ... mxUINT64_CLASS: what they are (whole doubles may be stored as bytes).
NUMBERS = {
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("i1"),
    9: np.dtype("u1"),
    10: np.dtype("<i2"),
    11: np.dtype("<u2"),
    12: np.dtype("<i4"),
    13: np.dtype("<u4"),
    14: np.dtype("<i8"),
    15: np.dtype("<u8"),
}
TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}

DEEPEST = 32
# A few kilobytes of compressed zeros may claim any size; no network in this format is this large.
LARGEST = 4 << 30


def read_mat(path: str | Path, names: Collection[str]) -> dict[str, Any]:
    """Return some of the variables of a workspace.

    Args:
        path: the file.
        names: the variables that are wanted; those that the workspace lacks are left out.

    Returns:
        Numbers as arrays, text as `str`, cells as lists in MATLAB's order, a struct as a dict of
        its fields (several as a list of dicts); what is none of these, as None.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another version or of a machine with other numbers.
    """
    path = Path(path)
    content = memoryview(path.read_bytes())
    try:
        return dict(_variables(content, names))
    except (ValueError, zlib.error, struct.error, UnicodeError) as error:
        raise ValueError(f"{path} is not a readable MATLAB file: {str(error)[:500]}") from error


def _variables(content: memoryview, names: Collection[str]) -> Iterator[tuple[str, Any]]:
    if len(content) < HEADER or bytes(content[126:128]) != b"IM":
        raise ValueError("it does not begin like one with little-endian numbers")
    (version,) = struct.unpack("<H", content[124:126])
    if version == 0x200:
        raise ValueError("it is of version 7.3 (HDF5); save it with -v7")
    if version != 0x100:
        raise ValueError(f"it is of version {version:#x}")
    position = HEADER
    while position < len(content):
        kind, data, position = _element(content, position, padded=False)
        if kind == COMPRESSED:
            kind, data, _ = _element(_inflated(data), 0)
        if kind != MATRIX:
            raise ValueError(f"it has an element of type {kind} where a variable belongs")
        name, value = _matrix(data, names)
        if name in names:
            yield name, value


def _inflated(data: memoryview) -> memoryview:
    """Decompress a variable, which checks its checksum."""
    machine = zlib.decompressobj()
    inflated = machine.decompress(data, LARGEST)
    if not machine.eof or machine.unused_data:
        raise ValueError("a compressed variable is damaged or too large")
    return memoryview(inflated)


def _element(
    content: memoryview, position: int, *, padded: bool = True
) -> tuple[int, memoryview, int]:
    """Return the type and the bytes of the element at `position`, and where the next one is."""
    if position + 8 > len(content):
        raise ValueError("it is truncated")
    kind, size = struct.unpack("<2I", content[position : position + 8])
    if kind >> 16:  # up to four bytes lie in the tag itself
        kind, size = kind & 0xFFFF, kind >> 16
        start, following = position + 4, position + 8
        if size > 4:
            raise ValueError("a short element is longer than four bytes")
    else:
        start = position + 8
        following = start + size
        if padded or kind != COMPRESSED:
            following += -size % 8
    if start + size > len(content):
        raise ValueError("it is truncated")
    return kind, content[start : start + size], min(following, len(content))


def _matrix(
    data: memoryview, wanted: Collection[str] | None = None, depth: int = 0
) -> tuple[str, Any]:
    """Return name and value of an array of any class; only the name if it is not wanted."""
    if depth > DEEPEST:
        raise ValueError(f"its values are nested deeper than {DEEPEST}")
    if not len(data):
        return "", np.empty((0, 0))
    _, flags, position = _element(data, 0)
    _, dims, position = _element(data, position)
    _, label, position = _element(data, position)
    kind, name = bytes(flags)[0] if len(flags) else 0, str(label, "latin-1")
    if wanted is not None and name not in wanted:
        return name, None
    if len(dims) % 4:
        raise ValueError("the shape of a value is damaged")
    shape = tuple(np.frombuffer(dims, "<i4").tolist())
    if len(shape) < 2 or min(shape) < 0:
        raise ValueError(f"a value has the shape {shape}")
    count = math.prod(shape)
    rest = data[position:]
    if kind in NUMBERS:
        return name, _numbers(rest, shape, NUMBERS[kind])
    if kind == CHARACTERS:
        stored, text, _ = _element(rest, 0)
        if stored not in TEXT:
            raise ValueError(f"it has text of type {stored}")
        return name, str(text, TEXT[stored])
    if kind == CELL:
        return name, _values(rest, count, depth)
    if kind in (STRUCT, OBJECT):
        return name, _structs(rest, count, depth, named=kind == OBJECT)
    return name, None


def _numbers(data: memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    stored, values, _ = _element(data, 0)
    if stored not in STORED or len(values) % STORED[stored].itemsize:
        raise ValueError(f"it has numbers of type {stored}")
    numbers = np.frombuffer(values, STORED[stored])
    if numbers.size != math.prod(shape):
        raise ValueError(f"a value of shape {shape} has {numbers.size} numbers")
    return numbers.reshape(shape, order="F").astype(dtype, copy=False)


def _values(data: memoryview, count: int, depth: int) -> list[Any]:
    """Return `count` arrays that follow each other."""
    if count * 8 > len(data):
        raise ValueError(f"it is truncated: {count} values in {len(data)} bytes")
    values, position = [], 0
    for _ in range(count):
        kind, content, position = _element(data, position)
        if kind != MATRIX:
            raise ValueError(f"it has an element of type {kind} where a value belongs")
        values.append(_matrix(content, depth=depth + 1)[1])
    return values


def _structs(data: memoryview, count: int, depth: int, *, named: bool) -> Any:
    """Return structs: the length of a field's name, the names, then all fields of each struct."""
    position = 0
    if named:  # an object says its class first
        _, _, position = _element(data, position)
    _, length, position = _element(data, position)
    _, label, position = _element(data, position)
    width = int.from_bytes(length, "little")
    if not 1 <= width <= 1024 or len(label) % width:
        raise ValueError("the fields of a struct are damaged")
    text = bytes(label)
    fields = [
        text[start : start + width].split(b"\0")[0].decode("latin-1")
        for start in range(0, len(text), width)
    ]
    values = _values(data[position:], count * len(fields), depth)
    structs = [
        dict(zip(fields, values[i * len(fields) : (i + 1) * len(fields)], strict=True))
        for i in range(count)
    ]
    return structs[0] if count == 1 else structs
