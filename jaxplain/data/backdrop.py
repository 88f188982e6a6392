"""What stands behind the flower: a wall, a table, the pot's shadow and a clutter of coloured things."""

import math

import cv2
import numpy as np

from jaxplain.data.canvas import Colour, hsv, shade
from jaxplain.data.plant import Pot

_OVERSAMPLE = 2
_SHIFT = 6


def backdrop(
    random: np.random.Generator, size: int, pot: Pot, clutter: list[Colour], light: float
) -> np.ndarray:
    """A background (S, S, 3) float32 in 0..255, one thing for every colour in `clutter`.

    Everything is drawn from `random`, in an order and number that do not depend on `size`.
    """
    side = size * _OVERSAMPLE
    horizon = random.uniform(0.66, 0.86)
    wall, table = _surface(random, side), _surface(random, side)
    rows = (np.arange(side) + 0.5) / side
    edge = np.clip((rows - horizon) * side / 2 + 0.5, 0, 1).astype(np.float32)[:, None, None]
    scene = wall + edge * (table - wall)
    for colour in clutter:
        _thing(random, scene, colour)
    blur = random.uniform(0.0, 0.011) * side
    if blur > 0.4:
        scene = cv2.GaussianBlur(scene, (0, 0), blur)
    scene *= _shadow(side, pot, light, random.uniform(0.3, 0.6))
    return cv2.resize(scene, (size, size), interpolation=cv2.INTER_AREA)


def _surface(random: np.random.Generator, side: int) -> np.ndarray:
    """A muted surface (side, side, 3): a gradient between two tones, with texture."""
    hue, value = random.uniform(0, 360), random.uniform(0.35, 0.92)
    tones = [
        hsv(
            hue + random.uniform(-25, 25),
            random.uniform(0.02, 0.34),
            value * random.uniform(0.8, 1.08),
        )
        for _ in range(4)
    ]
    corners = np.array(tones, np.float32).reshape(2, 2, 3)
    surface = cv2.resize(corners, (side, side), interpolation=cv2.INTER_LINEAR)
    kind, amount = int(random.integers(4)), random.uniform(0.03, 0.1)
    coarse, fine = random.standard_normal((7, 7)), random.standard_normal((28, 28))
    phase, period, angle = (
        random.uniform(0, 1),
        random.uniform(0.05, 0.16),
        random.uniform(0, math.pi),
    )
    if kind == 0:  # plaster: blotches
        texture = _spread(coarse, side) + 0.6 * _spread(fine, side)
    elif kind == 1:  # wood: noise drawn out sideways
        texture = _spread(coarse, side) * 0.4 + 0.9 * _spread(fine[:, :3], side)
    elif kind == 2:  # wallpaper: soft stripes
        axis = (np.arange(side, dtype=np.float32) + 0.5) / side
        across = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
        texture = np.sin(2 * np.pi * (across / np.float32(period) + np.float32(phase)))
    else:  # tiles: joints in a square grid
        axis = ((np.arange(side, dtype=np.float32) + 0.5) / side / (2 * period) + phase) % 1
        joint = np.float32(1) - 2 * (axis < 0.1)
        texture = np.minimum(joint[None, :], joint[:, None]) + 0.4 * _spread(coarse, side)
    surface *= np.clip(1 + np.float32(amount) * texture, 0.5, 1.5)[..., None]
    return surface


def _spread(grid: np.ndarray, side: int) -> np.ndarray:
    """Noise on a coarse grid, smoothly enlarged to (side, side)."""
    return cv2.resize(grid.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)


def _thing(random: np.random.Generator, scene: np.ndarray, colour: Colour) -> None:
    """Paints one shape with a bright and a dark half, anywhere in the scene."""
    place, turn = random.uniform(0, 1, 2), random.uniform(0, 2 * math.pi)
    radius = random.uniform(0.035, 0.105)
    kind, lengthening = int(random.integers(5)), random.uniform(1.0, 1.9)
    bumps = random.uniform(0.75, 1.15, 7)
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    if kind == 0:  # a ball or an egg
        reach = np.ones_like(angles)
    elif kind == 4:  # a pebble
        reach = np.interp(angles, np.linspace(0, 2 * np.pi, 8), np.append(bumps, bumps[0]))
    else:  # a triangle, a square, a pentagon
        step = 2 * np.pi / (kind + 2)
        reach = math.cos(step / 2) / np.cos(angles % step - step / 2)
    shape = (radius * reach)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    shape *= (math.sqrt(lengthening), 1 / math.sqrt(lengthening))
    across = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    for scale, light in ((1.0, 0.8), (0.86, 1.0), (0.45, 1.1)):
        _fill(scene, scale * shape @ across.T + place, shade(colour, light))


def _fill(scene: np.ndarray, points: np.ndarray, colour: Colour) -> None:
    corners = np.rint((points * len(scene) - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(scene, [corners], colour, lineType=cv2.LINE_8, shift=_SHIFT)


def _shadow(side: int, pot: Pot, light: float, depth: float) -> np.ndarray:
    """The soft shadow (side, side, 1) that the pot casts on the table, away from the light."""
    x, y = pot.rim
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ellipse = 1.25 * pot.foot * np.stack([np.cos(angles), 0.32 * np.sin(angles)], axis=1)
    ellipse += (x - 0.45 * pot.foot * math.sin(light), y + pot.height - 0.2 * pot.foot)
    shadow = np.ones((side, side), np.float32)
    _fill(shadow, ellipse, (1 - depth, 0.0, 0.0))
    return cv2.GaussianBlur(shadow, (0, 0), 0.016 * side)[..., None]
