"""Reads the state dicts that `torch.save` writes, without torch and without running code.

Both containers are known: the zip archive (since torch 1.6) and the older stream. Either holds a
pickle that describes the tensors and, beside it, their bytes. A pickle is a program for a small
stack machine. `_Machine` is such a machine without the dangerous parts: it builds strings, numbers,
tuples, lists and dicts, and it knows the few names in `GLOBALS`, which stand for what a state dict
is made of and are nothing that could be called. Any other opcode or name is refused. Standard
`pickle` is not used.

Format: `torch/serialization.py` and `torch/_utils.py` of https://github.com/pytorch/pytorch;
    opcodes: `pickletools`.
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxplain.models.weights.tensors import FileTensor

STORAGES: Mapping[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# A description of tensors is far smaller than this; the bytes of the tensors are not part of it.
LONGEST_PICKLE = 16 << 20
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001

# Opcodes that push their argument.
CONSTANTS = frozenset(
    [
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
    ]
)


class UnsafeError(ValueError):
    """A file asks for something that a state dict does not contain."""


class _Global(NamedTuple):
    """A name that a pickle may mention: what to make of it, and a dtype for storages."""

    role: str
    dtype: np.dtype | None = None


class _Storage(NamedTuple):
    """A named run of `size` elements; where it lies in the file is not known to the pickle."""

    key: str
    dtype: np.dtype
    size: int


class _View(NamedTuple):
    """A tensor: a strided view into a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


GLOBALS: Mapping[tuple[str, str], _Global] = {
    ("collections", "OrderedDict"): _Global("dict"),
    ("torch._utils", "_rebuild_tensor"): _Global("tensor"),
    ("torch._utils", "_rebuild_tensor_v2"): _Global("tensor"),
    ("torch._utils", "_rebuild_parameter"): _Global("parameter"),
    **{("torch", name): _Global("storage", dtype) for name, dtype in STORAGES.items()},
}


class _Machine:
    """Runs one pickle.

    Args:
        load_storage: makes a storage of a persistent id.
    """

    def __init__(self, load_storage: Callable[[Any], _Storage]):
        self._load_storage = load_storage
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> tuple[Any, int]:
        """Return what the pickle at the start of `data` describes, and its length."""
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                return self._stack.pop(), (position or 0) + 1
            self._step(opcode.name, argument)
        raise AssertionError("genops returns after STOP or raises")

    def _step(self, opcode: str, argument: Any) -> None:
        push, pop = self._stack.append, self._stack.pop
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case _ if opcode in CONSTANTS:
                push(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "MARK":
                self._marked.append(self._stack)
                self._stack = []
            case "TUPLE":
                items = tuple(self._to_mark())
                self._stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                items = tuple(self._stack[-count:])
                if len(items) < count:
                    raise IndexError("too few values for a tuple")
                self._stack[-count:] = [items]
            case "APPEND":
                self._extend([pop()])
            case "APPENDS":
                self._extend(self._to_mark())
            case "SETITEM":
                value, key = pop(), pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                push(_global(module, name))
            case "REDUCE":
                arguments, function = pop(), pop()
                push(_call(function, arguments))
            case "BUILD":
                pop()  # attributes of the object, such as `_metadata` of a state dict: not needed
            case "BINPERSID":
                push(self._load_storage(pop()))
            case _:
                raise UnsafeError(f"it uses the opcode {opcode}, which a state dict does not need")

    def _to_mark(self) -> list[Any]:
        """Return the values above the last mark, and take both away."""
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("values are appended to something else than a list")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("keys are set in something else than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise TypeError("a key is neither text nor a number")
            target[key] = value


def _global(module: Any, name: Any) -> _Global:
    if type(module) is not str or type(name) is not str or (module, name) not in GLOBALS:
        asked = f"{module[:60]}.{name[:60]}" if type(module) is type(name) is str else "no name"
        raise UnsafeError(
            f"it asks for {asked}, which a state dict does not contain (was a whole model saved "
            f"instead of model.state_dict()?)"
        )
    return GLOBALS[module, name]


def _call(function: Any, arguments: Any) -> Any:
    """Do what the pickle means by calling one of `GLOBALS`."""
    if not isinstance(function, _Global) or type(arguments) is not tuple:
        raise UnsafeError("it calls something that is no function")
    match function.role, arguments:
        case "dict", ():
            return {}
        case "parameter", (_View() as view, *_):
            return view
        case "tensor", (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_):
            return _view(storage, offset, shape, strides)
    raise UnsafeError(f"it makes a {function.role} of something else than torch does")


def _view(
    storage: _Storage, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
) -> _View:
    """Return a tensor that is known to lie inside its storage."""
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor is described by something else than numbers from 0")
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError(f"a tensor has {len(shape)} axes and {len(strides)} strides")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # More elements than the storage has would be one element shown many times: a small file, a huge
    # array.
    if size == 0 or last >= storage.size or size > storage.size:
        raise ValueError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} does not lie in its "
            f"storage of {storage.size} elements"
        )
    return _View(storage, offset, shape, strides)


def read_torch(path: str | Path) -> dict[str, FileTensor]:
    """Return the tensors of a file that `torch.save` wrote, by name.

    The file holds a state dict, or a checkpoint: a dict with one under "state_dict" or "model". The
    prefix "module." of `DataParallel` is dropped. Only descriptions are read here; each tensor is
    read when it is used.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is neither of the two containers, is damaged, asks for anything but tensors,
            or describes tensors that are not in it.

    Example:
        >>> read_torch("missing.pth")
        Traceback (most recent call last):
        ...
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.pth'
    """
    path = Path(path)
    with path.open("rb") as file:
        magic = file.read(4)
    try:
        return _read_zip(path) if magic == b"PK\x03\x04" else _read_legacy(path)
    # What a damaged archive or a damaged pickle leads to; the values of either are only ever plain
    # data.
    except (
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        OSError,
        OverflowError,
        RuntimeError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, LookupError):
            reason = f"it refers to something that it does not hold ({reason})"
        raise ValueError(f"{path} is not a readable torch file: {reason[:500]}") from error


def _storage(pid: Any, known: dict[str, _Storage], fields: int) -> _Storage:
    """Read ("storage", type, key, location, size[, view]) and remember the storage."""
    if not isinstance(pid, tuple) or len(pid) != fields or pid[0] != "storage":
        raise ValueError("a storage is not described as torch does")
    kind, key, size = pid[1], pid[2], pid[4]
    if (
        not isinstance(kind, _Global)
        or kind.dtype is None
        or type(key) is not str
        or type(size) is not int
    ):
        raise ValueError("a storage is not described as torch does")
    if size < 0 or (fields == 6 and pid[5] is not None):
        raise ValueError("a storage has a size or a view that torch does not write")
    storage = known.setdefault(key, _Storage(key, kind.dtype, size))
    if (storage.dtype, storage.size) != (kind.dtype, size):
        raise ValueError(f"storage {key!r} is described twice, differently")
    return storage


def _read_zip(path: Path) -> dict[str, FileTensor]:
    """Read the archive: `<root>/data.pkl` and `<root>/data/<key>`, all stored uncompressed."""
    storages: dict[str, _Storage] = {}
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise zipfile.BadZipFile("two entries have the same name")
        pickles = [name for name in entries if name.endswith("data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise zipfile.BadZipFile(f"it has {len(pickles)} entries <name>/data.pkl, not one")
        root = pickles[0].removesuffix("data.pkl")
        for name in entries:
            _check_entry(archive, entries[name])
        byteorder = root + "byteorder"
        if byteorder in entries and archive.read(byteorder) != b"little":
            raise zipfile.BadZipFile("its numbers are not little-endian")
        if entries[pickles[0]].file_size > LONGEST_PICKLE:
            raise zipfile.BadZipFile("its description of the tensors is too long")
        machine = _Machine(lambda pid: _storage(pid, storages, fields=5))
        described, _ = machine.run(archive.read(pickles[0]))
        places = {}
        with path.open("rb") as file:
            for key, storage in storages.items():
                entry = entries.get(f"{root}data/{key}")
                if entry is None:
                    raise zipfile.BadZipFile(f"the bytes of storage {key!r} are missing")
                if entry.file_size != storage.size * storage.dtype.itemsize:
                    raise zipfile.BadZipFile(
                        f"storage {key!r} has {entry.file_size} bytes, not {storage.size} elements "
                        f"of {storage.dtype}"
                    )
                # The local header repeats the name and has extra bytes of its own.
                file.seek(entry.header_offset)
                name_length, extra_length = struct.unpack("<26x2H", file.read(30))
                places[key] = entry.header_offset + 30 + name_length + extra_length
    return _state_dict(path, described, places)


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry once, which checks its checksum.

    A compressed one is refused: torch writes none, and a bomb would be one.
    """
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise zipfile.BadZipFile(f"entry {entry.filename!r} is compressed")
    with archive.open(entry) as stream:
        while stream.read(1 << 20):
            pass


def _read_legacy(path: Path) -> dict[str, FileTensor]:
    """Read the stream.

    It holds pickles of a magic number, a version, the system, the state dict and the keys of its
    storages, then for each key the number of elements and their bytes.
    """
    storages: dict[str, _Storage] = {}
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(LONGEST_PICKLE)
    position = 0

    def load(fields: int | None = None) -> Any:
        nonlocal position

        def load_storage(pid: Any) -> _Storage:
            if fields is None:
                raise ValueError("a storage is described where none belongs")
            return _storage(pid, storages, fields)

        value, used = _Machine(load_storage).run(head[position:])
        position += used
        return value

    if load() != LEGACY_MAGIC or load() != LEGACY_VERSION:
        raise ValueError("it begins with neither a zip archive nor torch's magic number")
    system = load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    described, keys = load(fields=6), load()
    named = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not named or sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is not that of its tensors")
    places = {}
    with path.open("rb") as file:
        for key in keys:
            storage = storages[key]
            file.seek(position)
            (size,) = struct.unpack("<q", file.read(8))
            end = position + 8 + size * storage.dtype.itemsize
            if size != storage.size or end > length:
                raise ValueError(
                    f"storage {key!r} is truncated or has another size than its tensors"
                )
            places[key], position = position + 8, end
    if position != length:
        raise ValueError(f"{length - position} bytes follow its last storage")
    return _state_dict(path, described, places)


def _state_dict(path: Path, described: Any, places: Mapping[str, int]) -> dict[str, FileTensor]:
    """Find the state dict in what the pickle described and say where its tensors lie."""
    for key in ("state_dict", "model"):
        if isinstance(described, dict) and isinstance(described.get(key), dict):
            described = described[key]
            break
    if not isinstance(described, dict):
        raise ValueError("it holds no dict of tensors")
    tensors = {}
    for name, view in described.items():
        if not isinstance(view, _View):
            raise ValueError(f"its entry {str(name)[:80]!r} is not a tensor")
        storage = view.storage
        tensors[str(name).removeprefix("module.")] = FileTensor(
            path,
            places[storage.key] + view.offset * storage.dtype.itemsize,
            storage.dtype,
            view.shape,
            None if _row_major(view) else view.strides,
        )
    if len(tensors) != len(described):
        raise ValueError("two of its tensors have the same name")
    return tensors


def _row_major(view: _View) -> bool:
    """Say whether the elements lie in order, without gaps.

    Strides of axes of length 1 mean nothing.
    """
    expected = 1
    for length, step in zip(view.shape[::-1], view.strides[::-1], strict=True):
        if length > 1 and step != expected:
            return False
        expected *= length
    return True
