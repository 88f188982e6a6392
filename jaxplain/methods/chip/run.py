"""One fit: the loop on the host over batches, chunks and checkpoints."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxplain.methods.chip import engine, shortcut
from jaxplain.methods.chip.importance import Settings
from jaxplain.methods.chip.options import Options
from jaxplain.methods.chip.shortcut import Found, Prepared, Shortcut
from jaxplain.methods.chip.solve import ChipStatistics
from jaxplain.methods.fingerprint import fingerprint
from jaxplain.methods.streaming import (
    Batch,
    Feed,
    ImageType,
    Keeper,
    Kept,
    Progress,
    Stream,
    as_input,
)
from jaxplain.model import Model
from jaxplain.sharding import AXIS, exchange, fetch, local_devices_of, place
from jaxplain.solvers.gram import Accumulator
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.layers import Traced, split, trace_model

# How much the predictions may differ with a shortcut, on the pictures and gates it is tried on, in
# float32 and where the network's own numbers are rounder.
_SAME, _ROUNDINGS = 1e-4, 4


class Run:
    """One fit, from the first batch to the statistics.

    Args:
        model: the model.
        stream: this process's images.
        layers: names.
        options: of the fit.
        key: of the gates.
        mesh: with the axis "data".
        linear: look for shortcuts.
    """

    def __init__(
        self,
        model: Model,
        stream: Stream,
        layers: tuple[str, ...],
        options: Options,
        key: jax.Array,
        mesh: Mesh,
        linear: bool,
    ):
        self.model, self.options, self.mesh = model, options, mesh
        impl, self.key = _key_data(key)
        self.feed = Feed(stream, mesh)
        image = self.feed.image
        traced = trace_model(model, image.batch(1))
        classes = _check_layers(model, traced, layers, image)
        found = {layer: self._found(traced, layer, image, linear) for layer in layers}
        shortcuts = tuple(found[layer].shortcut for layer in layers)
        self.plan = engine.Plan(
            layers,
            shortcuts,
            image,
            classes,
            options.num_gates,
            options.keep,
            options.width,
            options.gates == "shared",
            impl,
            options.rows,
            multilabel=model.multilabel,
        )
        self.prepared = {
            layer: shortcut.prepare(model, traced, one)
            for layer, one in found.items()
            if one.shortcut
        }
        self.paths = {layer: one.reason for layer, one in found.items()}
        self._verify(self.feed.first)
        placed = self.feed.everywhere((model, self.prepared, self.key))
        self.observe = functools.partial(_observe, self.plan, mesh, placed)
        self.sums = self._zeros(traced)
        self.predicted = np.zeros(classes, np.int32)
        self.chunks = 0
        self.a_chunk = max(1, options.chunk // self._whole_batch)

    def work(self) -> dict[str, Any]:
        """Return what is computed, as JSON values: whose checkpoints are good for it."""
        plan = self.plan
        return {
            "model": self.model.name,
            "parameters": fingerprint(self.model),
            "layers": list(plan.layers),
            "gates": self.options.gates,
            "num_gates": plan.num_gates,
            "keep": plan.keep,
            "sigma": plan.sigma,
            "key": self.key.ravel().tolist(),
            "images": [*plan.image.shape, plan.image.dtype],
            "classes": plan.classes,
            "batch": self._whole_batch,
            "chunk": self.a_chunk * self._whole_batch,
            "processes": self.feed.processes,
            "paths": list(self.paths.values()),
        }

    @property
    def _whole_batch(self) -> int:
        """Images a batch of all processes."""
        return self.feed.size * self.feed.processes

    def to_the_end(self, keeper: Keeper | None, progress: Callable[[Progress], None]) -> None:
        """Go through the stream, from the newest checkpoint if there is one."""
        if keeper is not None:
            self._resume(keeper)
        pending: list[engine.Seen] = []
        due = False
        while (batch := self.next_batch()) is not None:
            pending.append(self.observe(batch))
            if len(pending) < self.a_chunk:
                continue
            self.absorb(pending)
            pending = []
            progress(self._progress())
            due = due or self.chunks % self.options.every == 0
            # Between two batches, so that a stream that knows where it is can go on from there.
            if keeper is not None and due and self.feed.everyone(self.feed.stream.whole):
                keeper.save(self._kept())
                due = False
        if pending:
            self.absorb(pending)
            progress(self._progress())

    def statistics(self) -> dict[str, ChipStatistics]:
        """Return what was gathered."""
        options = self.options
        settings = Settings(
            self.model.name,
            fingerprint(self.model),
            self.feed.images,
            options.num_gates,
            options.keep,
            options.width,
            options.gates,
        )
        found = {}
        for layer, sums in self.sums.items():
            packed, corr, energy, weight = (
                (fetch(total) + fetch(lost))[: self.plan.classes]
                for total, lost in zip(sums.sums, sums.lost, strict=True)
            )
            found[layer] = ChipStatistics(
                packed, corr, energy, weight, self.predicted, layer, self.paths[layer], settings
            )
        return found

    def _progress(self) -> Progress:
        return Progress(self.feed.images, self.chunks, self.feed.resumed)

    def _found(self, traced: Traced, layer: str, image: ImageType, linear: bool) -> Found:
        if not linear:
            return Found(None, "not asked to use linearity")
        found = shortcut.find(traced, layer)
        per_device = self.feed.size // local_devices_of(self.mesh)
        if found.shortcut and not all(
            shortcut.same_program(self.model, traced, image.batch(rows))
            for rows in (per_device, per_device * self.options.num_gates)
        ):
            return Found(None, "the network is another program for other numbers of images")
        return found

    def _verify(self, first: np.ndarray) -> None:
        """Give up shortcuts that change the predictions of the first pictures."""
        kept = []
        for layer, one in zip(self.plan.layers, self.plan.shortcuts, strict=True):
            error = 0.0
            if one is not None and len(first):
                error = _difference(self.plan, self.model, self.prepared[layer], one, first[:2])
            if self.feed.together:
                error = float(exchange(np.float32(error)).max())
            good = error <= max(_SAME, _ROUNDINGS * float(jnp.finfo(self.plan.image.dtype).eps))
            if one is not None and not good:
                self.paths[layer] = f"the shortcut differs by {error:.2g}"
                del self.prepared[layer]
            if one is None or not good:
                self.paths[layer] = f"run again for every gate vector: {self.paths[layer]}"
            kept.append(one if good else None)
        self.plan = dataclasses.replace(self.plan, shortcuts=tuple(kept))

    def next_batch(self) -> Batch | None:
        """Return the next batch of all processes, None when the last one has no more."""
        return self.feed.next_batch()

    def absorb(self, pending: list[engine.Seen]) -> None:
        """Add a chunk of batches to the sums.

        Raises:
            ValueError: the logits of an image are not finite.
        """
        broken = sum(int(fetch(seen.broken)) for seen in pending)
        if broken:
            raise ValueError(
                f"the logits of {broken} of the images up to number {self.feed.images} are not "
                "finite; are the weights and the preprocessing right?"
            )
        for seen in pending:
            self.predicted += fetch(seen.predicted)[: self.plan.classes]
        loyalties = [seen.loyalty for seen in pending]
        for layer in self.plan.layers:
            observed = [seen.layers[layer] for seen in pending]
            self.sums[layer] = engine.absorb(self.mesh, self.sums[layer], loyalties, observed)
        self.chunks += 1

    def _kept(self) -> Kept:
        cut = functools.partial(jax.tree.map, lambda total: fetch(total)[: self.plan.classes])
        state = {"sums": [cut(s) for s in self.sums.values()], "predicted": self.predicted}
        return Kept(self.chunks, state, self.feed.images, self.feed.stream.position)

    def _resume(self, keeper: Keeper) -> None:
        kept = keeper.resume(self._kept().state)
        if kept is None:
            return
        self.feed.resume(keeper, kept)
        for layer, sums in zip(self.plan.layers, kept.state["sums"], strict=True):
            self.sums[layer] = self._place(sums)
        self.predicted = np.array(kept.state["predicted"])
        self.chunks = kept.chunks

    def _zeros(self, traced: Traced) -> dict[str, Accumulator]:
        """Return sums of nothing, along the classes."""
        avals = traced.program.avals
        dtype = jnp.promote_types(jnp.float32, avals[traced.program.outputs[0]].dtype)  # type: ignore[index]
        classes = engine.padded_classes(self.plan, self.mesh)
        return {
            layer: engine.zeros(self.mesh, classes, channels, dtype.name)()
            for layer in self.plan.layers
            for channels in avals[traced.variable(layer)].shape[-1:]
        }

    def _place(self, sums: Any) -> Any:
        """Lay sums on the mesh, along the classes."""
        missing = engine.padded_classes(self.plan, self.mesh) - self.plan.classes

        def one(total: np.ndarray) -> jax.Array:
            if missing:
                filling = np.zeros((missing, *total.shape[1:]), total.dtype)
                total = np.concatenate([total, filling])
            return place(total, self.mesh, P(AXIS))

        return jax.tree.map(one, sums)


def _observe(plan: engine.Plan, mesh: Mesh, placed: Any, batch: Batch) -> engine.Seen:
    model, prepared, key = placed
    return engine.observe(plan, mesh, model, prepared, batch, key)


def _check_layers(model: Model, traced: Traced, layers: tuple[str, ...], image: ImageType) -> int:
    """Return the number of classes, or raise for layers that cannot be fitted."""
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"layers are {list(layers)}; expected one or several, each once")
    logits = traced.program.avals[traced.program.outputs[0]].shape  # type: ignore[index]
    if len(logits) != 2:
        raise ValueError(f"the logits of an image have shape {logits[1:]}; expected (classes,)")
    for layer in layers:
        variable = traced.variable(layer)
        if len(traced.program.avals[variable].shape) < 2:
            raise ValueError(f"layer {layer!r} has no channels")
        _, inputs = jx.ancestors(traced.program, traced.program.outputs, frozenset({variable}))
        if traced.image in inputs:
            split(model, layer, image_shape=image.shape)  # which says what is wrong
    return logits[1]


def _key_data(key: jax.Array) -> tuple[str, np.ndarray]:
    """Return how a key's random numbers are made, and its words."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key))
    return "threefry2x32", np.asarray(key)


def _difference(
    plan: engine.Plan, model: Model, prepared: Prepared, one: Shortcut, pictures: np.ndarray
) -> float:
    """The largest difference that a shortcut makes to predictions of some pictures."""
    # In full precision, where the two can only differ if they are not the same.
    with jax.default_matmul_precision("highest"):
        return float(_compared(plan, one, model, prepared, jnp.asarray(pictures)))


@functools.partial(jax.jit, static_argnames=("plan", "one"))
def _compared(
    plan: engine.Plan, one: Shortcut, model: Model, prepared: Prepared, pictures: jax.Array
) -> jax.Array:
    images = as_input(model, pictures)
    activation = split(model, one.layer, image_shape=plan.image.shape)[0](images)
    shape = (len(pictures), 3, activation.shape[-1])
    gates = jax.random.bernoulli(jax.random.key(0), plan.keep, shape).at[:, 0].set(True)
    short, long = (
        engine.perturbed(plan, way, model, prepared, one.layer, activation, gates)
        for way in (one, None)
    )
    return jnp.abs(short - long).max()
