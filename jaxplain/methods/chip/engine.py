"""The compiled part of a fit: what a batch adds to the statistics, and adding it.

Images lie along the mesh axis "data", and so do the classes of the sums: each device keeps the
statistics of its share of the classes, so that these need not fit into the memory of one. A batch
is observed without any exchange but a `psum` of small sums, scattered by class; when a chunk is
full, the moment matrices and loyalties of its images are gathered, which is much less than summing
the Gram matrices of all classes over the devices would be.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxplain.methods.chip import statistics
from jaxplain.methods.chip.shortcut import (
    Prepared,
    Shortcut,
    after_product,
    product_outputs,
)
from jaxplain.methods.chip.statistics import Observed
from jaxplain.methods.streaming import Batch, ImageType, as_input
from jaxplain.model import Model
from jaxplain.scores import probabilities
from jaxplain.sharding import AXIS
from jaxplain.solvers.gram import Accumulator
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.layers import split, trace_model

# Bytes of the gated layers that are run through the rest of the network at once, and of the
# contributions of channels that are held at once.
_ROOM = 1 << 28
_MOST_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Plan:
    """What of a fit is fixed when it is compiled.

    Attributes:
        layers: their names.
        shortcuts: one a layer, or None.
        image: what one image is.
        classes: length of the logits.
        num_gates: N.
        keep: probability of an open gate.
        sigma: width of the proximity.
        shared: whether all images get the same gates.
        key_impl: of the key.
        rows: gated copies that are run through the rest of the network at once; None to choose.
        multilabel: whether each class has a sigmoid of its own.
    """

    layers: tuple[str, ...]
    shortcuts: tuple[Shortcut | None, ...]
    image: ImageType
    classes: int
    num_gates: int
    keep: float
    sigma: float
    shared: bool
    key_impl: str = "threefry2x32"
    rows: int | None = None
    multilabel: bool = False


class Seen(NamedTuple):
    """What one batch gave.

    Attributes:
        loyalty: f, zero for what fills up.
        layers: what each layer's statistics get.
        predicted: how often each class was the likeliest.
        broken: images whose logits are not finite.
    """

    loyalty: Float[Array, "b classes"]
    layers: dict[str, Observed]
    predicted: Int[Array, " classes"]
    broken: Int[Array, ""]


def padded_classes(plan: Plan, mesh: Mesh) -> int:
    """Return the number of classes, filled up to a multiple of the devices."""
    return -(-plan.classes // mesh.size) * mesh.size


@functools.cache
def zeros(mesh: Mesh, classes: int, channels: int, dtype: str) -> Callable[[], Accumulator]:
    """Return a program that makes sums of nothing on a mesh, along the classes."""
    return jax.jit(
        functools.partial(statistics.zeros, classes, channels, jnp.dtype(dtype)),
        out_shardings=NamedSharding(mesh, P(AXIS)),
    )


def layer_key(key: jax.Array, layer: str) -> jax.Array:
    """Return the key of a layer's gates, whatever other layers there are."""
    return jax.random.fold_in(key, zlib.crc32(layer.encode()))


@functools.partial(jax.jit, static_argnames=("plan", "mesh"))
def observe(
    plan: Plan,
    mesh: Mesh,
    model: Model,
    prepared: Mapping[str, Prepared],
    batch: Batch,
    key: UInt32[Array, " words"],
) -> Seen:
    """Run a batch with all gates open and under every gate vector.

    Returns:
        What it adds to the statistics; all of it lies sharded on the mesh, images along their axis,
        sums along the classes.
    """
    rows = P(AXIS)
    run = jax.shard_map(
        functools.partial(_observe, plan, padded_classes(plan, mesh)),
        mesh=mesh,
        in_specs=(P(), P(), rows, P()),
        out_specs=Seen._make(
            [rows, dict.fromkeys(plan.layers, Observed._make([rows] * 4)), rows, P()]
        ),
    )
    return run(model, dict(prepared), batch, key)


def _observe(
    plan: Plan,
    classes: int,
    model: Model,
    prepared: Mapping[str, Prepared],
    batch: Batch,
    key: jax.Array,
) -> Seen:
    """The part of one device."""
    key = jax.random.wrap_key_data(key, impl=plan.key_impl)
    images = as_input(model, batch.images)
    traced = trace_model(model, images)
    wanted = [traced.program.outputs[0], *(traced.variable(layer) for layer in plan.layers)]
    logits, *activations = jx.evaluate(traced.program, traced.bind(model.params, images), wanted)
    dtype = jnp.promote_types(jnp.float32, logits.dtype)
    logits = logits.astype(dtype)
    finite = jnp.isfinite(logits).all(-1)
    counts = batch.valid.astype(dtype)
    chances = probabilities(logits, multilabel=plan.multilabel)
    loyalty = chances * counts[:, None]  # π² = f, eq. (8)
    if plan.multilabel:
        answer = (logits > 0).astype(dtype)
    else:
        answer = jax.nn.one_hot(logits.argmax(-1), plan.classes)
    best = answer * counts[:, None]

    def by_class(total: jax.Array) -> jax.Array:
        """This device's classes of a sum over all devices."""
        padding = [(0, classes - plan.classes)] + [(0, 0)] * (total.ndim - 1)
        return lax.psum_scatter(jnp.pad(total, padding), AXIS, tiled=True)

    layers = {}
    for layer, shortcut, activation in zip(plan.layers, plan.shortcuts, activations, strict=True):
        numbers = jnp.zeros_like(batch.number) if plan.shared else batch.number
        gates = statistics.draw_gates(
            layer_key(key, layer),
            numbers,
            activation.shape[-1],
            num_gates=plan.num_gates,
            keep=plan.keep,
        )
        chances = perturbed(plan, shortcut, model, prepared.get(layer), layer, activation, gates)
        found = statistics.observe(
            averages(activation).astype(dtype),
            gates,
            statistics.proximity(gates, plan.sigma, dtype),
            loyalty,
            chances.astype(dtype),
        )
        layers[layer] = Observed(found.moments, *(by_class(total) for total in found[1:]))
    return Seen(
        jnp.pad(loyalty, ((0, 0), (0, classes - plan.classes))),
        layers,
        by_class(best.sum(0)).astype(jnp.int32),
        lax.psum((~finite & (batch.valid > 0)).sum(), AXIS),
    )


def averages(activation: Float[Array, "b *positions k"]) -> Float[Array, "b k"]:
    """Return the global average of each channel, eq. (2) with open gates.

    Example:
        >>> averages(jnp.ones((2, 4, 4, 3))).shape
        (2, 3)
    """
    dtype = jnp.promote_types(jnp.float32, activation.dtype)
    return activation.mean(tuple(range(1, activation.ndim - 1)), dtype=dtype)


def perturbed(
    plan: Plan,
    shortcut: Shortcut | None,
    model: Model,
    prepared: Prepared | None,
    layer: str,
    activation: Float[Array, "b *positions k"],
    gates: Bool[Array, "b n k"],
) -> Float[Array, "b n classes"]:
    """Return the predictions g of the perturbed networks, eq. (3)."""
    if shortcut is None:
        return _suffix(plan, model, layer, activation, gates)
    assert prepared is not None
    units, channels = prepared.closed.shape[0], activation.shape[-1]
    # Contributions are one number a channel and unit: a few images at a time.
    several = max(1, _ROOM // (units * channels * activation.dtype.itemsize))

    def some(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        outputs = product_outputs(model, shortcut, prepared, *part, plan.image)
        finish = functools.partial(after_product, model, shortcut, image=plan.image)
        return _in_rows(plan, outputs, finish, _MOST_ROWS)

    if shortcut.positions == 1 or several >= activation.shape[0]:
        return some((activation, gates))
    whole = activation.shape[0] // several * several
    parts = jax.tree.map(
        lambda x: x[:whole].reshape(-1, several, *x.shape[1:]), (activation, gates)
    )
    found = lax.map(some, parts)
    found = found.reshape(whole, *found.shape[2:])
    if whole == activation.shape[0]:
        return found
    return jnp.concatenate([found, some((activation[whole:], gates[whole:]))])


def _suffix(
    plan: Plan, model: Model, layer: str, activation: jax.Array, gates: jax.Array
) -> jax.Array:
    """Run what follows the layer for every gate vector."""
    _, suffix = split(model, layer, image_shape=plan.image.shape)
    positions = (1,) * (activation.ndim - 2)

    def gated(gates: jax.Array) -> jax.Array:
        opened = gates.reshape(*gates.shape[:2], *positions, gates.shape[-1])
        return activation[:, None] * opened.astype(activation.dtype)  # eq. (1)

    return _in_rows(plan, gates, suffix, rows_of(activation), prepare=gated)


def rows_of(activation: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Return how many gated copies of a layer there is room for."""
    size = math.prod(activation.shape[1:]) * activation.dtype.itemsize
    return max(1, _ROOM // size)


def at_once(plan: Plan, images: int, count: int, most: int) -> int:
    """Return how many of `count` gate vectors are run at once, for all images of a device.

    Args:
        plan: of the fit.
        images: of the batch on this device.
        count: gate vectors.
        most: rows that there is room for.
    """
    several = max(1, min(plan.rows or most, _MOST_ROWS) // images)
    return -(-count // -(-count // several))  # in rounds of one size, as nearly as can be


def _in_rows(
    plan: Plan, inputs: jax.Array, run: Any, most: int, *, prepare: Any = lambda x: x
) -> jax.Array:
    """Return the probabilities run(rows) of inputs (b, n, ...), a few gate vectors at a time."""
    images, count = inputs.shape[:2]
    several = at_once(plan, images, count, most)
    rounds = -(-count // several)

    def few(part: jax.Array) -> jax.Array:
        rows = prepare(part)
        logits = run(rows.reshape(-1, *rows.shape[2:]))
        logits = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
        chances = probabilities(logits, multilabel=plan.multilabel)
        return chances.reshape(images, -1, chances.shape[-1])

    if rounds == 1:
        return few(inputs)
    missing = rounds * several - count
    filled = jnp.concatenate([inputs, inputs[:, :missing]], 1) if missing else inputs
    parts = jnp.moveaxis(filled.reshape(images, rounds, several, *inputs.shape[2:]), 1, 0)
    found = jnp.moveaxis(lax.map(few, parts), 0, 1)
    return found.reshape(images, rounds * several, -1)[:, :count]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="accumulator")
def absorb(
    mesh: Mesh,
    accumulator: Accumulator,
    loyalties: Sequence[Float[Array, "b classes"]],
    observed: Sequence[Observed],
) -> Accumulator:
    """Add a chunk of batches to the sums of a layer; what is given of them is used up.

    Args:
        mesh: as in `observe`.
        accumulator: packed sums, sharded along the classes.
        loyalties: of each batch.
        observed: of each batch.
    """
    rows = P(AXIS)

    def device(
        accumulator: Accumulator, loyalties: Sequence[Array], observed: Sequence[Observed]
    ) -> Accumulator:
        own = jnp.concatenate(loyalties)
        # Of all images, the classes that this device keeps.
        loyalty = lax.all_to_all(own, AXIS, split_axis=1, concat_axis=0, tiled=True)
        moments = jnp.concatenate([part.moments for part in observed])
        moments = lax.all_gather(moments, AXIS, tiled=True)
        return statistics.absorb(accumulator, loyalty, moments, observed)

    return jax.shard_map(device, mesh=mesh, in_specs=(rows, rows, rows), out_specs=rows)(
        accumulator, tuple(loyalties), tuple(observed)
    )
