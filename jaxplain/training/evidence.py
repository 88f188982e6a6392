"""Does a flower classifier look at the flower?

An explanation of a classifier that is right for the wrong reason scores badly whatever the method,
so the shipped ones are examined where the truth is known: the same scene painted as another class,
the evidence taken away, the rest taken away, and where the gradient lies.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxplain.data.an8flower import FlowerArrays, dataset_arrays, find_variant, render
from jaxplain.model import Model
from jaxplain.preprocessing import Preprocessing
from jaxplain.training.predict import normalise

_CHUNK = 50
_PATCH = 16


class Evidence(NamedTuple):
    """What a classifier of flowers goes by; shares of the pictures unless said otherwise.

    Attributes:
        accuracy: right on the pictures as they are.
        repainted: right on the same scenes whose discriminative part wears another class: 1 if
            nothing but that part decides.
        greyed: right when the discriminative part has lost its colour: chance (one over the number
            of colours) if its colour is needed.
        transplanted: right when all but the part and a margin comes from another class's picture.
        gradient_inside: share of the gradient's squares that lies on the part.
        area: share of the picture's area that the part covers: what `gradient_inside` would be of
            a gradient without aim.
        drop_inside: mean fall of the class's probability when a grey square of 16 pixels covers the
            part's middle.
        drop_outside: the same, with the square somewhere off the part.
    """

    accuracy: float
    repainted: float
    greyed: float
    transplanted: float
    gradient_inside: float
    area: float
    drop_inside: float
    drop_outside: float


def find_evidence(model: Model, variant: str, *, n: int = 240, seed: int = 0) -> Evidence:
    """Examine a classifier on the first `n` flowers of the test split.

    Args:
        model: one that takes the flowers of `variant`; its preprocessing must not resize.
        variant: "single_6c" or "double_12c".
        n: pictures; at least one of each class.
        seed: of the squares and the transplants.

    Raises:
        ValueError: an unknown variant, too few pictures, or a model without preprocessing.
    """
    classes = len(find_variant(variant).class_names)
    if n < 2 * classes:
        raise ValueError(f"n is {n}; expected at least {2 * classes}, two of each class")
    size = _preprocessing(model).size[0]
    flowers = dataset_arrays(variant, "test", n, size=size)
    random = np.random.Generator(np.random.PCG64(seed))
    look = functools.partial(_probabilities, model)
    plain = look(flowers.images)
    rows = np.arange(n)
    other = (flowers.labels + random.integers(1, classes, n)) % classes
    repainted = [
        render(i, variant=variant, split="test", size=size, label=int(other[i])).image
        for i in range(n)
    ]
    chance = plain[rows, flowers.labels]
    covered = [look(covered_squares(flowers, random, inside=inside)) for inside in (True, False)]
    inside, outside = (np.mean(chance - seen[rows, flowers.labels]) for seen in covered)
    return Evidence(
        accuracy=_right(plain, flowers.labels),
        repainted=_right(look(np.stack(repainted)), other),
        greyed=_right(look(greyed(flowers)), flowers.labels),
        transplanted=_right(look(transplanted(flowers, random)), flowers.labels),
        gradient_inside=_gradient_inside(model, flowers),
        area=float(flowers.masks.mean()),
        drop_inside=float(inside),
        drop_outside=float(outside),
    )


def greyed(flowers: FlowerArrays) -> UInt8[np.ndarray, "n h w 3"]:
    """Return the pictures with the discriminative part, and two pixels around it, in grey."""
    luma = (flowers.images @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    near = np.stack([_grown(mask, 2) for mask in flowers.masks])
    return np.where(near[..., None], luma[..., None], flowers.images)


def transplanted(
    flowers: FlowerArrays, random: np.random.Generator, margin: int = 12
) -> UInt8[np.ndarray, "n h w 3"]:
    """Return the pictures with all that is further than `margin` from the part from other classes.

    What comes from another picture has lost its own evidence (`greyed`), lest there be two.
    """
    donors = greyed(flowers)
    images = flowers.images.copy()
    for row, mask in enumerate(flowers.masks):
        others = np.flatnonzero(flowers.labels != flowers.labels[row])
        far = ~_grown(mask, margin)
        images[row][far] = donors[random.choice(others)][far]
    return images


def covered_squares(
    flowers: FlowerArrays, random: np.random.Generator, *, inside: bool
) -> UInt8[np.ndarray, "n h w 3"]:
    """Return the pictures with a grey square over the middle of the part, or somewhere off it."""
    images = flowers.images.copy()
    size, half = images.shape[1], _PATCH // 2
    for image, mask in zip(images, flowers.masks, strict=True):
        ys, xs = np.nonzero(mask)
        if inside:
            # The pixel of the part that is nearest to its centre of mass.
            nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
            y, x = ys[nearest], xs[nearest]
        else:
            free = ~_grown(mask, half)
            free[:half] = free[-half:] = False
            free[:, :half] = free[:, -half:] = False
            y, x = random.choice(np.argwhere(free))
        top, left = np.clip((y - half, x - half), 0, size - _PATCH)
        image[top : top + _PATCH, left : left + _PATCH] = 128
    return images


def _grown(mask: Bool[np.ndarray, "h w"], by: int) -> Bool[np.ndarray, "h w"]:
    """The mask and all within a square of `by` pixels around it."""
    import cv2

    kernel = np.ones((2 * by + 1, 2 * by + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


def _preprocessing(model: Model) -> Preprocessing:
    if model.preprocessing is None:
        raise ValueError(f"model {model.name!r} has no preprocessing")
    return model.preprocessing


def _right(probabilities: np.ndarray, labels: Int[np.ndarray, " n"]) -> float:
    return float(np.mean(probabilities.argmax(-1) == labels))


def _probabilities(
    model: Model, images: UInt8[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n classes"]:
    parts = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    return np.concatenate([np.asarray(_softmax(model, part)) for part in parts])


@jax.jit
def _softmax(model: Model, images: UInt8[Array, "b h w c"]) -> Float[Array, "b classes"]:
    return jax.nn.softmax(model(normalise(images, _preprocessing(model))))


def _gradient_inside(model: Model, flowers: FlowerArrays) -> float:
    shares = []
    for start in range(0, len(flowers.labels), _CHUNK):
        part = slice(start, start + _CHUNK)
        energy = np.asarray(_energy(model, flowers.images[part], flowers.labels[part]))
        inside = (energy * flowers.masks[part]).sum((1, 2))
        shares.append(inside / np.maximum(energy.sum((1, 2)), np.finfo(np.float32).tiny))
    return float(np.concatenate(shares).mean())


@jax.jit
def _energy(
    model: Model, images: UInt8[Array, "b h w c"], labels: Int[Array, " b"]
) -> Float[Array, "b h w"]:
    """Squares of the gradient of the class's log-probability, summed over channels."""

    def total(inputs: jax.Array) -> jax.Array:
        scores = jax.nn.log_softmax(model(inputs))
        return jnp.take_along_axis(scores, labels[:, None], 1).sum()

    return (jax.grad(total)(normalise(images, _preprocessing(model))) ** 2).sum(-1)
