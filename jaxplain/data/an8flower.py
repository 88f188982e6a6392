"""Flowers with known evidence: a rendered data set after an8Flower.

An explanation can only be scored where the evidence is known. Oramas et al. render a potted flower
in which one feature, and nothing else, tells the classes apart (an8Flower, §4.3). Their pictures
can no longer be had; these are drawn anew from the paper's description ("an8Flower-like"):

- `single_6c`: the colour of the petals is the class, one of six.
- `double_12c`: a colour *and* the part that wears it is the class: six colours × {petals, stem}.
  The other part looks as it does in nature and never wears a class colour: petals are then white,
  stems green. So exactly one of the two wears a class colour, and the class is well defined.

Everything else is uninformative by construction. A picture is drawn from a generator that knows the
variant, the seed, the split and the index, but not the class: pose, lighting, pot, leaves, the
flower's centre and the clutter behind it are the same whatever the class is, and only then is the
discriminative part painted. Clutter, pots and centres wear class colours too, drawn uniformly from
the six, so that "is there red somewhere?" does not answer. `render(..., label=...)` paints the same
scene as another class, for counterfactual checks of a classifier.

Reference: Oramas, Wang, Tuytelaars, "Visual Explanation by Interpretation: Improving Visual
Feedback Capabilities of Deep Neural Networks", ICLR 2019, §4.3 and Fig. 9 (arXiv:1712.06302).
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jaxplain.data import SPLITS
from jaxplain.data.backdrop import backdrop
from jaxplain.data.canvas import Canvas, Colour, hsv
from jaxplain.data.plant import Colours, grow, paint
from jaxplain.names import unknown

SMALLEST, LARGEST = 32, 2048
"""Sides in pixels between which a flower can be rendered."""

# Hue in degrees, saturation and value. Flower colours; none of them a leaf's green or white.
_PALETTE = {
    "red": (357.0, 0.92, 0.86),
    "orange": (26.0, 0.93, 0.97),
    "yellow": (53.0, 0.86, 0.97),
    "blue": (220.0, 0.82, 0.86),
    "violet": (274.0, 0.72, 0.76),
    "pink": (326.0, 0.58, 0.97),
}
COLOURS = tuple(_PALETTE)
"""The class colours, in the order of their labels."""

PARTS = ("petals", "stem")
"""The parts that can carry the class."""


@dataclass(frozen=True)
class Variant:
    """A data set of flowers: which parts can carry the class."""

    name: str
    parts: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the labels: label = 6 × part + colour."""
        return tuple(f"{colour} {part}" for part in self.parts for colour in COLOURS)


VARIANTS = {
    variant.name: variant
    for variant in (Variant("single_6c", PARTS[:1]), Variant("double_12c", PARTS))
}


class Flower(NamedTuple):
    """One picture with its evidence.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) bool: the pixels of which the visible discriminative part covers at least half.
        box: (y0, x0, y1, x1) in pixels, the tightest box around the mask; y1 and x1 are exclusive.
        label: the class.
        part: "petals" or "stem", the part that carries the class.
    """

    image: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]
    box: tuple[int, int, int, int]
    label: int
    part: str


class FlowerArrays(NamedTuple):
    """Many flowers, stacked; see `Flower`."""

    images: UInt8[np.ndarray, "n h w 3"]
    masks: Bool[np.ndarray, "n h w"]
    boxes: Int[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]


def find_variant(name: str) -> Variant:
    """The variant called `name`.

    Raises:
        ValueError: there is none of that name; the message gives the nearest.

    Example:
        >>> find_variant("double_12c").class_names[6]
        'red stem'
    """
    if name not in VARIANTS:
        raise ValueError(unknown("variant", name, VARIANTS))
    return VARIANTS[name]


def render(
    index: int,
    *,
    variant: str,
    split: str = "train",
    seed: int = 0,
    size: int = 112,
    label: int | None = None,
) -> Flower:
    """Renders flower number `index` of a split.

    The picture depends on the arguments alone: it is the same in any process and in any order.
    Another `size` shows the same scene at another resolution. Labels go round: index 0 is class 0,
    index 1 class 1, and so on, so that any run of indices is balanced.

    Args:
        index: which flower, from 0; there is no last one.
        variant: "single_6c" or "double_12c".
        split: "train", "validation" or "test"; each has its own flowers.
        seed: another seed is another data set.
        size: height and width in pixels, 32 to 2048.
        label: paint the same scene as this class instead of its own.

    Returns:
        The picture, the exact mask of the discriminative part, its box and the class.

    Raises:
        ValueError: an argument is out of range, or the variant or split is unknown.
        TypeError: a number is not an integer.

    Example:
        >>> flower = render(7, variant="double_12c")
        >>> flower.image.shape, flower.mask.shape, flower.part
        ((112, 112, 3), (112, 112), 'stem')
        >>> find_variant("double_12c").class_names[flower.label]
        'orange stem'
    """
    chosen = find_variant(variant)
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    index, seed = _natural("index", index), _natural("seed", seed)
    size = _natural("size", size)
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size must be {SMALLEST} to {LARGEST} pixels, got {size}")
    classes = len(chosen.parts) * len(COLOURS)
    label = index % classes if label is None else _natural("label", label)
    if label >= classes:
        raise ValueError(f"label must be below {classes} for variant {variant!r}, got {label}")

    stream = (list(VARIANTS).index(variant), SPLITS.index(split), index, seed)
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream)))
    plant = grow(random)
    part = chosen.parts[label // len(COLOURS)]
    colours = _colours(random, part, label % len(COLOURS))
    clutter = [_clutter_colour(random) for _ in range(int(random.integers(5, 13)))]
    behind = backdrop(random, size, plant.pot, clutter, plant.light)

    canvas = Canvas(size)
    paint(plant, colours, canvas, marked=part)
    layer = canvas.layer()
    behind *= (1 - layer.alpha)[..., None]
    behind += layer.colour
    image = _photograph(random, behind, plant.light)
    mask = layer.marked >= 0.5
    return Flower(image, mask, tight_box(mask), label, part)


def dataset_arrays(
    variant: str,
    split: str,
    n: int,
    seed: int = 0,
    size: int = 112,
    *,
    start: int = 0,
    workers: int = 1,
) -> FlowerArrays:
    """Renders flowers `start` to `start + n` of a split into arrays.

    Args:
        variant: "single_6c" or "double_12c".
        split: "train", "validation" or "test".
        n: how many.
        seed: another seed is another data set.
        size: height and width in pixels.
        start: index of the first.
        workers: how many processes render at once; the result does not depend on it. With more than
            one, a script needs the usual `if __name__ == "__main__":`.

    Returns:
        images (n, size, size, 3) uint8, masks (n, size, size) bool, boxes (n, 4) int32 as in
        `Flower`, labels (n,) int32.

    Raises:
        ValueError: as in `render`, or n or workers is 0.
        TypeError: a number is not an integer.

    Example:
        >>> flowers = dataset_arrays("single_6c", "test", 6, size=32)
        >>> flowers.images.shape, flowers.labels.tolist()
        ((6, 32, 32, 3), [0, 1, 2, 3, 4, 5])
    """
    if _natural("n", n) == 0:
        raise ValueError("n must be at least 1, got 0")
    indices = range(_natural("start", start), start + n)
    flowers = list(
        render_many(indices, variant=variant, split=split, seed=seed, size=size, workers=workers)
    )
    return FlowerArrays(
        images=np.stack([flower.image for flower in flowers]),
        masks=np.stack([flower.mask for flower in flowers]),
        boxes=np.array([flower.box for flower in flowers], np.int32),
        labels=np.array([flower.label for flower in flowers], np.int32),
    )


def render_many(
    indices: Iterable[int],
    *,
    variant: str,
    split: str = "train",
    seed: int = 0,
    size: int = 112,
    workers: int = 1,
) -> Iterator[Flower]:
    """Renders the flowers of `indices`, in their order, by `workers` processes.

    Args:
        indices: which flowers.
        variant: see `render`.
        split: see `render`.
        seed: see `render`.
        size: see `render`.
        workers: 1 renders in this process, as the flowers are asked for.

    Returns:
        An iterator over flowers; it raises what `render` raises.

    Raises:
        ValueError: workers is 0.
        TypeError: workers is not an integer.

    Example:
        >>> [flower.label for flower in render_many([3, 1], variant="single_6c", size=32)]
        [3, 1]
    """
    one = partial(render, variant=variant, split=split, seed=seed, size=size)
    if _natural("workers", workers) == 0:
        raise ValueError("workers must be at least 1, got 0")
    return map(one, indices) if workers == 1 else _in_processes(one, iter(indices), workers)


def _in_processes(
    one: Callable[[int], Flower], indices: Iterator[int], workers: int
) -> Iterator[Flower]:
    # Not fork: a copy of a process in which JAX runs its threads can hang.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        # In stretches, so that a slow reader does not fill the memory with what is rendered ahead.
        while stretch := list(islice(indices, 256 * workers)):
            yield from pool.imap(one, stretch, chunksize=16)


def tight_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """The tightest box (y0, x0, y1, x1) around a mask, y1 and x1 exclusive.

    Raises:
        ValueError: the mask is empty.

    Example:
        >>> tight_box(np.eye(5, dtype=bool)[1:4])
        (0, 1, 3, 4)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise ValueError("an empty mask has no box")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _natural(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return int(value)


def _colours(random: np.random.Generator, part: str, colour: int) -> Colours:
    """The colours of a plant whose `part` wears class colour `colour`.

    Draws the same numbers whatever the class is: the class only picks among what was drawn.
    """
    jitter = random.uniform(-1, 1, 3)
    white = hsv(random.uniform(20, 80), random.uniform(0.0, 0.1), random.uniform(0.86, 1.0))
    green, leaf = (
        hsv(random.uniform(88, 140), random.uniform(0.45, 0.75), random.uniform(0.4, 0.66))
        for _ in range(2)
    )
    hearts = (_GOLD, _BROWN, _CREAM, _class_colour(random))
    pots = (_TERRACOTTA, _muted(random), _class_colour(random), _class_colour(random))
    worn = _jittered(COLOURS[colour], jitter)
    return Colours(
        petals=worn if part == "petals" else white,
        centre=hearts[int(random.integers(len(hearts)))],
        stem=worn if part == "stem" else green,
        leaves=leaf,
        pot=pots[int(random.integers(len(pots)))],
        band=_clutter_colour(random),
    )


_GOLD, _BROWN, _CREAM = hsv(44.0, 0.85, 0.9), hsv(24.0, 0.6, 0.36), hsv(50.0, 0.25, 0.95)
_TERRACOTTA = hsv(16.0, 0.62, 0.72)


def _jittered(name: str, jitter: np.ndarray) -> Colour:
    """A class colour, moved a little; `jitter` is three numbers in -1..1."""
    hue, saturation, value = _PALETTE[name]
    return hsv(
        hue + 5 * jitter[0],
        min(saturation + 0.07 * jitter[1], 1.0),
        min(value + 0.07 * jitter[2], 1.0),
    )


def _class_colour(random: np.random.Generator) -> Colour:
    return _jittered(COLOURS[int(random.integers(len(COLOURS)))], random.uniform(-1, 1, 3))


def _muted(random: np.random.Generator) -> Colour:
    return hsv(random.uniform(0, 360), random.uniform(0.05, 0.4), random.uniform(0.3, 0.95))


def _clutter_colour(random: np.random.Generator) -> Colour:
    worn, muted = _class_colour(random), _muted(random)
    return worn if random.uniform() < 0.6 else muted


def _photograph(random: np.random.Generator, scene: np.ndarray, light: float) -> np.ndarray:
    """Lights a scene (S, S, 3) from one side, tints it, adds noise; uint8. Works in `scene`."""
    size = len(scene)
    exposure, fall = random.uniform((0.84, 0.0), (1.1, 0.16)).astype(np.float32)
    tint = random.uniform(0.96, 1.04, 3).astype(np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    side, above = np.float32(np.sin(light)), np.float32(np.cos(light))
    scene *= (exposure * (1 + fall * (side * axis[None, :] - above * axis[:, None])))[..., None]
    scene *= tint
    grain = np.float32(random.uniform(0.5, 3.0))
    # As many numbers as there are pixels: after all others, so that no scene depends on its size.
    scene += (grain * random.standard_normal((size, size), np.float32))[..., None]
    return np.clip(np.rint(scene, out=scene), 0, 255, out=scene).astype(np.uint8)
