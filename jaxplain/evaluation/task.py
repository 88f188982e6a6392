"""What is evaluated: images with their evidence, checked once and handed out in batches."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.evaluation.pointing import scaled_tolerance, within


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some of the images, in the one shape that all batches have.

    Attributes:
        number: 0, 1 …
        images: (B, H, W, C).
        targets: (B,).
        masks: (B, H, W).
        near: (B, H, W), the pixels that hit in the pointing game with its tolerance.
        kept: how many of them count; the others fill up the last batch.
    """

    number: int
    images: jax.Array
    targets: jax.Array
    masks: jax.Array
    near: jax.Array
    kept: int


@dataclasses.dataclass(frozen=True)
class Task:
    """The images that all methods explain, and how their maps are measured.

    Attributes:
        images: (N, H, W, C) floats.
        targets: (N,) integers.
        masks: (N, H, W) booleans.
        near: (N, H, W) booleans, the pixels that hit in the pointing game with its tolerance.
        batch_size: B, at most N.
        thresholds: of the IoU curves.
        tolerance: of the pointing game, in pixels.
    """

    images: jax.Array | np.ndarray
    targets: np.ndarray
    masks: jax.Array | np.ndarray
    near: np.ndarray
    batch_size: int
    thresholds: tuple[float, ...]
    tolerance: float

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.targets)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.images.shape[1], self.images.shape[2]

    def batches(self) -> Iterator[Batch]:
        """Yield all images in order; the last batch is filled up with its own last image."""
        for number, start in enumerate(range(0, self.count, self.batch_size)):
            places = np.minimum(np.arange(start, start + self.batch_size), self.count - 1)
            yield Batch(
                number,
                jnp.asarray(self.images[places]),
                jnp.asarray(self.targets[places], jnp.int32),
                jnp.asarray(self.masks[places]),
                jnp.asarray(self.near[places]),
                min(self.batch_size, self.count - start),
            )


def make_task(
    images: Any,
    targets: Any,
    masks: Any,
    *,
    class_names: Sequence[str] = (),
    batch_size: int,
    thresholds: Sequence[float],
    tolerance: float | int | None,
) -> Task:
    """Check what `evaluate` was given; its docstring lists the errors.

    Example:
        >>> task = make_task(
        ...     np.zeros((3, 4, 4, 1)), [0, 1, 1], np.zeros((3, 4, 4), bool),
        ...     batch_size=2, thresholds=(0.0, 1.0), tolerance=None,
        ... )
        >>> [batch.kept for batch in task.batches()]
        [2, 1]
    """
    images, targets, masks = (
        array if isinstance(array, jax.Array | np.ndarray) else np.asarray(array)
        for array in (images, targets, masks)
    )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images are of type {images.dtype}, expected preprocessed floats")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets are of type {targets.dtype}, expected integers")
    if masks.dtype != np.bool_:
        raise TypeError(f"masks are of type {masks.dtype}, expected bool")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"images have shape {images.shape}, expected (images, height, width, channels)"
            " with at least one image"
        )
    for name, array, expected in (
        ("masks", masks, images.shape[:3]),
        ("targets", targets, images.shape[:1]),
    ):
        if array.shape != expected:
            raise ValueError(
                f"{name} have shape {array.shape}, expected {expected} to go with the images"
            )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    targets = np.asarray(targets)
    outside = (targets < 0) | (targets >= (len(class_names) or np.inf))
    if outside.any():
        last = len(class_names) - 1 if class_names else "the number of classes"
        raise ValueError(f"targets hold {targets[outside][0]}, expected classes from 0 to {last}")
    broken = ~np.asarray(jnp.isfinite(images).all((1, 2, 3)))
    if broken.any():
        raise ValueError(f"images[{int(broken.argmax())}] holds NaN or infinity")
    if tolerance is None:
        tolerance = scaled_tolerance((images.shape[1], images.shape[2]))
    return Task(
        images,
        targets,
        masks,
        np.asarray(within(masks, tolerance)),
        min(batch_size, len(images)),
        tuple(float(threshold) for threshold in thresholds),
        float(tolerance),
    )
