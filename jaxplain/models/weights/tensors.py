"""Tensors that still lie in a file: read in pieces, so that loading needs little more memory."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

# Bytes that are read at once.
PIECE = 16 << 20


@runtime_checkable
class Tensor(Protocol):
    """What a reader of files gives for a name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""
        ...

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, their values): slices of the first axis; one piece for a scalar."""
        ...


Tensors = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor at a place in a file.

    Attributes:
        path: the file.
        offset: its first byte.
        dtype: of the elements.
        shape: its shape.
        strides: steps between elements, in elements; None for row-major order.
    """

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the rows, `PIECE` bytes at a time.

        A tensor that is not in row-major order comes as a whole.

        Raises:
            ValueError: the file ends before the tensor does.
        """
        size = math.prod(self.shape)
        if size == 0 or not self.shape or self.strides is not None:
            yield slice(0, self.shape[0] if self.shape else None), self._strided()
            return
        row = size // self.shape[0]
        step = max(1, PIECE // (row * self.dtype.itemsize))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            values = self._elements(start * row, (stop - start) * row)
            yield slice(start, stop), values.reshape(stop - start, *self.shape[1:])

    def _strided(self) -> np.ndarray:
        size = math.prod(self.shape)
        if self.strides is None or size == 0:
            return self._elements(0, size).reshape(self.shape)
        span = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)) + 1
        steps = [step * self.dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(
            self._elements(0, span), self.shape, steps, writeable=False
        )

    def _elements(self, start: int, count: int) -> np.ndarray:
        with self.path.open("rb") as file:
            file.seek(self.offset + start * self.dtype.itemsize)
            values = np.fromfile(file, self.dtype, count)
        if len(values) != count:
            raise ValueError(f"{self.path} is truncated")
        return values


@dataclasses.dataclass(frozen=True)
class MemoryTensor:
    """An array that is already in memory, of any library that NumPy can read."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""
        return self.values.dtype

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the whole."""
        yield slice(0, self.shape[0] if self.shape else None), self.values


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array that starts at a multiple of 64 bytes.

    XLA on a CPU takes such an array over without a copy.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
