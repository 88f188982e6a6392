"""The images of a fit as they come: checked, in pieces of one size, and where to go on from."""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.model import Model

_SAMPLE = 1 << 14
"""Numbers of a batch that its checksum looks at, evenly spread."""


class Position(NamedTuple):
    """Where a stream is.

    Attributes:
        batches: how many were read.
        images: how many images they held.
        first: checksum of the first batch.
        last: checksum of the last one.
        all: checksum of all of them.
        state: of the iterator before the last batch, as JSON; None if it has none.
    """

    batches: int = 0
    images: int = 0
    first: int = 0
    last: int = 0
    all: int = 0
    state: str | None = None


class Piece(NamedTuple):
    """Images of one batch.

    Attributes:
        images: (b, H, W, C) floats or uint8.
        labels: (b, classes) float32, 1 for the classes that an image has and 0 for the others; None
            if they were not asked for, or are not there.
    """

    images: np.ndarray
    labels: np.ndarray | None = None


class Stream:
    """The batches of one process.

    Args:
        batches: an iterable of arrays (b, H, W, C), or of mappings with the entry "image" and, if
            labels are wanted, "label". If its iterator has `get_state` and `set_state`, as Grain's
            have, a resumed fit goes on where it was; otherwise it reads again, and passes over,
            what it had read.
        model: what the images are for.
        labels: whether labels are wanted, where there are any.
    """

    def __init__(self, batches: Iterable[Any], model: Model, *, labels: bool = False):
        self._iterator = iter(batches)
        self._model = model
        self.wants_labels = labels
        self._classes: int | None = None
        self._batch: Piece | None = None  # what was read but not yet given out
        self.labelled: bool | None = None
        self.shape: tuple[Any, ...] | None = None
        self.position = Position()

    @property
    def stateful(self) -> bool:
        """Whether the iterator can go on from anywhere."""
        return all(hasattr(self._iterator, name) for name in ("get_state", "set_state"))

    def peek(self) -> Piece | None:
        """Return the batch that comes next without taking it, None at the end.

        Raises:
            TypeError, ValueError: it holds no images, images of another size than before, or labels
                that do not fit.
        """
        while self._batch is None:
            state = None
            if self.stateful:
                state = json.dumps(_plain(self._iterator.get_state()))  # type: ignore[attr-defined]
            try:
                batch = next(self._iterator)
            except StopIteration:
                return None
            self._take(self._checked(batch), state)
        return self._batch

    def piece(self, size: int) -> Piece | None:
        """Return the next images, `size` at most and of one batch; None at the end."""
        batch = self.peek()
        if batch is None:
            return None
        images, labels = batch
        rest = None if labels is None else labels[size:]
        self._batch = Piece(images[size:], rest) if len(images) > size else None
        return Piece(images[:size], None if labels is None else labels[:size])

    @property
    def whole(self) -> bool:
        """Whether all that was read was given out."""
        return self._batch is None

    def resume(self, position: Position) -> None:
        """Go to a position of an earlier run.

        Raises:
            ValueError: the batches are not those of that run.
        """
        if self.peek() is None or self.position.first != position.first:
            raise ValueError(_other("the first batch differs"))
        if self.stateful and position.state is not None:
            self._iterator.set_state(_bytes(json.loads(position.state)))  # type: ignore[attr-defined]
            # What comes now is the last batch of that run once more.
            self.position, self._batch = position._replace(batches=position.batches - 1), None
            if self.peek() is None or self.position.last != position.last:
                raise ValueError(_other(f"batch {position.batches - 1} differs"))
            self.position = position
        else:
            while self.position.batches < position.batches:
                self._batch = None
                if self.peek() is None:
                    raise ValueError(_other(f"they end after {self.position.batches} batches"))
            if self.position.all != position.all:
                raise ValueError(_other(f"the first {position.batches} batches are not the same"))
        self._batch = None

    def _take(self, batch: Piece, state: str | None) -> None:
        checksum = _checksum(batch)
        before = self.position
        count = len(batch.images)
        self._batch = batch if count else None
        self.position = Position(
            before.batches + 1,
            before.images + count,
            before.first if before.batches else checksum,
            checksum,
            zlib.crc32(checksum.to_bytes(4, "little"), before.all),
            state,
        )

    def _checked(self, batch: Any) -> Piece:
        number = self.position.batches
        labels = None
        if isinstance(batch, Mapping):
            labels = batch.get("label")
            if "image" not in batch:
                raise ValueError(
                    f"batch {number} has the entries {sorted(batch)}; expected 'image'"
                )
            batch = batch["image"]
        images = np.asarray(batch)
        own = self._model.input_shape
        if images.ndim != 4:
            raise ValueError(
                f"batch {number} has shape {images.shape}; "
                "expected (batch, height, width, channels)"
            )
        if images.dtype == np.uint8:
            preprocessing = self._model.preprocessing
            if preprocessing is None or images.shape[1:] != preprocessing.input_shape:
                raise ValueError(
                    f"batch {number} holds uint8 pictures of {images.shape[1:]}; they have to be "
                    f"as the model takes them, {own}, and it has to know its preprocessing"
                )
        elif images.dtype.kind != "f" and images.dtype.name != "bfloat16":
            raise TypeError(f"batch {number} has dtype {images.dtype}; expected floats or uint8")
        elif len(images) and not np.isfinite(images).all():
            raise ValueError(f"batch {number} holds NaN or infinity")
        if own is not None and images.shape[-1] != own[-1]:
            raise ValueError(
                f"batch {number} has {images.shape[-1]} channels; "
                f"model {self._model.name!r} takes {own[-1]}"
            )
        described = (*images.shape[1:], images.dtype.name)
        if self.shape is not None and described != self.shape:
            raise ValueError(
                f"batch {number} holds images of {described[:3]}, {described[3]}; "
                f"those before were {self.shape[:3]}, {self.shape[3]}"
            )
        self.shape = described
        if not self.wants_labels:
            return Piece(images)
        classes = self.classes(images.shape[1:])
        return Piece(images, self._checked_labels(labels, len(images), classes))

    def classes(self, image_shape: tuple[int, ...]) -> int:
        """Return the number of the model's classes."""
        if self._classes is None:
            self._classes = classes_of(self._model, image_shape)
        return self._classes

    def _checked_labels(self, labels: Any, count: int, classes: int) -> np.ndarray | None:
        """Return labels as rows of ones and zeros."""
        number = self.position.batches
        if self.labelled is not None and self.labelled != (labels is not None):
            has, had = ("labels", "none") if labels is not None else ("no labels", "some")
            raise ValueError(f"batch {number} has {has}; those before had {had}")
        self.labelled = labels is not None
        if labels is None:
            return None
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iub":
            raise TypeError(f"batch {number} has labels of dtype {labels.dtype}; expected integers")
        if labels.shape == (count,):
            if count and not 0 <= labels.min() <= labels.max() < classes:
                raise ValueError(
                    f"batch {number} has labels from {labels.min()} to {labels.max()}; "
                    f"model {self._model.name!r} has the classes 0 to {classes - 1}"
                )
            return (np.arange(classes)[None] == labels[:, None]).astype(np.float32)
        if labels.shape != (count, classes):
            raise ValueError(
                f"batch {number} has labels of shape {labels.shape}; expected ({count},), a class "
                f"each, or ({count}, {classes}), ones and zeros"
            )
        return (labels == 1).astype(np.float32)


def classes_of(model: Model, image_shape: tuple[int, ...]) -> int:
    """Return the number of a model's classes.

    Args:
        model: any model.
        image_shape: (H, W, C).

    Raises:
        ValueError: an image's logits are no list of numbers.

    Example:
        >>> from jaxplain.models import load_model
        >>> classes_of(load_model("digits"), (28, 28, 1))
        10
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shape = jax.eval_shape(lambda m, x: m(x), model, image).shape
    if len(shape) != 2:
        raise ValueError(f"the logits of an image have shape {shape[1:]}; expected (classes,)")
    return shape[1]


def _checksum(batch: Piece) -> int:
    """A checksum of a batch's shape and of numbers spread over it."""
    images, labels = batch
    flat = images.reshape(-1)
    sample = np.ascontiguousarray(flat[:: max(1, flat.size // _SAMPLE)])
    shape = zlib.crc32(str(images.shape).encode())
    found = zlib.crc32(sample.view(np.uint8).data, shape)
    return found if labels is None else zlib.crc32(np.ascontiguousarray(labels).data, found)


def _other(what: str) -> str:
    return (
        f"the checkpoint is of other data: {what}. Give the same batches in the same order, or "
        "another folder"
    )


def _plain(state: Any) -> Any:
    """An iterator's state as JSON; bytes become text."""
    return {"bytes": state.decode("latin-1")} if isinstance(state, bytes) else {"plain": state}


def _bytes(told: Any) -> Any:
    return told["bytes"].encode("latin-1") if "bytes" in told else told["plain"]
