"""Weights made of nothing but names and shapes, the same wherever references are computed.

Every parameter of a torch state dict is drawn from NumPy's PCG64 generator, whose seed is the
CRC-32 of the parameter's name: He-normal kernels, scales in 0.3..0.7, running variances in
0.5..1.5.
"""

import zlib
from collections.abc import Iterator

import numpy as np


def fixture(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the parameter called `name`, in torch's layout."""
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if len(shape) > 1:
        deviation = np.sqrt(2 / np.prod(shape[1:], dtype=int))
        values = draw.standard_normal(shape, np.float32)
        # The product is rounded once, as if it had been made in float64.
        np.multiply(values, deviation, out=values, casting="same_kind")
    elif leaf == "running_var":
        values = draw.uniform(0.5, 1.5, shape)
    elif leaf == "weight":
        values = draw.uniform(0.3, 0.7, shape)
    else:
        values = (0.1 if leaf == "running_mean" else 0.05) * draw.standard_normal(shape)
    return values.astype(np.float32, copy=False)


class FixtureTensor:
    """A tensor of a state dict that is drawn when it is read: 138 million numbers stay unmade."""

    def __init__(self, name: str, shape: tuple[int, ...]):
        self.name, self.shape, self.dtype = name, shape, np.dtype(np.float32)

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        yield slice(0, self.shape[0]), fixture(self.name, self.shape)
