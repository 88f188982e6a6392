"""The compiled part of gathering: descriptors and labels of a batch, and adding them to the sums.

Images lie along the mesh axis "data", and so do the rows of the Gram matrix: each device keeps its
share of them. A batch is observed without any exchange; when a chunk is full, the descriptors of
its images, m numbers each, are gathered on every device.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxplain.methods.interpretation.descriptors import Block, describe
from jaxplain.methods.streaming import Batch, as_input
from jaxplain.model import Model
from jaxplain.sharding import AXIS
from jaxplain.solvers import gram
from jaxplain.solvers.gram import Accumulator, Statistics
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.layers import trace_model

BEST = lax.Precision.HIGHEST
SPECS = Statistics._make([P(AXIS), P(None, AXIS), P(), P()])
"""How sums lie on a mesh: the features of the rows are shared out."""


class Seen(NamedTuple):
    """What one batch gave.

    Attributes:
        rows: descriptors, zero for what fills up.
        targets: for each image its labels, the network's own answer, and 1; zero for what fills up.
        broken: images whose logits are not finite.
    """

    rows: Float[Array, "b m"]
    targets: Float[Array, "b t"]
    broken: Int[Array, ""]


@jax.jit(static_argnames=("parts", "squared", "mesh"))
def observe(
    parts: tuple[Block, ...], squared: bool, mesh: Mesh, model: Model, batch: Batch
) -> Seen:
    """Run a batch and describe it.

    Args:
        parts: of the descriptors.
        squared: as in `descriptors`.
        mesh: with the axis "data".
        model: the model.
        batch: sharded along the images.
    """
    run = jax.shard_map(
        functools.partial(_observe, parts, squared),
        mesh=mesh,
        in_specs=(P(), P(AXIS)),
        out_specs=Seen._make([P(AXIS), P(AXIS), P()]),
    )
    return run(model, batch)


def _observe(parts: tuple[Block, ...], squared: bool, model: Model, batch: Batch) -> Seen:
    images = as_input(model, batch.images)
    traced = trace_model(model, images)
    wanted = [traced.program.outputs[0], *(traced.variable(part.layer) for part in parts)]
    logits, *activations = jx.evaluate(traced.program, traced.bind(model.params, images), wanted)
    rows = describe(activations, squared=squared)
    valid = batch.valid.astype(rows.dtype)
    finite = jnp.isfinite(logits).all(-1)
    classes = logits.shape[-1]
    if model.multilabel:
        answer = (logits > 0).astype(rows.dtype)
    else:
        answer = jax.nn.one_hot(logits.argmax(-1), classes, dtype=rows.dtype)
    labels = jnp.zeros_like(answer) if batch.labels is None else batch.labels.astype(rows.dtype)
    targets = jnp.concatenate([labels, answer, jnp.ones_like(answer[:, :1])], 1)
    return Seen(
        jnp.where(valid[:, None] > 0, rows, 0),
        targets * valid[:, None],
        lax.psum((~finite & (valid > 0)).sum(), AXIS),
    )


def padded(features: int, mesh: Mesh) -> int:
    """Return the number of features, filled up to a multiple of the devices."""
    return -(-features // mesh.size) * mesh.size


def zeros(features: int, targets: int, mesh: Mesh, dtype: Any) -> Statistics:
    """Return sums of nothing, on the host."""
    rows = padded(features, mesh)
    shapes = ((rows, features), (targets, rows), (targets,), ())
    return Statistics._make(np.zeros(shape, dtype) for shape in shapes)


@jax.jit(static_argnames="mesh", donate_argnames="accumulator")
def absorb(mesh: Mesh, accumulator: Accumulator, seen: Sequence[Seen]) -> Accumulator:
    """Add a chunk of batches to the sums, compensated as in `solvers.gram`.

    Args:
        mesh: as in `observe`.
        accumulator: sums, which lie on the mesh as `SPECS` say; used up.
        seen: of each batch.
    """

    def device(accumulator: Accumulator, rows: Any, targets: Any) -> Accumulator:
        own, told = jnp.concatenate(rows), jnp.concatenate(targets)
        every = lax.all_gather(own, AXIS, tiled=True)
        share = accumulator.sums.gram.shape[0]
        room = share * lax.axis_size(AXIS) - every.shape[1]
        start = lax.axis_index(AXIS) * share
        mine = lax.dynamic_slice_in_dim(jnp.pad(every, ((0, 0), (0, room))), start, share, 1)
        labels = lax.all_gather(told, AXIS, tiled=True)
        new = Statistics(
            jnp.matmul(mine.T, every, precision=BEST),
            jnp.matmul(labels.T, mine, precision=BEST),
            lax.psum((told * told).sum(0), AXIS),
            lax.psum(told[:, -1].sum(), AXIS),
        )
        return gram.merge(accumulator, Accumulator(new, jax.tree.map(jnp.zeros_like, new)))

    specs = Accumulator(SPECS, SPECS)
    run = jax.shard_map(device, mesh=mesh, in_specs=(specs, P(AXIS), P(AXIS)), out_specs=specs)
    return run(accumulator, tuple(s.rows for s in seen), tuple(s.targets for s in seen))
