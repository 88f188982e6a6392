"""Batches of one size for the devices of all processes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from jaxplain.methods.streaming.keeper import Keeper, Kept
from jaxplain.methods.streaming.stream import Piece, Stream
from jaxplain.model import Model
from jaxplain.sharding import AXIS, exchange, local_devices_of, place, processes_of, spread


class Progress(NamedTuple):
    """How far a fit is.

    Attributes:
        images: how many it has seen, in all processes.
        chunks: how many chunks these were.
        resumed: how many of the images an earlier run had seen.
    """

    images: int
    chunks: int
    resumed: int


class ImageType(NamedTuple):
    """What one image is.

    Attributes:
        shape: (H, W, C).
        dtype: its name.
    """

    shape: tuple[int, int, int]
    dtype: str = "float32"

    def batch(self, rows: int) -> jax.ShapeDtypeStruct:
        """Return the shape and dtype of several."""
        return jax.ShapeDtypeStruct((rows, *self.shape), jnp.dtype(self.dtype))

    def like(self, tensor: jax.Array) -> jax.ShapeDtypeStruct:
        """Return the images that a tensor belongs to, lying on a mesh as the tensor does."""

        def spread(tensor: jax.Array) -> jax.Array:
            one = tensor.reshape(tensor.shape[0], -1)[:, :1].astype(self.dtype)
            return jnp.broadcast_to(one[..., None, None], (tensor.shape[0], *self.shape))

        return jax.eval_shape(spread, tensor)


class Batch(NamedTuple):
    """One batch, along the axis of the images.

    Attributes:
        images: (b, H, W, C) floats, or uint8 pictures.
        number: of each image in the whole stream.
        valid: 1 for an image, 0 for what fills up the batch.
        labels: 1 for the classes that an image has, 0 for the others; None if there are none.
    """

    images: Float[Array, "b h w c"] | UInt8[Array, "b h w c"]
    number: Int[Array, " b"]
    valid: Float[Array, " b"]
    labels: Float[Array, "b classes"] | None = None


def as_input(
    model: Model, images: Float[Array, "b h w c"] | UInt8[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Return what the network takes of pictures of its own size; floats are that already.

    Example:
        >>> from jaxplain.models import load_model
        >>> as_input(load_model("digits"), jnp.zeros((1, 28, 28, 1), jnp.uint8)).dtype
        dtype('float32')
    """
    if images.dtype != jnp.uint8:
        return images
    assert model.preprocessing is not None
    black, white = (jnp.asarray(b).reshape(1, 1, 1, -1) for b in model.preprocessing.bounds())
    ink = images.astype(black.dtype) / 255
    ink = ink[..., ::-1] if model.preprocessing.order == "BGR" else ink
    return black + ink * (white - black)


class Feed:
    """The batches of all processes, of one size, on a mesh. All processes call the same methods.

    Args:
        stream: this process's images.
        mesh: with the axis "data".

    Attributes:
        first: the first images of this process; there may be none.
        size: images a batch, of this process.
        image: what an image is.
        classes: how many a label has; None where labels are not wanted.
        images: how many were given out, in all processes.
        resumed: how many of them an earlier run had seen.

    Raises:
        ValueError: no process has an image, or they have images of different shapes.
    """

    def __init__(self, stream: Stream, mesh: Mesh):
        self.stream, self.mesh = stream, mesh
        self.processes = processes_of(mesh)
        self.together = self.processes > 1
        self.first, self.size, self.image = self._first()
        self.classes = stream.classes(self.image.shape) if stream.wants_labels else None
        self.images = self.resumed = self._taken = 0

    def next_batch(self) -> Batch | None:
        """Return the next batch of all processes, None when the last one has no more."""
        piece, error = None, None
        try:
            piece = self.stream.piece(self.size)
        except (TypeError, ValueError, OSError) as raised:
            error = raised
        count = -1 if error else 0 if piece is None else len(piece.images)
        counts = exchange(count) if self.together else np.asarray([count])
        if error:
            raise error
        if counts.min() < 0:
            raise ValueError(f"process {counts.argmin()} cannot read its batches")
        if counts.max() == 0:
            return None
        images = np.zeros((self.size, *self.image.shape), self._dtype())
        labels = self._labels(piece)
        if piece is not None:
            images[:count] = piece.images
        numbers = (self._taken + np.arange(self.size)) * self.processes
        numbers += jax.process_index() if self.together else 0
        self._taken += count
        self.images += int(counts.sum())
        rows = functools.partial(spread, mesh=self.mesh, spec=P(AXIS))
        valid = (np.arange(self.size) < count).astype(np.float32)
        told = None if labels is None else rows(labels)
        return Batch(rows(images), rows(numbers.astype(np.int32)), rows(valid), told)

    def resume(self, keeper: Keeper, kept: Kept) -> None:
        """Go to where a checkpoint was written.

        Raises:
            ValueError: the batches are not those of that run.
        """
        error = None
        try:
            self.stream.resume(kept.position)
        except (TypeError, ValueError, OSError) as raised:
            error = raised
        keeper.agree(error)
        self.images = self.resumed = kept.images
        self._taken = kept.position.images

    def everyone(self, condition: bool) -> bool:
        """Say whether something holds in all processes."""
        return bool(exchange(condition).all()) if self.together else condition

    def everywhere(self, tree: Any) -> Any:
        """Lay arrays on every device of the mesh."""
        if not self.together:
            return jax.device_put(tree, NamedSharding(self.mesh, P()))
        return jax.tree.map(lambda x: place(np.asarray(x), self.mesh, P()), tree)

    def _first(self) -> tuple[np.ndarray, int, ImageType]:
        """Return the first images, the images a batch of this process, and what an image is."""
        piece = self.stream.peek()
        shape = (0, 0, 0, 0) if piece is None else piece.images.shape
        sizes = exchange(shape) if self.together else np.asarray([shape])
        largest = sizes.max(0)
        if largest[0] == 0:
            raise ValueError("batches is empty; expected at least one image")
        own = sizes[sizes[:, 0] > 0]
        if (own[:, 1:] != largest[1:]).any():
            raise ValueError(f"processes have images of different shapes: {own[:, 1:].tolist()}")
        devices = local_devices_of(self.mesh)
        size = -(-int(largest[0]) // devices) * devices
        h, w, c = (int(n) for n in largest[1:])
        first = np.zeros((0, h, w, c), np.float32) if piece is None else piece.images
        dtype = np.dtype(np.float32) if first.dtype == np.uint8 else first.dtype
        image = ImageType((h, w, c), jax.dtypes.canonicalize_dtype(dtype).name)
        return first, size, image

    def _labels(self, piece: Piece | None) -> np.ndarray | None:
        """Return labels of a whole batch; processes without images say nothing against them."""
        if self.classes is None:
            return None
        given = None if piece is None else piece.labels
        # 0: no images, 1: without labels, 2: with labels
        kind = 0 if piece is None else 1 if given is None else 2
        kinds = exchange(kind) if self.together else np.asarray([kind])
        if {1, 2} <= {int(one) for one in kinds}:
            raise ValueError("some processes have labels and some have none")
        if kinds.max() < 2:
            return None
        labels = np.zeros((self.size, self.classes), np.float32)
        if given is not None:
            labels[: len(given)] = given
        return labels

    def _dtype(self) -> Any:
        assert self.stream.shape is not None or self.together
        return self.image.dtype if self.stream.shape is None else self.stream.shape[3]
