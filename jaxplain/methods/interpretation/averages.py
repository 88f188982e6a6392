"""Average images: what a feature looks for, as the mean of the patches that excite it most.

Oramas et al. 2019, §4.1 and Fig. 5: of every image the position of a feature's strongest response
is taken, the image is cropped there to the receptive field of the feature's layer, and the patches
of the 100 strongest responses are averaged. Features of layers without positions see the whole
image. Where a patch reaches over the border there is nothing to average.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxplain.methods.interpretation.features import Feature, RelevantFeatures
from jaxplain.methods.streaming import Feed, Progress, Stream, as_input
from jaxplain.model import Model, ReceptiveField, check_differentiable
from jaxplain.sharding import check_mesh, fetch
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.layers import layers, trace_model


@dataclasses.dataclass(frozen=True, eq=False)
class AverageImages:
    """The mean of the patches that excite each feature most.

    Attributes:
        features: which channels.
        averages: one a feature, (h, w, C) of its receptive field; NaN where no patch reached. Of
            pictures (uint8) in 0..255, of preprocessed images in their own units.
        values: (features, top) the strongest responses, in decreasing order; −∞ where there were
            fewer images.
        images: (features, top) the numbers of their images in the stream; −1 where there were
            fewer.
        corners: (features, top, 2) the first row and column of each patch; they may be negative.
    """

    features: tuple[Feature, ...]
    averages: tuple[np.ndarray, ...]
    values: Float[np.ndarray, "f top"]
    images: Int[np.ndarray, "f top"]
    corners: Int[np.ndarray, "f top 2"]

    def of(self, features: Sequence[Feature]) -> list[int]:
        """Return where some features are, by layer and channel.

        Raises:
            ValueError: a feature that is not here.
        """
        places = {(f.layer, f.channel): number for number, f in enumerate(self.features)}
        missing = [f for f in features if (f.layer, f.channel) not in places]
        if missing:
            raise ValueError(
                f"there is no average image of {missing[0].layer} {missing[0].channel}"
            )
        return [places[f.layer, f.channel] for f in features]


def average_images(
    model: Model,
    batches: Iterable[Any],
    features: RelevantFeatures | Sequence[Feature],
    *,
    top: int = 100,
    progress: Callable[[Progress], None] | None = None,
) -> AverageImages:
    """Average the patches that excite features most, in one pass over a stream.

    Args:
        model: the model.
        batches: as in `gather`, on one process; labels are not looked at.
        features: those selected, or any channels.
        top: patches averaged; what is kept is so many patches a feature, whatever the stream's
            length.
        progress: called after every batch.

    Raises:
        TypeError: batches of something else than images.
        ValueError: no images, images of another size midway or that are not finite, a layer that is
            unknown, a channel that it does not have, no feature, or a number out of range.

    Example:
        >>> from jaxplain.data.digits import digits
        >>> from jaxplain.models import load_model
        >>> channel = Feature("pool1", "pooling", 3, 1.0)
        >>> batches = [digits("train").images[:8]]
        >>> found = average_images(load_model("digits"), batches, [channel], top=4)
        >>> found.averages[0].shape, found.values.shape
        ((6, 6, 1), (1, 4))
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected at least 1")
    check_differentiable(model, "interpretation")
    chosen = tuple(
        features.selected() if isinstance(features, RelevantFeatures) else tuple(features)
    )
    if not chosen:
        raise ValueError("features is empty; expected at least one")
    feed = Feed(Stream(batches, model), check_mesh(None))
    shape = feed.image.shape
    known = {layer.name: layer for layer in layers(model, shape)}
    traced = trace_model(model, feed.image.batch(1))
    keepers = []
    for feature in chosen:
        traced.variable(feature.layer)  # which says what is nearest
        layer = known[feature.layer]
        if not 0 <= feature.channel < layer.shape[-1]:
            raise ValueError(
                f"layer {feature.layer!r} has no channel {feature.channel}; it has "
                f"{layer.shape[-1]}"
            )
        field = layer.receptive_field if len(layer.shape) == 3 else None
        keepers.append(_Strongest(top, field or ReceptiveField(shape[:2], (0, 0), (0, 0)), shape))
    wanted = tuple((feature.layer, feature.channel) for feature in chosen)
    chunks = 0
    while (batch := feed.next_batch()) is not None:
        valid = np.asarray(batch.valid) > 0
        values, rows, columns = (
            fetch(found)[:, valid] for found in _peaks(model, batch.images, wanted)
        )
        images, numbers = np.asarray(batch.images)[valid], np.asarray(batch.number)[valid]
        if not np.isfinite(values).all():
            raise ValueError(
                f"responses to the images up to number {feed.images} are not finite; are the "
                "weights and the preprocessing right?"
            )
        for keeper, *peaks in zip(keepers, values, rows, columns, strict=True):
            keeper.add(images, numbers, *peaks)
        chunks += 1
        if progress is not None:
            progress(Progress(feed.images, chunks, 0))
    return AverageImages(
        chosen,
        tuple(keeper.average() for keeper in keepers),
        np.stack([keeper.values for keeper in keepers]),
        np.stack([keeper.numbers for keeper in keepers]),
        np.stack([keeper.corners for keeper in keepers]),
    )


class _Strongest:
    """The patches of one feature's strongest responses so far.

    Args:
        top: how many are kept.
        field: what a unit sees.
        shape: (H, W, C) of an image.
    """

    def __init__(self, top: int, field: ReceptiveField, shape: tuple[int, int, int]):
        self._field, self._shape = field, shape
        self._patches: np.ndarray | None = None
        self.values = np.full(top, -np.inf, np.float32)
        self.numbers = np.full(top, -1, np.int64)
        self.corners = np.zeros((top, 2), np.int64)

    def add(
        self,
        images: np.ndarray,
        numbers: np.ndarray,
        values: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
    ) -> None:
        """Take the peaks of a batch, if they are among the strongest; of equals, the first."""
        if self._patches is None:
            size = (len(self.values), *self._field.size, self._shape[2])
            self._patches = np.zeros(size, images.dtype)
        for place in np.argsort(-values, kind="stable"):
            if values[place] <= self.values[-1]:
                break
            at = int(np.searchsorted(-self.values, -values[place], side="right"))
            corner = [
                offset + int(position) * step
                for offset, position, step in zip(
                    self._field.offset, (rows[place], columns[place]), self._field.stride,
                    strict=True,
                )
            ]  # fmt: skip
            for kept in (self.values, self.numbers, self.corners, self._patches):
                kept[at + 1 :] = kept[at:-1].copy()
            self.values[at], self.numbers[at] = values[place], numbers[place]
            self.corners[at] = corner
            self._patches[at] = self._crop(images[place], corner)

    def average(self) -> np.ndarray:
        """Return the mean over the patches, pixel by pixel, where they lie in their image."""
        assert self._patches is not None
        total = np.zeros(self._patches.shape[1:], np.float64)
        count = np.zeros((*self._field.size, 1))
        for patch, corner, value in zip(self._patches, self.corners, self.values, strict=True):
            if value == -np.inf:
                break
            inside = self._inside(corner)
            total[inside] += patch[inside]
            count[inside] += 1
        with np.errstate(invalid="ignore"):
            return (total / count).astype(np.float32)

    def _inside(self, corner: Sequence[int] | np.ndarray) -> tuple[slice, slice]:
        """Return which part of a patch lies in the image."""
        height, width = (
            slice(max(0, -int(start)), max(0, min(size, extent - int(start))))
            for start, size, extent in zip(corner, self._field.size, self._shape[:2], strict=True)
        )
        return height, width

    def _crop(self, image: np.ndarray, corner: Sequence[int]) -> np.ndarray:
        patch = np.zeros((*self._field.size, self._shape[2]), image.dtype)
        inside = self._inside(corner)
        source = tuple(
            slice(part.start + start, part.stop + start)
            for part, start in zip(inside, corner, strict=True)
        )
        patch[inside] = image[source]
        return patch


@jax.jit(static_argnames="wanted")
def _peaks(
    model: Model, images: jax.Array, wanted: tuple[tuple[str, int], ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (features, images): the strongest response of each, its row and column."""
    inputs = as_input(model, images)
    traced = trace_model(model, inputs)
    names = tuple(dict.fromkeys(layer for layer, _ in wanted))
    variables = [traced.variable(layer) for layer in names]
    needed, _ = jx.ancestors(traced.program, variables)
    values = traced.bind(model.params, inputs)
    found = jx.evaluate(traced.program, values, variables, equations=needed)
    activations = dict(zip(names, found, strict=True))
    peaks = []
    for layer in names:
        channels = jnp.array([channel for name, channel in wanted if name == layer])
        own = activations[layer][..., channels]
        flat = own.reshape(own.shape[0], -1, own.shape[-1])
        best = flat.argmax(1)
        width = own.shape[2] if own.ndim == 4 else 1
        peaks.append(jnp.stack([flat.max(1).T, best.T // width, best.T % width]))
    order = [place for name in names for place, (layer, _) in enumerate(wanted) if layer == name]
    joined = jnp.concatenate(peaks, 1)[:, np.argsort(order)]
    return joined[0], joined[1].astype(int), joined[2].astype(int)
