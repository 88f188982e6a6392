"""A potted flower: its shape, grown at random, and its painting on a canvas in given colours.

Shape and colours are kept apart, so that one flower can be painted in the colours of any class and every
pixel outside the recoloured part stays what it was.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxplain.data.canvas import Canvas, Colour, shade

Points = np.ndarray  # (P, 2): x and y as fractions of the picture's side

_SOIL: Colour = (74, 52, 38)


@dataclass(frozen=True)
class Petal:
    """One petal: its outline at length 1 along x from the head's centre, and how it sits on the head."""

    outline: Points
    angle: float
    length: float
    light: float


@dataclass(frozen=True)
class Leaf:
    """One leaf: the halves on either side of its midrib, and the midrib."""

    halves: tuple[Points, Points]
    rib: Points
    light: float
    behind: bool


@dataclass(frozen=True)
class Pot:
    """The pot: half widths at rim and foot, heights, the flattening of its circles, an optional band.

    `rim` is the centre of its upper circle; `band` is a range of the body's height, 0 at the rim.
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
    """A potted flower's shape. `tilt` (2, 2) maps the unit disc to the flower head, seen at an angle."""

    head: tuple[float, float]
    radius: float
    tilt: np.ndarray
    petals: tuple[Petal, ...]
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
    lowest, highest = 0.015 + radius, 0.985 - radius
    head = (
        min(max(x + uniform(-0.17, 0.17), lowest), highest),
        max(y - uniform(0.32, 0.44) * scale, lowest),
    )
    turn = _rotation(uniform(0, math.pi))
    middle = ((x + head[0]) / 2 + uniform(-0.09, 0.09), (y + head[1]) / 2 + uniform(-0.04, 0.04))
    stem = _bezier((x + uniform(-0.02, 0.02), y + 0.005), middle, head, 24)
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


def _rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _bezier(start, control, end, stations: int) -> Points:
    """`stations` points of the quadratic Bézier curve."""
    t = np.linspace(0.0, 1.0, stations)[:, None]
    return (
        (1 - t) ** 2 * np.asarray(start)
        + 2 * t * (1 - t) * np.asarray(control)
        + t**2 * np.asarray(end)
    )


def _normals(curve: Points) -> Points:
    """Unit normals of a curve at its stations, to the right of its direction on the screen."""
    along = np.gradient(curve, axis=0)
    along /= np.hypot(along[:, :1], along[:, 1:])
    return np.stack([-along[:, 1], along[:, 0]], axis=1)


def _ribbon(curve: Points, left: np.ndarray, right: np.ndarray) -> Points:
    """The outline of a band from `left` to `right` of a curve, as multiples of its normals."""
    normals = _normals(curve)
    return np.concatenate(
        [curve + left[:, None] * normals, (curve + right[:, None] * normals)[::-1]]
    )


def _petals(random: np.random.Generator) -> tuple[Petal, ...]:
    """One or two rings of petals of one kind, the back ring first."""
    count = int(random.integers(5, 13))
    kind = int(random.integers(4))
    rings = 2 if random.uniform() < 0.45 else 1
    first = random.uniform(0, 2 * math.pi)

    t = (1 - np.cos(np.linspace(0.0, np.pi, 15))) / 2  # dense where outlines bend most
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
    # As wide as the room between neighbours at the widest place, and somewhat more: petals overlap.
    room = 0.66 * math.tan(math.pi / count)
    half = min(room * random.uniform(1.0, 1.35), 0.44) * width / width.max()
    outline = np.stack([np.append(along, along[-2:0:-1]), np.append(half, -half[-2:0:-1])], axis=1)

    petals = []
    for ring in range(rings):
        reach = 0.75 if ring else 1.0
        for number in range(count):
            wider, further, longer = random.normal(0, 0.04, 3)
            petals.append(
                Petal(
                    outline=outline * (1.0, 1.0 + 2 * wider),
                    angle=first + 2 * math.pi * (number + ring / 2) / count + further,
                    length=reach * min(1.0, 0.96 + longer),
                    light=(1.06 if ring else 0.95) + random.uniform(-0.05, 0.05),
                )
            )
    return tuple(petals)


def _florets(random: np.random.Generator) -> Points:
    """Dots in the golden-angle spiral of a daisy's heart, in the unit disc."""
    number = np.arange(int(random.integers(16, 30)))
    distance = 0.86 * np.sqrt((number + 0.5) / len(number))
    angle = 2.39996 * number + random.uniform(0, 2 * math.pi)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)


def _leaves(random: np.random.Generator, stem: Points, scale: float) -> tuple[Leaf, ...]:
    """Two to four leaves, left and right of the stem in turn."""
    count = int(random.integers(2, 5))
    side = random.choice((-1, 1))
    stations = np.linspace(0.04, 0.5, count) + random.uniform(-0.03, 0.05, count)
    leaves = []
    for station in stations:
        root = stem[int(station * (len(stem) - 1))]
        length = random.uniform(0.15, 0.24) * scale
        rise = random.uniform(0.35, 1.0)
        out = np.array([side * math.cos(rise), -math.sin(rise)])
        tip = root + length * out + (0.0, length * random.uniform(0.0, 0.35))
        rib = _bezier(root, root + 0.6 * length * out + (0.0, -0.25 * length), tip, 14)
        t = np.linspace(0.0, 1.0, 14)
        half = random.uniform(0.14, 0.22) * length * np.sin(np.pi * t**0.8) ** 0.9
        nothing = np.zeros_like(half)
        vein = 0.035 * length * (1 - t)
        leaves.append(
            Leaf(
                halves=(_ribbon(rib, half, nothing), _ribbon(rib, nothing, -half)),
                rib=_ribbon(rib, vein, -vein),
                light=random.uniform(0.9, 1.08),
                behind=random.uniform() < 0.5,
            )
        )
        side = -side
    return tuple(leaves)


def _paint_leaf(leaf: Leaf, colour: Colour, canvas: Canvas) -> None:
    canvas.polygon(leaf.halves[0], shade(colour, 0.82 * leaf.light))
    canvas.polygon(leaf.halves[1], shade(colour, leaf.light))
    canvas.polygon(leaf.rib, shade(colour, 1.3))


def _paint_stem(plant: Plant, colour: Colour, canvas: Canvas, *, marked: bool) -> None:
    """A round stem: dark at its edges, brightest on the side of the light."""
    half = plant.stem_width / 2 * np.linspace(1.08, 0.88, len(plant.stem))
    middle = 0.4 * plant.light
    for width, light in ((1.0, 0.74), (0.72, 0.9), (0.42, 1.03)):
        centre = -middle * (1 - width)
        outline = _ribbon(plant.stem, (centre + width) * half, (centre - width) * half)
        canvas.polygon(outline, shade(colour, light), marked=marked)


# A petal is a dark edge, the body, a bright middle towards the tip, a shaded base and a crease:
# the outline's x is mapped to a + b x, its y to c y, and painted with light d.
_PETAL_TONES = (
    (0.0, 1.0, 1.0, 0.74),
    (0.02, 0.95, 0.85, 0.97),
    (0.4, 0.52, 0.5, 1.07),
    (0.0, 0.5, 0.55, 0.84),
    (0.1, 0.62, 0.06, 0.74),
)


def _paint_petals(plant: Plant, colour: Colour, canvas: Canvas, *, marked: bool) -> None:
    toward = np.array([math.sin(plant.light), -math.cos(plant.light)])
    for petal in plant.petals:
        place = plant.radius * petal.length * plant.tilt @ _rotation(petal.angle)
        facing = 1.0 + 0.1 * float(place[:, 0] @ toward) / plant.radius
        for start, stretch, width, tone in _PETAL_TONES:
            outline = petal.outline * (stretch, width) + (start, 0.0)
            light = min(tone * petal.light * facing, 1.25)
            canvas.polygon(outline @ place.T + plant.head, shade(colour, light), marked=marked)


_CIRCLE = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 40, endpoint=False)), np.sin(a)], axis=1)
_DOT = _CIRCLE[::5]


def _paint_centre(plant: Plant, colour: Colour, canvas: Canvas) -> None:
    place = plant.radius * plant.centre * plant.tilt.T
    toward = 0.12 * np.array([math.sin(plant.light), -math.cos(plant.light)])
    for size, offset, light in ((1.0, 0.0, 0.62), (0.88, 0.5, 0.92), (0.55, 1.5, 1.06)):
        canvas.polygon(
            (size * _CIRCLE + offset * toward) @ place + plant.head, shade(colour, light)
        )
    for number, dot in enumerate(plant.florets):
        tone = 0.7 if number % 2 else 1.25
        canvas.polygon((0.1 * _DOT + dot) @ place + plant.head, shade(colour, tone))


def _paint_pot(pot: Pot, colours: Colours, canvas: Canvas, light: float) -> None:
    """A round pot in upright strips, each as bright as it faces the light, and the soil in its mouth."""
    x, y = pot.rim
    angles = np.linspace(-np.pi / 2, np.pi / 2, 13)

    def wall(colour: Colour, top: float, bottom: float, high: float, low: float) -> None:
        for left, right in zip(angles[:-1], angles[1:], strict=True):
            facing = 0.62 + 0.5 * max(0.0, math.cos((left + right) / 2 - light))
            corners = [
                (x + half * math.sin(angle), level + pot.flattening * half * math.cos(angle))
                for half, level, pair in ((top, high, (left, right)), (bottom, low, (right, left)))
                for angle in pair
            ]
            canvas.polygon(np.array(corners), shade(colour, facing))

    foot = y + pot.height - pot.flattening * pot.foot
    shoulder = y + pot.rim_height

    def at(part: float) -> tuple[float, float]:
        """Half width and height of the body, `part` of the way from its rim to its foot."""
        return pot.top + part * (pot.foot - pot.top), shoulder + part * (foot - shoulder)

    wall(colours.pot, *_pair(at(0.0), at(1.0)))
    if pot.band is not None:
        wall(colours.band, *_pair(at(pot.band[0]), at(pot.band[1])))
    wall(shade(colours.pot, 0.7), *_pair(at(0.0), at(0.1)))
    lip = 1.1 * pot.top
    wall(colours.pot, lip, lip, y, shoulder)
    flat = np.array([1.0, pot.flattening])
    canvas.polygon(lip * _CIRCLE * flat + pot.rim, shade(colours.pot, 1.12))
    canvas.polygon(0.86 * lip * _CIRCLE * flat + pot.rim, _SOIL)
    canvas.polygon(0.8 * lip * (_CIRCLE * 0.95 + (0.0, 0.12)) * flat + pot.rim, shade(_SOIL, 0.75))


def _pair(
    upper: tuple[float, float], lower: tuple[float, float]
) -> tuple[float, float, float, float]:
    return upper[0], lower[0], upper[1], lower[1]
