"""From a stream of labelled images to the statistics of their descriptors."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from jaxplain.methods.fingerprint import fingerprint
from jaxplain.methods.interpretation import engine
from jaxplain.methods.interpretation.descriptors import Block, blocks
from jaxplain.methods.streaming import Feed, Keeper, Kept, Progress, Stream
from jaxplain.model import Model, check_differentiable
from jaxplain.names import unknown
from jaxplain.sharding import check_mesh, fetch, place
from jaxplain.solvers.gram import Accumulator, Statistics

LABELS = ("true", "predicted")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What the images of a stream say of the features: enough to select them with any μ.

    Attributes:
        gram: (m, m) X Xᵀ, the sum of the descriptors' products.
        corr: (2 classes + 1, m) sums of the descriptors of the images that have a label, of those
            that the network gave one, and of all.
        images: (2, classes) how many images these are.
        count: N, how many images there were.
        blocks: the layers' parts of a descriptor.
        labelled: whether images came with labels.
        squared: whether norms were squared.
        model: name of the model.
        fingerprint: checksum of its parameters.
    """

    gram: Float[np.ndarray, "m m"]
    corr: Float[np.ndarray, "t m"]
    images: Int[np.ndarray, "2 classes"]
    count: int
    blocks: tuple[Block, ...]
    labelled: bool
    squared: bool
    model: str
    fingerprint: int

    def of(self, labels: str) -> tuple[Float[np.ndarray, "classes m"], Int[np.ndarray, " c"]]:
        """Return X Lᵀ, class by class, and how many images each class has.

        Args:
            labels: "true", or "predicted" for the network's own answers.

        Raises:
            ValueError: neither of the two, or true ones where images came without.
        """
        if labels not in LABELS:
            raise ValueError(unknown("labels", labels, LABELS))
        if labels == "true" and not self.labelled:
            raise ValueError("the images came without labels; expected labels='predicted'")
        classes = self.images.shape[1]
        start = classes * (labels == "predicted")
        return self.corr[start : start + classes], self.images[int(labels == "predicted")]


def gather(
    model: Model,
    batches: Iterable[Any],
    layers: Sequence[str] | None = None,
    *,
    skip_last: int = 0,
    squared: bool = False,
    mesh: Mesh | None = None,
    checkpoint: str | Path | None = None,
    every: int = 100,
    chunk: int = 256,
    progress: Callable[[Progress], None] | None = None,
) -> FeatureStatistics:
    """Describe the images of a stream and add up what selecting features needs.

    Every image runs through the network once; what is kept has a constant size.

    Args:
        model: any model with layers.
        batches: an iterable of mappings with the entries "image", (b, H, W, C) floats, or uint8
            pictures of the model's own size, and "label": (b,) classes, or (b, classes) ones and
            zeros; or of images alone, whose labels are what the network answers. With several
            processes, process p of P gives the images p, p + P, ... of the whole.
        layers: as in `blocks`.
        skip_last: as in `blocks`.
        squared: squares of the norms in place of the norms, as the authors' code has it.
        mesh: with the one axis "data", along which images are sharded (see `jaxplain.sharding`);
            None for one device.
        checkpoint: folder; the same call goes on from there, to the same result bit for bit. Only
            process 0 needs it.
        every: chunks between two checkpoints.
        chunk: images whose descriptors are added to the sums at once.
        progress: called after every chunk.

    Raises:
        TypeError: batches of something else than images.
        ValueError: no images, images of another size midway or that are not finite, labels out of
            range, a layer that is unknown, a number out of range, logits that are not finite, or a
            checkpoint of other work.
        OSError: a checkpoint cannot be written.

    Example:
        >>> from jaxplain.data.digits import digits
        >>> from jaxplain.models import load_model
        >>> part = digits("train")
        >>> batch = {"image": part.images[:8], "label": part.labels[:8]}
        >>> found = gather(load_model("digits"), [batch], ["conv1", "conv2"])
        >>> found.gram.shape, found.count, round(float(found.gram[:20, :20].sum()), 3)
        ((70, 70), 8, 8.0)
    """
    for name, number in (("every", every), ("chunk", chunk)):
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1")
    check_differentiable(model, "interpretation")
    run = _Run(model, batches, layers, skip_last, squared, check_mesh(mesh), every, chunk)
    with contextlib.ExitStack() as stack:
        keeper = None
        if checkpoint is not None:
            keeper = stack.enter_context(Keeper(checkpoint, run.work(), run.feed.processes))
        run.to_the_end(keeper, progress or (lambda _: None))
    return run.statistics()


class _Run:
    """One pass, from the first batch to the statistics."""

    def __init__(
        self,
        model: Model,
        batches: Iterable[Any],
        layers: Sequence[str] | None,
        skip_last: int,
        squared: bool,
        mesh: Mesh,
        every: int,
        chunk: int,
    ):
        self.model, self.squared, self.mesh, self.every = model, squared, mesh, every
        self.feed = Feed(Stream(batches, model, labels=True), mesh)
        image = self.feed.image
        self.blocks = blocks(model, layers, skip_last=skip_last, image_shape=image.shape)
        assert self.feed.classes is not None
        self.classes = self.feed.classes
        logits = jax.eval_shape(lambda m, x: m(x), model, image.batch(1))
        self.dtype = jnp.promote_types(jnp.float32, logits.dtype)
        self.features = sum(block.channels for block in self.blocks)
        self.placed = self.feed.everywhere(model)
        self.a_chunk = max(1, chunk // (self.feed.size * self.feed.processes))
        empty = engine.zeros(self.features, 2 * self.classes + 1, mesh, self.dtype)
        self.sums = self._place(Accumulator(empty, empty))
        self.chunks = 0

    def work(self) -> dict[str, Any]:
        """Return what is computed, as JSON values: whose checkpoints are good for it."""
        whole = self.feed.size * self.feed.processes
        return {
            "task": "features",
            "model": self.model.name,
            "parameters": fingerprint(self.model),
            "layers": [block.layer for block in self.blocks],
            "squared": self.squared,
            "images": [*self.feed.image.shape, self.feed.image.dtype],
            "labelled": bool(self.feed.stream.labelled),
            "batch": whole,
            "chunk": self.a_chunk * whole,
            "processes": self.feed.processes,
        }

    def to_the_end(self, keeper: Keeper | None, progress: Callable[[Progress], None]) -> None:
        """Go through the stream, from the newest checkpoint if there is one."""
        if keeper is not None and (kept := keeper.resume(self._kept().state)) is not None:
            self.feed.resume(keeper, kept)
            self.sums, self.chunks = self._place(self._filled(kept.state)), kept.chunks
        pending: list[engine.Seen] = []
        due = False
        while (batch := self.feed.next_batch()) is not None:
            pending.append(engine.observe(self.blocks, self.squared, self.mesh, self.placed, batch))
            if len(pending) < self.a_chunk:
                continue
            self._absorb(pending, progress)
            pending = []
            due = due or self.chunks % self.every == 0
            # Between two batches, so that a stream that knows where it is can go on from there.
            if keeper is not None and due and self.feed.everyone(self.feed.stream.whole):
                keeper.save(self._kept())
                due = False
        if pending:
            self._absorb(pending, progress)

    def statistics(self) -> FeatureStatistics:
        """Return what was gathered."""
        (gram, corr, _, count), lost = (
            [fetch(part) for part in sums] for sums in (self.sums.sums, self.sums.lost)
        )
        # The parts that rounding lost are smaller than a rounding of the sums: only in float64 do
        # they count.
        gram = gram[: self.features].astype(np.float64) + lost[0][: self.features]
        corr = corr[:, : self.features].astype(np.float64) + lost[1][:, : self.features]
        energy = fetch(self.sums.sums.energy) + fetch(self.sums.lost.energy)
        images = np.rint(energy[:-1]).astype(np.int64).reshape(2, self.classes)
        return FeatureStatistics(
            (gram + gram.T) / 2,
            corr,
            images,
            round(float(count + lost[3])),
            self.blocks,
            bool(self.feed.stream.labelled),
            self.squared,
            self.model.name,
            fingerprint(self.model),
        )

    def _absorb(self, pending: list[engine.Seen], progress: Callable[[Progress], None]) -> None:
        broken = sum(int(fetch(seen.broken)) for seen in pending)
        if broken:
            raise ValueError(
                f"the logits of {broken} of the images up to number {self.feed.images} are not "
                "finite; are the weights and the preprocessing right?"
            )
        self.sums = engine.absorb(self.mesh, self.sums, pending)
        self.chunks += 1
        progress(Progress(self.feed.images, self.chunks, self.feed.resumed))

    def _kept(self) -> Kept:
        """Return the sums without what fills them up, whatever the number of devices."""

        def cut(sums: Any) -> Any:
            gram, corr, *others = (fetch(part) for part in sums)
            return [gram[: self.features], corr[:, : self.features], *others]

        state = {"sums": cut(self.sums.sums), "lost": cut(self.sums.lost)}
        return Kept(self.chunks, state, self.feed.images, self.feed.stream.position)

    def _filled(self, state: Any) -> Accumulator:
        room = engine.padded(self.features, self.mesh) - self.features

        def fill(parts: Any) -> Statistics:
            gram, corr, energy, weight = parts
            gram, corr = np.pad(gram, ((0, room), (0, 0))), np.pad(corr, ((0, 0), (0, room)))
            return Statistics._make([gram, corr, energy, weight])

        return Accumulator(fill(state["sums"]), fill(state["lost"]))

    def _place(self, sums: Accumulator) -> Accumulator:
        def lay(parts: Statistics) -> Statistics:
            pairs = zip(parts, engine.SPECS, strict=True)
            return Statistics._make(
                place(np.asarray(part), self.mesh, cast(P, spec)) for part, spec in pairs
            )

        return Accumulator(lay(sums.sums), lay(sums.lost))
