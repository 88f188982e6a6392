r"""What CHIP needs to know of the images: a few moments per class, whatever their number.

For image s with loyalties :math:`f^c`, gate vector n with weight :math:`h_n`, gated averages
:math:`z = d \odot \bar a` and predictions :math:`g^c`, the loss (11) of class c is known by

.. math:: G_c = \sum_{s,n} f^c_s h_n z z^T, \quad b_c = \sum_{s,n} f^c_s h_n g^c z,
    \quad E_c = \sum_{s,n} f^c_s h_n (g^c)^2, \quad \sum_{s,n} f^c_s h_n .

Of the perturbed data nothing is kept. The loyalty does not depend on the gates, so
:math:`G_c = \sum_s f^c_s M_s` with :math:`M_s = (\sum_n h_n d_n d_n^T) \odot \bar a_s \bar a_s^T`:
one moment matrix an image and one matrix product for all classes, instead of a sum over all gates
in each class. M is symmetric, and only its lower triangle is kept ("packed").
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxplain.solvers import gram
from jaxplain.solvers.gram import Accumulator, Statistics

BEST = lax.Precision.HIGHEST

# Bytes of one product in `absorb`: large enough for a good product, small beside the sums.
_BLOCK = 1 << 25


class Observed(NamedTuple):
    """What one batch adds to the statistics of a layer.

    Attributes:
        moments: packed M of each image, without the loyalties.
        corr: b.
        energy: E.
        weight: the sum of the weights.
    """

    moments: Float[Array, "images packed"]
    corr: Float[Array, "classes k"]
    energy: Float[Array, " classes"]
    weight: Float[Array, " classes"]


def triangle(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the lower triangle, in the order in which it is packed.

    Example:
        >>> rows, columns = triangle(2)
        >>> rows.tolist(), columns.tolist()
        ([0, 1, 1], [0, 0, 1])
    """
    return np.tril_indices(size)


def pack(matrices: Float[Array, "*n k k"]) -> Float[Array, "*n packed"]:
    """Return the lower triangles of symmetric matrices.

    Example:
        >>> pack(jnp.array([[1.0, 2.0], [2.0, 3.0]])).tolist()
        [1.0, 2.0, 3.0]
    """
    return matrices[(..., *triangle(matrices.shape[-1]))]


def unpack(packed: np.ndarray, size: int) -> np.ndarray:
    """Return the symmetric matrices (..., size, size) of their lower triangles, on the host.

    Example:
        >>> unpack(np.array([1.0, 2.0, 3.0]), 2).tolist()
        [[1.0, 2.0], [2.0, 3.0]]
    """
    places = np.zeros((size, size), np.int64)
    rows, columns = triangle(size)
    places[rows, columns] = places[columns, rows] = np.arange(len(rows))
    return packed[..., places]


def draw_gates(
    key: jax.Array, index: Int[Array, " b"], channels: int, *, num_gates: int, keep: float
) -> Bool[Array, "b n k"]:
    """Return the gate vectors of images: true is open.

    They depend on the key and an image's number alone, so that the same image gets the same gates
    in any batch, on any device.

    Args:
        key: of the layer.
        index: number of each image; the same numbers give shared gates.
        channels: K.
        num_gates: N.
        keep: probability of an open gate.

    Example:
        >>> gates = draw_gates(jax.random.key(0), jnp.array([5, 6]), 8, num_gates=3, keep=0.5)
        >>> again = draw_gates(jax.random.key(0), jnp.array([6]), 8, num_gates=3, keep=0.5)
        >>> gates.shape, bool((gates[1] == again[0]).all())
        ((2, 3, 8), True)
    """

    def of_image(number: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, number)
        return jax.random.bernoulli(own, keep, (num_gates, channels))

    return jax.vmap(of_image)(index)


def proximity(
    gates: Bool[Array, "*n k"], sigma: float, dtype: Any = jnp.float32
) -> Float[Array, "*n"]:
    """Return h(d) of eq. (7) with the paper's σ² = sigma² K: exp(-share of closed gates / sigma²).

    In these units a `sigma` means the same in layers of any width.

    Example:
        >>> round(float(proximity(jnp.array([True, False]), 0.5**0.5)), 4)  # 1/e
        0.3679
    """
    closed = 1 - gates.mean(axis=-1, dtype=dtype)
    return jnp.exp(-closed / sigma**2)


def observe(
    averages: Float[Array, "b k"],
    gates: Bool[Array, "b n k"],
    weights: Float[Array, "b n"],
    loyalty: Float[Array, "b classes"],
    predictions: Float[Array, "b n classes"],
) -> Observed:
    """Return what images add to the statistics.

    Args:
        averages: global average of each channel, ungated.
        gates: d.
        weights: h.
        loyalty: f; zero for what only fills up a batch.
        predictions: g.

    Example:
        >>> ones = jnp.ones((1, 1, 2))
        >>> found = observe(ones[0], ones > 0, jnp.ones((1, 1)), ones[0], ones)
        >>> found.moments.tolist(), found.weight.tolist()
        ([[1.0, 1.0, 1.0]], [1.0, 1.0])
    """
    dtype = averages.dtype
    gated = gates.astype(dtype) * averages[:, None]  # z, eq. (2)
    weights = weights.astype(dtype)
    moments = jnp.einsum("bnk,bnl->bkl", gated * weights[..., None], gated, precision=BEST)
    pulled = loyalty[:, None] * weights[..., None] * predictions
    flat = (-1, predictions.shape[-1])
    return Observed(
        pack(moments),
        jnp.matmul(pulled.reshape(flat).T, gated.reshape(-1, gated.shape[-1]), precision=BEST),
        (pulled * predictions).sum((0, 1)),
        jnp.matmul(weights.sum(1), loyalty, precision=BEST),
    )


def zeros(classes: int, channels: int, dtype: Any) -> Accumulator:
    """Return sums of nothing; the Gram matrices are packed.

    Example:
        >>> zeros(3, 4, jnp.float32).sums.gram.shape
        (3, 10)
    """
    empty = Statistics(
        jnp.zeros((classes, channels * (channels + 1) // 2), dtype),
        jnp.zeros((classes, channels), dtype),
        jnp.zeros((classes,), dtype),
        jnp.zeros((classes,), dtype),
    )
    return Accumulator(empty, jax.tree.map(jnp.zeros_like, empty))


def absorb(
    accumulator: Accumulator,
    loyalty: Float[Array, "images classes"],
    moments: Float[Array, "images packed"],
    others: Sequence[Observed],
) -> Accumulator:
    """Return the sums with a chunk of images added, compensated as in `solvers.gram`.

    Args:
        accumulator: packed sums of these classes.
        loyalty: f of all images of the chunk.
        moments: packed M of all of them.
        others: the batches of the chunk, for all that is summed in them already.
    """
    corr, energy, weight = (
        functools.reduce(jnp.add, (getattr(part, name) for part in others))
        for name in ("corr", "energy", "weight")
    )
    classes, packed = accumulator.sums.gram.shape
    block = min(classes, max(1, _BLOCK // (packed * moments.dtype.itemsize)))

    def add(start: Any, size: int, sums: Accumulator) -> Accumulator:
        rows = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        chosen = rows(loyalty, axis=1)
        product = jnp.matmul(chosen.T, moments, precision=BEST)
        new = Statistics(product, rows(corr), rows(energy), rows(weight))
        exact = Accumulator(new, jax.tree.map(jnp.zeros_like, new))
        added = gram.merge(jax.tree.map(rows, sums), exact)
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, sums, added)

    # Block by block, where the sums lie: all new Gram matrices at once would be half as large
    # again.
    whole = classes // block
    accumulator = lax.fori_loop(0, whole, lambda i, sums: add(i * block, block, sums), accumulator)
    return add(whole * block, classes % block, accumulator) if classes % block else accumulator
