"""Reads and writes `.safetensors`, in pieces: https://github.com/huggingface/safetensors (format).

The library `safetensors` checks a file's header; the tensors are read with plain reads, because its
memory map would stay resident beside the arrays that are made of it. Files that are written here
hold a checksum of all that they hold, which reading compares.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxplain.models.weights.tensors import PIECE, FileTensor
from jaxplain.outputs import replacing

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
CHECKSUM = "crc32"
# What our own files call their format; they always have a checksum.
OWN_FORMAT = "jaxplain"


class ChecksumError(ValueError):
    """A file does not hold what was written, or says so no more.

    Attributes:
        tensors: what it seems to hold.
        metadata: what it seems to say.
    """

    def __init__(
        self, path: Path, reason: str, tensors: dict[str, FileTensor], metadata: dict[str, str]
    ):
        super().__init__(f"{path} is damaged, or another program changed it: {reason}")
        self.tensors, self.metadata = tensors, metadata


def read_safetensors(path: str | Path) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """Return the tensors of a file and its metadata; each tensor is read when it is used.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged (`ChecksumError`, where its tensors can still be named), or a
            tensor has a dtype that NumPy does not know.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    try:
        with safe_open(path, "np") as opened:
            metadata = dict(opened.metadata() or {})
            # The library makes sure that the tensors follow each other without gaps.
            tensors, kinds, offset = {}, {}, start
            for name in opened.offset_keys():
                entry = opened.get_slice(name)
                shape, kind = tuple(entry.get_shape()), entry.get_dtype()
                if kind not in DTYPES:
                    raise ValueError(f"{path}: tensor {name[:80]!r} has the dtype {kind}")
                tensors[name], kinds[name] = FileTensor(path, offset, DTYPES[kind], shape), kind
                offset += math.prod(shape) * DTYPES[kind].itemsize
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    expected = metadata.pop(CHECKSUM, None)
    if expected is None and metadata.get("format") == OWN_FORMAT:
        raise ChecksumError(path, "its checksum is missing", tensors, metadata)
    if expected is not None:
        described = [(name, kinds[name], tensors[name].shape) for name in tensors]
        if expected != f"{_file_checksum(path, start, _described(metadata, described)):08x}":
            raise ChecksumError(path, "its checksum is another", tensors, metadata)
    return tensors, metadata


def write_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays and metadata, one array at a time; the file appears when it is complete.

    Args:
        path: the file; replaced if it exists.
        arrays: name -> array of a dtype in `DTYPES`; device arrays are fetched one by one.
        metadata: what else to say.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    described = [(name, names[np.dtype(a.dtype)], a.shape) for name, a in arrays.items()]
    checksum = _described(metadata, described)
    header: dict[str, object] = {}
    offset = 0
    for (name, kind, shape), array in zip(described, arrays.values(), strict=True):
        values = _bytes(array)
        checksum = zlib.crc32(values, checksum)
        places = [offset, offset := offset + len(values)]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": places}
    header["__metadata__"] = {**metadata, CHECKSUM: f"{checksum:08x}"}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(_bytes(array))


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _described(
    metadata: Mapping[str, str], tensors: Sequence[tuple[str, str, tuple[int, ...]]]
) -> int:
    """Return the checksum of what a header says."""
    text = json.dumps([sorted(metadata.items()), tensors])
    return zlib.crc32(text.encode())


def _file_checksum(path: Path, start: int, checksum: int) -> int:
    """Return `checksum` continued over the bytes of a file from `start`."""
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum
