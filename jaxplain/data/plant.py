"""A potted flower: its shape, grown at random, and its painting on a canvas in given colours.

Shape and colours are kept apart, so that one flower can be painted in the colours of any class and
every pixel outside the recoloured part stays what it was.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxplain.data.canvas import Canvas, Colour, shades

Points = np.ndarray  # (P, 2): x and y as fractions of the picture's side
_Point = np.ndarray | tuple[float, float]

_SOIL: Colour = (74.0, 52.0, 38.0)


@dataclass(frozen=True)
class Petals:
    """N petals of one kind, from back to front.

    `outlines` (N, P, 2) are of length 1 along x from the head's centre; `angles`, `lengths` and
    `light` (N,) tell how each sits on the head.
    """

    outlines: np.ndarray
    angles: np.ndarray
    lengths: np.ndarray
    light: np.ndarray


@dataclass(frozen=True)
class Leaf:
    """One leaf: `parts` (3, P, 2), the halves on either side of its midrib and the midrib."""

    parts: np.ndarray
    light: float
    behind: bool


@dataclass(frozen=True)
class Pot:
    """The pot: half widths at rim and foot, heights, and the flattening of its circles.

    `rim` is the centre of its upper circle. `band` is a range of the body's height, 0 at the rim.
    """

    rim: tuple[float, float]
    top: float
    foot: float
    height: float
    rim_height: float
    flattening: float
    band: tuple[float, float] | None


@dataclass(frozen=True)
class Plant:
    """A potted flower's shape.

    `tilt` (2, 2) maps the unit disc to the flower head, seen at an angle; `centre` is a fraction of
    the head's radius; `light` is the angle from which light comes, 0 above and positive right.
    """

    head: tuple[float, float]
    radius: float
    tilt: np.ndarray
    petals: Petals
    centre: float
    florets: Points
    stem: Points
    stem_width: float
    leaves: tuple[Leaf, ...]
    pot: Pot
    light: float


@dataclass(frozen=True)
class Colours:
    """The colours of a plant's parts."""

    petals: Colour
    centre: Colour
    stem: Colour
    leaves: Colour
    pot: Colour
    band: Colour


def grow(random: np.random.Generator) -> Plant:
    """A plant of random pose, scale, position and petals."""
    uniform = random.uniform
    scale = uniform(0.85, 1.08)
    light = uniform(-1.0, 1.0)

    top, height = uniform(0.105, 0.15) * scale, uniform(0.16, 0.23) * scale
    band_start = uniform(0.15, 0.5)
    band = (band_start, band_start + uniform(0.15, 0.35))
    pot = Pot(
        rim=(uniform(0.32, 0.68), uniform(0.9, 0.97) - height),
        top=top,
        foot=top * uniform(0.6, 0.9),
        height=height,
        rim_height=uniform(0.028, 0.05) * scale,
        flattening=uniform(0.16, 0.28),
        band=band if uniform() < 0.5 else None,
    )
    x, y = pot.rim

    radius = uniform(0.165, 0.23) * scale
    nearest = 0.015 + radius  # of the head's centre to the picture's edge
    head = (
        min(max(x + uniform(-0.17, 0.17), nearest), 1 - nearest),
        max(y - uniform(0.38, 0.5) * scale, nearest),
    )
    turn = _rotation(uniform(0, math.pi))
    middle = ((x + head[0]) / 2 + uniform(-0.09, 0.09), (y + head[1]) / 2 + uniform(-0.04, 0.04))
    stem = _bezier((x + uniform(-0.02, 0.02), y + 0.005), middle, head, _STEM_STATIONS)
    return Plant(
        head=head,
        radius=radius,
        tilt=turn @ np.diag([1.0, uniform(0.7, 1.0)]) @ turn.T,
        petals=_petals(random),
        centre=uniform(0.2, 0.33),
        florets=_florets(random),
        stem=stem,
        stem_width=uniform(0.042, 0.058) * scale,
        leaves=_leaves(random, stem, scale),
        pot=pot,
        light=light,
    )


def paint(plant: Plant, colours: Colours, canvas: Canvas, *, marked: str) -> None:
    """Paints `plant` from back to front; `marked` is the part to mark, "petals" or "stem"."""
    _paint_pot(plant.pot, colours, canvas, plant.light)
    for leaf in plant.leaves:
        if leaf.behind:
            _paint_leaf(leaf, colours.leaves, canvas)
    _paint_stem(plant, colours.stem, canvas, marked=marked == "stem")
    for leaf in plant.leaves:
        if not leaf.behind:
            _paint_leaf(leaf, colours.leaves, canvas)
    _paint_petals(plant, colours.petals, canvas, marked=marked == "petals")
    _paint_centre(plant, colours.centre, canvas)


_STEM_STATIONS = np.linspace(0.0, 1.0, 24)
_LEAF_STATIONS = np.linspace(0.0, 1.0, 14)
_LEAF_WIDTH = np.sin(np.pi * _LEAF_STATIONS**0.8) ** 0.9
_PETAL_STATIONS = (1 - np.cos(np.linspace(0.0, np.pi, 15))) / 2  # dense where outlines bend most
_CIRCLE = np.exp(2j * np.pi * np.arange(40) / 40).view(float).reshape(40, 2)
_DOT = _CIRCLE[::5]


def _rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _bezier(start: _Point, control: _Point, end: _Point, stations: np.ndarray) -> Points:
    """Points of the quadratic Bézier curve."""
    t = stations[:, None]
    return (
        (1 - t) ** 2 * np.asarray(start)
        + 2 * t * (1 - t) * np.asarray(control)
        + t**2 * np.asarray(end)
    )


def _ribbons(curve: Points, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Outlines (K, 2P, 2) of bands beside a curve (P, 2), `left` to `right` (K, P) of it."""
    along = np.empty_like(curve)
    along[1:-1] = curve[2:] - curve[:-2]
    along[0], along[-1] = curve[1] - curve[0], curve[-1] - curve[-2]
    along /= np.hypot(along[:, :1], along[:, 1:])
    normals = along[:, ::-1] * (-1.0, 1.0)
    there = curve + left[..., None] * normals
    back = curve + right[..., None] * normals
    return np.concatenate([there, back[:, ::-1]], axis=1)


def _petals(random: np.random.Generator) -> Petals:
    """One or two rings of petals of one kind, the back ring first."""
    count = int(random.integers(5, 13))
    kind = int(random.integers(4))
    rings = 2 if random.uniform() < 0.45 else 1
    first = random.uniform(0, 2 * math.pi)

    t = _PETAL_STATIONS
    along = t.copy()
    if kind == 0:  # rounded, widest in the outer half, as a primrose's
        width = np.sin(np.pi * t**1.4) ** 0.62
    elif kind == 1:  # pointed, as a lily's
        width = np.sin(np.pi * t**0.95) ** 1.1
    elif kind == 2:  # notched at the tip, as a cherry's
        width = np.sin(np.pi * t**1.8) ** 0.55
        along -= 0.14 * np.clip((t - 0.93) / 0.07, 0, 1) ** 2
    else:  # a strap with a blunt end, as a daisy's
        width = (0.5 + 0.5 * t) * np.minimum(1.0, 2.6 * np.sqrt(t * (1 - t)))
    # As wide as the room between neighbours at the widest place, and somewhat more: they overlap.
    room = 0.66 * math.tan(math.pi / count)
    half = min(room * random.uniform(1.0, 1.35), 0.44) * width / width.max()
    outline = np.stack([np.append(along, along[-2:0:-1]), np.append(half, -half[-2:0:-1])], axis=1)

    ring = np.repeat(np.arange(rings), count)
    number = np.tile(np.arange(count), rings)
    wider, further, longer = random.normal(0, 0.04, (3, len(ring)))
    stretch = np.stack([np.ones_like(wider), 1 + 2 * wider], axis=1)
    return Petals(
        outlines=outline * stretch[:, None],
        angles=first + 2 * np.pi * (number + ring / 2) / count + further,
        lengths=np.where(ring, 0.75, 1.0) * np.minimum(1.0, 0.96 + longer),
        light=np.where(ring, 1.06, 0.95) + random.uniform(-0.05, 0.05, len(ring)),
    )


def _florets(random: np.random.Generator) -> Points:
    """Dots in the golden-angle spiral of a daisy's heart, in the unit disc."""
    count = int(random.integers(16, 30))
    number = np.arange(count)
    distance = 0.86 * np.sqrt((number + 0.5) / count)
    angle = 2.39996 * number + random.uniform(0, 2 * math.pi)
    return distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _leaves(random: np.random.Generator, stem: Points, scale: float) -> tuple[Leaf, ...]:
    """Two to four leaves, left and right of the stem in turn."""
    count = int(random.integers(2, 5))
    side = 1 if random.uniform() < 0.5 else -1
    leaves = []
    for number in range(count):
        station = 0.04 + 0.46 * number / (count - 1) + random.uniform(-0.03, 0.05)
        root = stem[max(0, int(station * len(stem)))]
        length = random.uniform(0.15, 0.24) * scale
        rise = random.uniform(0.35, 1.0)
        out = length * np.array([side * math.cos(rise), -math.sin(rise)])
        tip = root + out + (0.0, length * random.uniform(0.0, 0.35))
        rib = _bezier(root, root + 0.6 * out - (0.0, 0.25 * length), tip, _LEAF_STATIONS)
        half = random.uniform(0.14, 0.22) * length * _LEAF_WIDTH
        vein = 0.035 * length * (1 - _LEAF_STATIONS)
        none = np.zeros_like(half)
        parts = _ribbons(rib, np.stack([half, none, vein]), np.stack([none, -half, -vein]))
        leaves.append(Leaf(parts, random.uniform(0.9, 1.08), random.uniform() < 0.7))
        side = -side
    return tuple(leaves)


def _paint_leaf(leaf: Leaf, colour: Colour, canvas: Canvas) -> None:
    canvas.polygons(leaf.parts, shades(colour, (0.82 * leaf.light, leaf.light, 1.3)))


def _paint_stem(plant: Plant, colour: Colour, canvas: Canvas, *, marked: bool) -> None:
    """A round stem: dark at its edges, brightest on the side of the light."""
    half = plant.stem_width / 2 * (1.08 - 0.2 * _STEM_STATIONS)
    width = np.array([[1.0], [0.72], [0.42]])
    middle = -0.4 * plant.light * (1 - width)
    outlines = _ribbons(plant.stem, (middle + width) * half, (middle - width) * half)
    canvas.polygons(outlines, shades(colour, (0.74, 0.9, 1.03)), marked=marked)


# A petal is a dark edge, the body, a bright middle towards the tip, a shaded base and a crease: the
# outline stretched by (along, across), moved outwards by the third number, lit by the fourth.
_PETAL_TONES = np.array(
    [
        (1.0, 1.0, 0.0, 0.74),
        (0.95, 0.85, 0.02, 0.97),
        (0.52, 0.5, 0.4, 1.07),
        (0.5, 0.55, 0.0, 0.84),
        (0.62, 0.06, 0.1, 0.74),
    ]
)


def _paint_petals(plant: Plant, colour: Colour, canvas: Canvas, *, marked: bool) -> None:
    petals = plant.petals
    cosine, sine = np.cos(petals.angles), np.sin(petals.angles)
    turn = np.stack([np.stack([cosine, sine], axis=1), np.stack([-sine, cosine], axis=1)], axis=1)
    place = plant.radius * petals.lengths[:, None, None] * turn @ plant.tilt.T  # (N, 2, 2)
    shapes = petals.outlines[:, None] * _PETAL_TONES[:, None, :2]
    shapes[..., 0] += _PETAL_TONES[:, None, 2]
    shapes = shapes @ place[:, None] + plant.head  # (N, tones, P, 2)
    facing = 1 + 0.1 * (cosine * math.sin(plant.light) - sine * math.cos(plant.light))
    light = np.minimum(_PETAL_TONES[:, 3] * (petals.light * facing)[:, None], 1.25)
    shapes = shapes.reshape(-1, *shapes.shape[2:])
    canvas.polygons(shapes, shades(colour, light.ravel()), marked=marked)


def _paint_centre(plant: Plant, colour: Colour, canvas: Canvas) -> None:
    place = plant.radius * plant.centre * plant.tilt.T
    toward = 0.12 * np.array([math.sin(plant.light), -math.cos(plant.light)])
    dome = np.stack([size * _CIRCLE + shift * toward for size, shift in _DOME])
    canvas.polygons(dome @ place + plant.head, shades(colour, (0.62, 0.92, 1.06)))
    dots = 0.1 * _DOT + plant.florets[:, None]
    tones = np.where(np.arange(len(dots)) % 2, 0.7, 1.25)
    canvas.polygons(dots @ place + plant.head, shades(colour, tones))


_DOME = ((1.0, 0.0), (0.88, 0.5), (0.55, 1.5))  # radius and shift towards the light


_STRIPS = np.linspace(-np.pi / 2, np.pi / 2, 13)


def _paint_pot(pot: Pot, colours: Colours, canvas: Canvas, light: float) -> None:
    """A round pot in upright strips, bright as they face the light, and soil in its mouth."""
    x, y = pot.rim
    # The strips' edges on a circle of half width 1: (13, 2).
    arc = np.stack([np.sin(_STRIPS), pot.flattening * np.cos(_STRIPS)], axis=1)
    facing = 0.62 + 0.5 * np.maximum(0, np.cos((_STRIPS[:-1] + _STRIPS[1:]) / 2 - light))

    def wall(colour: Colour, upper: tuple[float, float], lower: tuple[float, float]) -> None:
        """Part of the wall between two circles, each given by its half width and height."""
        above, below = (half * arc + (x, level) for half, level in (upper, lower))
        corners = np.stack([above[:-1], above[1:], below[1:], below[:-1]], axis=1)
        canvas.polygons(corners, shades(colour, facing))

    shoulder = y + pot.rim_height
    foot = y + pot.height - pot.flattening * pot.foot

    def at(part: float) -> tuple[float, float]:
        """Half width and height of the body, `part` of the way from its rim to its foot."""
        return pot.top + part * (pot.foot - pot.top), shoulder + part * (foot - shoulder)

    wall(colours.pot, at(0.0), at(1.0))
    if pot.band is not None:
        wall(colours.band, at(pot.band[0]), at(pot.band[1]))
    (shadow,) = shades(colours.pot, (0.7,)).tolist()
    wall(shadow, at(0.0), at(0.1))
    lip = 1.1 * pot.top
    wall(colours.pot, (lip, y), (lip, shoulder))
    mouth = np.stack([_CIRCLE, 0.86 * _CIRCLE, 0.76 * _CIRCLE + (0.0, 0.1)])
    inside = [*shades(colours.pot, (1.12,)), *shades(_SOIL, (1.0, 0.75))]
    canvas.polygons(lip * mouth * (1.0, pot.flattening) + pot.rim, np.stack(inside))
