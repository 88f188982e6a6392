"""What is behind the flower: a wall, a table, the pot's shadow and a clutter of coloured things."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from jaxplain.data.canvas import Colour, fill_smooth, hsv, shades
from jaxplain.data.plant import Pot


def backdrop(
    random: np.random.Generator, size: int, pot: Pot, clutter: Sequence[Colour], light: float
) -> np.ndarray:
    """A background (S, S, 3) float32 in 0..255, with one thing for every colour in `clutter`.

    The numbers taken from `random` do not depend on `size` or on the colours.
    """
    horizon = random.uniform(0.66, 0.86)
    wall, table = _surface(random, size), _surface(random, size)
    edge = np.clip(np.arange(size, dtype=np.float32) + np.float32(1 - horizon * size), 0, 1)
    mixed = wall + edge[:, None, None] * (table - wall)
    scene = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    _strew(random, scene, clutter)
    blur = random.uniform(0.0, 0.011) * size
    picture = scene.astype(np.float32)
    if blur > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    picture *= _shadow(size, pot, light, random.uniform(0.3, 0.6))
    return picture


def _surface(random: np.random.Generator, size: int) -> np.ndarray:
    """A muted surface (S, S, 3) float32: a gradient between four tones, with texture."""
    hue, value = random.uniform(0, 360), random.uniform(0.35, 0.92)
    shift, saturation, light = random.uniform((-25, 0.02, 0.8), (25, 0.34, 1.08), (4, 3)).T
    tones = [hsv(*tone) for tone in zip(hue + shift, saturation, value * light, strict=True)]
    surface = _spread(np.array(tones).reshape(2, 2, 3), size, cv2.INTER_LINEAR)

    kind, amount = int(random.integers(4)), random.uniform(0.03, 0.1)
    coarse, fine = random.standard_normal((7, 7)), random.standard_normal((28, 28))
    phase, period = random.uniform(0, 1), random.uniform(0.05, 0.16)
    angle = random.uniform(0, math.pi)
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    if kind == 0:  # plaster: blotches
        texture = _spread(coarse, size) + np.float32(0.6) * _spread(fine, size)
    elif kind == 1:  # wood: noise drawn out sideways
        grain = np.float32(0.9) * _spread(fine[:, :3], size)
        texture = np.float32(0.4) * _spread(coarse, size) + grain
    elif kind == 2:  # wallpaper: soft stripes
        turns = axis * np.float32(2 * np.pi / period)
        across, down = turns * np.float32(math.cos(angle)), turns * np.float32(math.sin(angle))
        texture = np.sin(across[None, :] + down[:, None] + np.float32(2 * np.pi * phase))
    else:  # tiles: dark joints in a square grid
        joint = 1 - 2 * ((axis / np.float32(2 * period) + np.float32(phase)) % 1 < 0.1)
        blotches = np.float32(0.4) * _spread(coarse, size)
        texture = np.minimum(joint[None, :], joint[:, None]).astype(np.float32) + blotches
    surface *= (1 + np.float32(amount) * texture)[..., None]
    return surface


def _spread(grid: np.ndarray, size: int, interpolation: int = cv2.INTER_CUBIC) -> np.ndarray:
    """A coarse grid, smoothly enlarged to (S, S)."""
    return cv2.resize(grid.astype(np.float32), (size, size), interpolation=interpolation)


_TURN = 2 * np.pi
_ANGLES = np.arange(28) * (_TURN / 28)
_ROUND = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def _polygon(corners: int) -> np.ndarray:
    """The distance of a regular polygon's edge from its centre, at `_ANGLES`."""
    step = _TURN / corners
    return np.cos(step / 2) / np.cos(_ANGLES % step - step / 2)


_SHAPES = np.stack([np.ones(28), _polygon(3), _polygon(4), _polygon(5), _polygon(7)])


def _strew(random: np.random.Generator, scene: np.ndarray, colours: Sequence[Colour]) -> None:
    """Paints one thing of each colour, in three tones, anywhere in the scene (S, S, 3) uint8."""
    count = len(colours)
    places = random.uniform(0, 1, (count, 1, 2))
    turns = random.uniform(0, _TURN, count)
    radii = random.uniform(0.035, 0.105, (count, 1, 1))
    longer = random.uniform(1.0, 1.4, count)
    shapes = radii * _SHAPES[random.integers(len(_SHAPES), size=count)][..., None] * _ROUND
    cosine, sine = np.cos(turns), np.sin(turns)
    axes = np.array([[cosine * longer, sine * longer], [-sine / longer, cosine / longer]])
    shapes = shapes @ axes.transpose(2, 0, 1)
    tones = np.array([1.0, 0.86, 0.45])[:, None, None] * shapes[:, None] + places[:, None]
    light = np.tile((0.8, 1.0, 1.1), count)
    paint = shades(np.repeat(colours, 3, axis=0), light)
    fill_smooth(scene, tones.reshape(-1, *tones.shape[2:]), paint)


def _shadow(size: int, pot: Pot, light: float, depth: float) -> np.ndarray:
    """The soft shadow (S, S, 1) that the pot casts on the table, away from the light."""
    x, y = pot.rim
    below = (x - 0.45 * pot.foot * math.sin(light), y + pot.height - 0.2 * pot.foot)
    ellipse = 1.25 * pot.foot * _ROUND * (1.0, 0.32) + below
    shadow = np.full((size, size), 255, np.uint8)
    fill_smooth(shadow, ellipse[None], np.full((1, 3), 255 * (1 - depth)))
    blurred = cv2.GaussianBlur(shadow.astype(np.float32), (0, 0), 0.016 * size)
    return blurred[..., None] / np.float32(255)
