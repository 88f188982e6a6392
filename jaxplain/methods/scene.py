"""Images whose superpixels can be hidden: what is shown instead, and what a network says of it."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxplain import superpixels
from jaxplain.methods.method import check_inputs
from jaxplain.methods.perturbed import perturbed_logits
from jaxplain.model import Model, check_images
from jaxplain.scores import Score, score_fn

MOST = 128
"""Superpixels an image may have where their number is not known to the compiler."""


class Scene(NamedTuple):
    """Images, what hides their superpixels, and what is asked of them.

    Attributes:
        images: (B, H, W, C).
        filling: (B, H, W, C) what hidden pixels show.
        segments: (B, H, W) labels 0 … S - 1.
        targets: (B, T) classes.
        valid: (B, S) one for labels that occur, else zero.
    """

    images: Float[Array, "b h w c"]
    filling: Float[Array, "b h w c"]
    segments: Int[Array, "b h w"]
    targets: Int[Array, "b t"]
    valid: Float[Array, "b s"]


def make_scene(
    images: Float[Array, "b h w c"],
    targets: Int[Array, "b t"],
    segments: Int[Array, "b h w"],
    hide: Any,
    size: int,
) -> Scene:
    """Return the scene of images with at most `size` superpixels each.

    Args:
        images: (B, H, W, C).
        targets: (B, T).
        segments: (B, H, W).
        hide: "mean" for each superpixel's mean colour, a number, or an array that broadcasts to
            `images`.
        size: S.

    Raises:
        ValueError: another word than "mean", or an array that does not broadcast.
    """
    compiled = _scene_of_word if isinstance(hide, str) else _scene_of_array
    return compiled(images, targets, segments, hide, size)


def _scene(
    images: jax.Array, targets: jax.Array, segments: jax.Array, hide: Any, size: int
) -> Scene:
    valid = (areas(segments, size, images.dtype) > 0).astype(images.dtype)
    filling = _filling(images, segments, hide, size)
    # Only compiled code can meet them: labels that there are not, whose answers shall be NaN.
    bad = ((segments < 0) | (segments >= size)).any((1, 2))
    filling = jnp.where(bad[:, None, None, None], jnp.nan, filling)
    return Scene(images, filling, segments, targets, valid)


_scene_of_word = jax.jit(_scene, static_argnums=(3, 4))
_scene_of_array = jax.jit(_scene, static_argnums=4)


def _filling(images: jax.Array, segments: jax.Array, hide: Any, size: int) -> jax.Array:
    if isinstance(hide, str):
        if hide != "mean":
            raise ValueError(f"hide={hide!r}; expected 'mean', a number or an array")

        def mean(image: jax.Array, labels: jax.Array) -> jax.Array:
            flat = image.reshape(-1, image.shape[-1])
            total = jax.ops.segment_sum(flat, labels.ravel(), size)
            area = jax.ops.segment_sum(jnp.ones_like(flat[:, :1]), labels.ravel(), size)
            return (total / jnp.maximum(area, 1))[labels]

        return jax.vmap(mean)(images, segments)
    value = jnp.asarray(hide, images.dtype)
    try:
        return jnp.broadcast_to(value, images.shape)
    except ValueError:
        raise ValueError(
            f"hide has shape {value.shape}; expected one that broadcasts to {images.shape}"
        ) from None


def areas(segments: Int[Array, "b h w"], size: int, dtype: Any) -> Float[Array, "b s"]:
    """Return the pixels of each superpixel.

    Example:
        >>> areas(jnp.array([[[0, 0, 2]]]), 4, jnp.float32).tolist()
        [[2.0, 0.0, 1.0, 0.0]]
    """

    def of(labels: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(jnp.ones(labels.size, dtype), labels.ravel(), size)

    return jax.vmap(of)(segments)


def paint(values: Array, segments: Int[Array, "b h w"]) -> Array:
    """Return maps on which each superpixel has its value: (B, ..., S) to (B, ..., H, W).

    Example:
        >>> paint(jnp.array([[5.0, 7.0]]), jnp.array([[[1, 0], [0, 0]]])).tolist()
        [[[7.0, 5.0], [5.0, 5.0]]]
    """
    return jax.vmap(lambda v, labels: v[..., labels])(values, segments)


def look(
    model: Model, scene: Scene, kept: Float[Array, "n s"], score: Score
) -> Float[Array, "n b t"]:
    """Return the scores of all targets with only some superpixels shown: one forward run of n · B.

    Args:
        model: any model.
        scene: the images.
        kept: one where a superpixel is shown, zero where it is hidden.
        score: as in `gradient`.
    """
    masks = jax.vmap(lambda labels: kept[:, labels], out_axes=1)(scene.segments)
    logits = perturbed_logits(model, scene.images, masks, scene.filling)
    return _scores(model, logits, scene.targets, score)


def look_at_whole(model: Model, scene: Scene, score: Score) -> Float[Array, "b t"]:
    """Return the scores of all targets for the images as they are."""
    ones = jnp.ones((1, *scene.segments.shape), scene.images.dtype)
    return _scores(model, perturbed_logits(model, scene.images, ones), scene.targets, score)[0]


def _scores(model: Model, logits: jax.Array, targets: jax.Array, score: Score) -> jax.Array:
    flat = logits.reshape(-1, logits.shape[-1])
    of = score_fn(score, multilabel=model.multilabel)
    columns = [of(flat, jnp.tile(t, len(logits))).reshape(logits.shape[:2]) for t in targets.T]
    return jnp.stack(columns, -1)


def check_many(model: Model, images: Any, targets: Any) -> tuple[jax.Array, jax.Array]:
    """Return images and targets (B, T) as arrays, or raise naming what is wrong with them.

    Args:
        model: any model.
        images: (B, H, W, C) floats.
        targets: (B,) classes, or (B, T) for several of each image.

    Raises:
        TypeError, ValueError: as `check_inputs`; no images; what a black box raises.
    """
    images = check_images(images, model)
    if len(images) == 0:
        raise ValueError(f"images have shape {images.shape}; expected at least one")
    if model.black_box and not isinstance(images, Tracer):
        # Called once in the open: what it raises inside compiled code would not be its own words.
        model(images)
    array = targets if isinstance(targets, (jax.Array, np.ndarray)) else np.asarray(targets)
    if array.ndim != 2:
        images, targets = check_inputs(model, images, array)
        return images, targets[:, None]
    if array.shape[1] == 0:
        raise ValueError(f"targets have shape {array.shape}; expected at least one of each image")
    columns = [check_inputs(model, images, array[:, t])[1] for t in range(array.shape[1])]
    return images, jnp.stack(columns, 1)


def find_segments(
    model: Model, images: jax.Array, segments: Any, *, least: int
) -> tuple[jax.Array, int]:
    """Return superpixels (B, H, W) and a number that no image has more of.

    Args:
        model: whose preprocessing says what the images look like.
        images: (B, H, W, C).
        segments: the name of a way to cut (see `superpixels.segment`), or labels.
        least: superpixels that each image must have.

    Raises:
        TypeError, ValueError: as `superpixels.segment` and `superpixels.check_segments`; an image
            of fewer superpixels.
    """
    if isinstance(segments, str):
        superpixels.check_method(segments)
        bare = dataclasses.replace(model, params=())
        found = on_host(
            lambda x: superpixels.segment(np.nan_to_num(x), segments, model=bare, most=MOST),
            jax.ShapeDtypeStruct(images.shape[:3], jnp.int32),
            images,
        )
    elif isinstance(segments, Tracer):
        found = jnp.broadcast_to(segments, images.shape[:3])
    else:
        found = superpixels.check_segments(segments, images.shape[:3])
    if isinstance(found, Tracer):
        return found, MOST
    counts = [len(np.unique(labels)) for labels in np.asarray(found)]
    if counts and min(counts) < least:
        raise ValueError(
            f"segments of image {int(np.argmin(counts))}: there is {min(counts)} superpixel; "
            f"at least {least} are needed"
        )
    return jnp.asarray(found), superpixels.bucket(int(np.max(found, initial=0)) + 1)


def on_host(function: Callable[..., Any], shape: Any, *arrays: jax.Array) -> Any:
    """Call a NumPy function that has no derivative, from compiled code too.

    Args:
        function: takes the arrays.
        shape: what it returns.
        *arrays: each with the batch first.
    """

    def call(*given: Any) -> Any:
        return function(*(np.asarray(array) for array in given))

    if not any(isinstance(array, Tracer) for array in arrays):
        return call(*arrays)
    fixed = [jax.lax.stop_gradient(array) for array in arrays]
    return jax.pure_callback(call, shape, *fixed, vmap_method="sequential")


def check_answers(broken: Int[Array, " b"], count: int) -> None:
    """Raise if copies of an image were answered with numbers that are not finite.

    Args:
        broken: (B,) how many; nothing is raised where it is not known.
        count: how many copies there were.

    Raises:
        ValueError: naming the image and the number.
    """
    if isinstance(broken, Tracer):
        return
    counts = np.asarray(broken)
    if counts.any():
        first = int(counts.argmax())
        raise ValueError(
            f"the model answered {counts[first]} of {count} perturbed copies of image {first} "
            "with NaN or infinity"
        )
