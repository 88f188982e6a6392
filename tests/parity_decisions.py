"""Where float32 decides differently from run to run, and a network that decides as it is told.

A gradient of a deep ReLU network depends on which side of zero every ReLU stood and which position
won every maximum. Where two values agree to float32's accuracy, the order of a sum decides, and one
such decision changes the gradient throughout its receptive field. The references for VGG-16 were
computed in float32: they are what float64 gives but for such decisions. torch 2.13 in float32 on
another processor decides otherwise, too. The largest differences from the references, over their
largest value, with two photographs:

                          torch, float32 again    torch, float64
    gradient              0.046                   0.078
    input x gradient      0.037                   0.090
    guided backprop       0.012                   0.016
    deconvnet             0.079                   0.0082
    integrated gradients  0.015                   0.010

`decisions_vgg16.npz` says how the references decided, for the photographs and for the sixteen
points of their integrated gradients: for every convolution the units that are nearer to a tie than
float32 can tell, and a value for each, on the side of the tie on which the references stood. Put in
before the ReLU, these values are a change no larger than rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxplain.models.network import Network

POINTS = 16
"""Of the integrated gradients, (point + 1/2) / 16 of the photographs; the next one is the end."""

OUTSIDE = np.iinfo(np.int16).max
"""The image of a unit that fills up a list: there is none of that number."""


class Told(NamedTuple):
    """Values of some units of a convolution, or what is added to them.

    Attributes:
        units: (n, 4) image, row, column and channel.
        values: (n,).
    """

    units: Any
    values: Any


def share(point: int) -> float:
    """Return where a point lies on the line from zero to the photographs."""
    return 1.0 if point == POINTS else (point + 0.5) / POINTS


@functools.cache
def _file() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "data" / "decisions_vgg16.npz") as file:
        return {key: file[key] for key in file.files}


def decisions(point: int) -> dict[str, Told]:
    """Return what each convolution is told at a point, as many units at every one."""
    file = _file()
    found = {}
    for number, layer in enumerate(file["layers"].tolist()):
        rows = np.flatnonzero(file["layer"] == number)
        most = np.bincount(file["point"][rows], minlength=POINTS + 1).max()
        rows = rows[file["point"][rows] == point]
        units, values = np.full((most, 4), OUTSIDE, np.int32), np.zeros(most, np.float32)
        units[: len(rows)], values[: len(rows)] = file["unit"][rows], file["value"][rows]
        found[layer] = Told(jnp.asarray(units), jnp.asarray(values))
    return found


def _run(
    network: Network, variables: Any, images: jax.Array, change: Callable[[str, jax.Array], Any]
) -> jax.Array:
    """Return the logits of a network with `change(layer, output)` for each convolution's output."""

    def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = function(*args, **kwargs)
        convolves = isinstance(context.module, nn.Conv)
        return change(context.module.name, output) if convolves else output

    with nn.intercept_methods(intercept):
        return network.apply(variables, images)


def _added(output: jax.Array, change: Told) -> jax.Array:
    return output.at[tuple(change.units.T)].add(change.values, mode="drop")


@functools.partial(jax.jit, static_argnums=0)
def changes(
    network: Network, variables: Any, images: jax.Array, told: dict[str, Told]
) -> tuple[dict[str, Told], dict[str, jax.Array]]:
    """Return what is to be added to the outputs of the convolutions so that they are as told.

    And how much that is at most, over the largest value of the layer.
    """
    found: dict[str, Told] = {}
    sizes: dict[str, jax.Array] = {}

    def tell(layer: str, output: jax.Array) -> jax.Array:
        units, values = told[layer]
        missing = values - output.at[tuple(units.T)].get(mode="fill", fill_value=0)
        found[layer] = Told(units, jnp.where(units[:, 0] == OUTSIDE, 0, missing))
        sizes[layer] = jnp.abs(found[layer].values).max() / jnp.abs(output).max()
        return _added(output, found[layer])

    _run(network, variables, images, tell)
    return found, sizes


@dataclasses.dataclass(frozen=True)
class Decided:
    """`apply` of a network whose parameters say what is added to its convolutions' outputs."""

    network: Network

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        """Return the logits. `params`: {"variables": the network's, "changes": of `changes`}."""

        def add(layer: str, output: jax.Array) -> jax.Array:
            return _added(output, params["changes"][layer])

        return _run(self.network, params["variables"], images, add)
