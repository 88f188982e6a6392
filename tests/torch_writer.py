"""Writes files in the two containers of `torch.save`, to any description of the tensors.

Python's own pickler does the writing; stand-ins under torch's names are in `sys.modules` meanwhile.
"""

import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"f4": "FloatStorage", "i8": "LongStorage", "f8": "DoubleStorage", "f2": "HalfStorage"}


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class Storage:
    """Pickles as a persistent id."""

    def __init__(self, key: str, values: np.ndarray):
        self.key, self.values = key, values


@contextlib.contextmanager
def torch_modules() -> Iterator[types.ModuleType]:
    """Put modules `torch` and `torch._utils` with the names that state dicts use in place."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in TYPES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch._utils = utils
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update({"torch": torch, "torch._utils": utils})
    try:
        yield torch
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def dump(described: Any, *, legacy: bool = False, sizes: Mapping[str, int] | None = None) -> bytes:
    """Pickle a description; `sizes` gives storages other sizes than they have."""
    buffer = io.BytesIO()
    with torch_modules() as torch:

        class Pickler(pickle._Pickler):  # the C one copies what it needs of sys.modules
            def persistent_id(self, value: Any) -> Any:
                if not isinstance(value, Storage):
                    return None
                kind = getattr(torch, TYPES[value.values.dtype.str[1:]])
                size = (sizes or {}).get(value.key, value.values.size)
                return ("storage", kind, value.key, "cpu", size, *((None,) if legacy else ()))

        def resolved(value: Any) -> Any:
            if isinstance(value, Tensor):
                rebuild = torch._utils._rebuild_tensor_v2
                return Call(rebuild, value.storage, *value.view, False, {})
            if isinstance(value, dict):
                return type(value)((key, resolved(item)) for key, item in value.items())
            return value

        Pickler(buffer, 2).dump(resolved(described))
    return buffer.getvalue()


class Tensor:
    """A tensor with a storage of its own, or any other view of a storage."""

    def __init__(self, storage: Storage, offset: Any, shape: Any, strides: Any):
        self.storage, self.view = storage, (offset, shape, strides)

    @classmethod
    def of(cls, key: str, values: np.ndarray) -> "Tensor":
        strides = tuple(step // values.itemsize for step in values.strides)
        return cls(Storage(key, values.reshape(-1)), 0, values.shape, strides)


def described(tensors: Mapping[str, np.ndarray]) -> tuple[Any, list[Storage]]:
    """Return what a state dict's pickle describes, and its storages."""
    views = {name: Tensor.of(str(i), values) for i, (name, values) in enumerate(tensors.items())}
    return type(tensors)(views), [view.storage for view in views.values()]


def write_zip(
    path: Path, data: bytes, storages: list[Storage], *, compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.values.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path: Path, data: bytes, storages: list[Storage]) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    with path.open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(value, file, 2)
        file.write(data)
        pickle.dump([storage.key for storage in storages], file, 2)
        for storage in storages:
            file.write(struct.pack("<q", storage.values.size) + storage.values.tobytes())
    return path


def write_state_dict(
    path: Path, tensors: Mapping[str, np.ndarray], *, legacy: bool = False
) -> Path:
    """Write a state dict in one of the two containers."""
    views, storages = described(tensors)
    write = write_legacy if legacy else write_zip
    return write(path, dump(views, legacy=legacy), storages)
