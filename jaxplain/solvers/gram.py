r"""Streaming statistics of weighted least squares: all that the solvers need to know of the data.

For rows :math:`z_n`, targets :math:`y_n` and weights :math:`w_n` the statistics are

.. math:: Q = \sum_n w_n z_n z_n^T, \quad q = \sum_n w_n y_n z_n, \quad E = \sum_n w_n y_n^2,
    \quad \sum_n w_n

so :math:`\tfrac12 \sum_n w_n (w \cdot z_n - y_n)^2 = \tfrac12 w^T Q w - q \cdot w + \tfrac12 E` for
any w, and data of any size passes through in constant memory. Rows are added in blocks; every sum
carries the rounding error that it lost (Neumaier's variant of Kahan's summation), so that float32
sums over ten million rows are as good as float64 ones rounded once.

>>> rows = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
>>> targets = jnp.array([[1.0], [2.0], [3.0]])
>>> whole = statistics(rows, targets)
>>> first, last = add(zeros(2, 1), rows[:1], targets[:1]), add(zeros(2, 1), rows[1:], targets[1:])
>>> streamed = read(merge(first, last))
>>> whole.gram.tolist(), streamed.gram.tolist()
([[2.0, 1.0], [1.0, 5.0]], [[2.0, 1.0], [1.0, 5.0]])
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num


class Statistics(NamedTuple):
    """Weighted second moments of features and t targets.

    Attributes:
        gram: Q, (d, d) when all targets share their weights, else (t, d, d).
        corr: q, one row a target.
        energy: E, one a target.
        weight: the sum of the weights, a scalar when shared, else one a target.
    """

    gram: Float[Array, "*t d d"]
    corr: Float[Array, "targets d"]
    energy: Float[Array, " targets"]
    weight: Float[Array, "*t"]

    def normalised(self) -> Statistics:
        """The statistics of the weighted mean instead of the sum; zero total weight stays zero.

        >>> statistics(jnp.ones((4, 1)), jnp.ones((4, 1))).normalised().gram.tolist()
        [[1.0]]
        """
        scale = jnp.where(self.weight > 0, 1 / jnp.where(self.weight > 0, self.weight, 1), 0)
        of_target = jnp.broadcast_to(scale, self.energy.shape)
        return Statistics(
            self.gram * scale[..., None, None],
            self.corr * of_target[:, None],
            self.energy * of_target,
            self.weight * scale,
        )


class Accumulator(NamedTuple):
    """Running sums and the part of each that rounding would have lost."""

    sums: Statistics
    lost: Statistics


def zeros(
    features: int, targets: int, *, shared_weights: bool = True, dtype: Any = jnp.float32
) -> Accumulator:
    """An accumulator of no rows.

    Args:
        features: d.
        targets: t.
        shared_weights: whether a row weighs the same for all targets; if not, there is a Gram
            matrix for each target.
        dtype: floating type of the sums.

    Raises:
        ValueError: if `features` or `targets` is not positive, or `dtype` is not floating.
    """
    if features < 1 or targets < 1:
        raise ValueError(
            f"features and targets must be positive, got features={features}, targets={targets}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating, got {jnp.dtype(dtype).name}")
    group = () if shared_weights else (targets,)
    empty = Statistics(
        jnp.zeros((*group, features, features), dtype),
        jnp.zeros((targets, features), dtype),
        jnp.zeros((targets,), dtype),
        jnp.zeros(group, dtype),
    )
    return Accumulator(empty, jax.tree.map(jnp.zeros_like, empty))


def add(
    accumulator: Accumulator,
    features: Num[Array, "n d"],
    targets: Num[Array, "n targets"],
    weights: Num[Array, "n *t"] | None = None,
    *,
    block: int = 1024,
) -> Accumulator:
    """Adds rows. Each block is one matrix product; the sums over blocks are compensated.

    Args:
        accumulator: what was summed so far.
        features: rows z.
        targets: rows y, one column a target.
        weights: ≥ 0; (n,) if the accumulator shares weights, (n, t) if not. None means 1.
        block: rows a product. Smaller blocks are more exact, larger ones faster.

    Raises:
        ValueError: if shapes do not fit each other or the accumulator, or `block` is not positive.

    >>> read(add(zeros(1, 1), jnp.full((3, 1), 2.0), jnp.ones((3, 1)), block=2)).corr.tolist()
    [[6.0]]
    """
    sums = accumulator.sums
    rows, dims = features.shape
    count = targets.shape[-1]
    shared = sums.gram.ndim == 2
    expected = (rows,) if shared else (rows, count)
    if (count, dims) != sums.corr.shape or targets.shape[0] != rows:
        raise ValueError(
            f"features {features.shape} and targets {targets.shape} do not fit an accumulator of "
            f"{sums.corr.shape[1]} features and {sums.corr.shape[0]} targets"
        )
    if weights is not None and weights.shape != expected:
        kind = "shares its weights" if shared else "has weights for each target"
        raise ValueError(
            f"weights must be {expected} as the accumulator {kind}, got {weights.shape}"
        )
    if block < 1:
        raise ValueError(f"block must be positive, got {block}")

    dtype = sums.gram.dtype
    if weights is None:
        weights = jnp.ones(expected, dtype)
    data = features.astype(dtype), targets.astype(dtype), weights.astype(dtype)
    whole = rows // block
    blocks = jax.tree.map(lambda x: x[: whole * block].reshape(whole, block, *x.shape[1:]), data)

    def more(carry: Accumulator, part: tuple[Array, Array, Array]) -> tuple[Accumulator, None]:
        return _compensated(carry, _moments(*part)), None

    accumulator, _ = lax.scan(more, accumulator, blocks)
    if rows % block:
        accumulator, _ = more(accumulator, jax.tree.map(lambda x: x[whole * block :], data))
    return accumulator


def merge(one: Accumulator, other: Accumulator) -> Accumulator:
    """The accumulator of both sets of rows.

    Raises:
        ValueError: if their features or targets differ.
    """
    shapes = tuple(tuple(x.shape for x in a.sums) for a in (one, other))
    if shapes[0] != shapes[1]:
        raise ValueError(f"accumulators differ in shape: {shapes[0]} and {shapes[1]}")
    total = _compensated(one, other.sums)
    return total._replace(lost=jax.tree.map(jnp.add, total.lost, other.lost))


def psum(accumulator: Accumulator, axis_name: str) -> Accumulator:
    """The accumulator of the rows of all devices along a mesh axis, inside `jax.shard_map`."""
    return jax.tree.map(lambda x: lax.psum(x, axis_name), accumulator)


def read(accumulator: Accumulator) -> Statistics:
    """The sums, with what rounding had lost added back."""
    return jax.tree.map(jnp.add, accumulator.sums, accumulator.lost)


def statistics(
    features: Num[Array, "n d"],
    targets: Num[Array, "n targets"],
    weights: Num[Array, "n *t"] | None = None,
    *,
    block: int = 1024,
) -> Statistics:
    """The statistics of rows that are all at hand; see `add` for the arguments.

    >>> statistics(jnp.ones((5, 1)), jnp.ones((5, 2)), jnp.full((5, 2), 0.5)).gram.shape
    (2, 1, 1)
    """
    shared = weights is None or weights.ndim == 1
    given = (features, targets) if weights is None else (features, targets, weights)
    dtype = jnp.result_type(*given, float)
    empty = zeros(features.shape[1], targets.shape[1], shared_weights=shared, dtype=dtype)
    return read(add(empty, features, targets, weights, block=block))


def _moments(z: Array, y: Array, w: Array) -> Statistics:
    """The statistics of one block."""
    best = lax.Precision.HIGHEST
    if w.ndim == 1:
        weighted = z * w[:, None]
        return Statistics(
            jnp.matmul(weighted.T, z, precision=best),
            jnp.matmul(y.T, weighted, precision=best),
            (w[:, None] * y * y).sum(axis=0),
            w.sum(),
        )
    # One target after the other: all at once would need n · t · d numbers.
    grams = lax.map(lambda column: jnp.matmul((z * column[:, None]).T, z, precision=best), w.T)
    return Statistics(
        grams,
        jnp.matmul((w * y).T, z, precision=best),
        (w * y * y).sum(axis=0),
        w.sum(axis=0),
    )


def _compensated(accumulator: Accumulator, new: Statistics) -> Accumulator:
    """Adds new sums, keeping the exact rounding error of every addition (Neumaier, ZAMM 1974)."""

    def error(total: Array, sums: Array, part: Array) -> Array:
        large = jnp.where(jnp.abs(sums) >= jnp.abs(part), sums, part)
        small = jnp.where(jnp.abs(sums) >= jnp.abs(part), part, sums)
        return (large - total) + small

    totals = jax.tree.map(jnp.add, accumulator.sums, new)
    errors = jax.tree.map(error, totals, accumulator.sums, new)
    return Accumulator(totals, jax.tree.map(jnp.add, accumulator.lost, errors))
