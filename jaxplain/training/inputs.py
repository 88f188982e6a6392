"""What a network reads of many pictures, computed once: in memory, or in files if there is a lot.

A frozen network says the same of a picture in every epoch. So what comes out of its frozen part is
kept, and each step of the training costs only what follows: seconds where it were hours.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from jaxplain.data.labelled import PictureSource
from jaxplain.outputs import replacing

CHUNK = 16
"""Pictures that go through a network at once."""

MEMORY = 2 << 30
"""Bytes of inputs that are kept in memory; the rest lies in files."""


class Store:
    """Where inputs are kept.

    Args:
        folder: where files shall stay for the next time; None to keep them in memory, and what is
            too large for that in a temporary folder.
        memory: bytes to keep in memory.

    Example:
        >>> with Store(None) as store:
        ...     store.keep("a", 0, (3, 2), np.dtype(np.uint8), [np.ones((2, 2)), np.zeros((1, 2))])
        array([[1, 1],
               [1, 1],
               [0, 0]], dtype=uint8)
    """

    def __init__(self, folder: Path | None, memory: int = MEMORY):
        self._folder, self._memory = folder, memory
        self._kept = contextlib.ExitStack()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.close()

    def keep(
        self,
        name: str,
        key: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        chunks: Iterable[np.ndarray],
    ) -> np.ndarray:
        """Return an array made of `chunks`, which are only asked for if it is not there yet.

        Args:
            name: of the array.
            key: checksum of all that it depends on.
            shape: its shape.
            dtype: its dtype.
            chunks: rows of it, one part after the other.

        Raises:
            OSError: it does not fit on the disk.
        """
        size = math.prod(shape) * dtype.itemsize
        if self._folder is None and size <= self._memory:
            self._memory -= size
            whole, done = np.empty(shape, dtype), 0
            for chunk in chunks:
                whole[done : done + len(chunk)] = chunk
                done += len(chunk)
            return whole
        folder = self._folder or Path(
            self._kept.enter_context(TemporaryDirectory(prefix="jaxplain-"))
        )
        path = folder / f"{name}-{key:08x}.npy"
        if not path.exists():
            _write(path, shape, dtype, chunks)
            for old in folder.glob(f"{name}-*.npy"):
                if old != path:
                    old.unlink()
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _write(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, chunks: Iterable[np.ndarray]
) -> None:
    """Write an array part by part; a full disk is an error, as it would not be in a memory map."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with replacing(path) as part, part.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, dtype).data)


@dataclasses.dataclass(frozen=True)
class _Read:
    """Pictures as examples of a data loader."""

    images: PictureSource
    read: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.read(self.images[index])}


def chunks_of(
    images: PictureSource, read: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield `read` of the pictures, `CHUNK` at a time; the next ones are read meanwhile."""
    from jaxplain.data.loaders import batches

    for batch in batches(_Read(images, read), CHUNK):
        yield batch["image"]


def in_chunks(
    run: Callable[[Any], jax.Array], chunks: Iterable[np.ndarray], chunk: int = CHUNK
) -> Iterator[np.ndarray]:
    """Yield what `run` makes of each of the chunks; a last, smaller one is filled up for it.

    So one program serves all.

    Example:
        >>> doubled = in_chunks(lambda x: x * 2, [np.ones((2, 1)), np.ones((1, 1))], 2)
        >>> [part.tolist() for part in doubled]
        [[[2.0], [2.0]], [[2.0]]]
    """
    for part in chunks:
        padded = np.pad(part, [(0, chunk - len(part)), *[(0, 0)] * (part.ndim - 1)])
        yield np.asarray(run(padded))[: len(part)]


def pieces(array: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
    """Yield the rows of an array, `chunk` at a time."""
    for start in range(0, len(array), chunk):
        yield array[start : start + chunk]
