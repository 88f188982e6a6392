"""Where float32 decides differently from run to run, and a sweep that is told how to decide.

A gradient of a deep ReLU network depends on which side of zero every ReLU stood and which position
won every maximum. Where two values agree to float32's accuracy, the order of a sum decides, and one
such decision changes the gradient throughout its receptive field.

The references for VGG-16 were computed in float32. They are the gradient in float64 but for nine
decisions, which were found by looking at every unit and window closer to a tie than 1.5e-6 of its
layer's largest value, pulling the change that its flip would make back to the pictures, and fitting
these maps to the difference (torch 2.13 in float64): the fitted factors were 0 or 1.

torch 2.13 in float32 on another processor decides otherwise, too. The largest differences from the
references, over their largest value, with two photographs:

                          torch, float32 again    torch, float64
    gradient              0.046                   0.078
    input x gradient      0.037                   0.090
    guided backprop       0.012                   0.016
    deconvnet             0.079                   0.0082
    integrated gradients  0.015                   0.010
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxplain.trace.rules import At, RuleSet

# Layer and (image, row, column, channel): ReLUs that stood on the other side of zero.
UNITS = (
    ("conv4_1", (0, 6, 19, 461)),
    ("conv4_2", (0, 2, 14, 234)),
    ("conv4_2", (0, 27, 16, 269)),
    ("conv4_2", (0, 22, 18, 420)),
    ("conv5_1", (1, 1, 6, 426)),
)
# Layer, window, and the place in it that won, by row and column.
WINDOWS = (
    ("pool1", (0, 49, 64, 58), (0, 1)),
    ("pool3", (0, 26, 2, 210), (1, 1)),
    ("pool4", (0, 12, 5, 48), (0, 0)),
    ("pool2", (1, 0, 25, 0), (0, 1)),
)

Kind = Literal["gradient", "guided", "deconvnet"]


@dataclasses.dataclass(frozen=True)
class Relu:
    """A ReLU whose gate is turned round at `UNITS`."""

    kind: Kind

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        opened = at.x > 0
        for layer, unit in UNITS:
            if layer == at.site.layer:
                opened = opened.at[unit].set(~opened[unit])
        if self.kind != "gradient":
            arriving = jnp.maximum(arriving, 0)
        return arriving if self.kind == "deconvnet" else jnp.where(opened, arriving, 0)


@dataclasses.dataclass(frozen=True)
class Pool:
    """A pooling over 2x2 whose windows `WINDOWS` another place wins."""

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        _, pull = jax.vjp(lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)), at.x)
        (routed,) = pull(arriving)
        for layer, (image, row, column, channel), (down, right) in WINDOWS:
            if layer == at.site.layer:
                y, x = 2 * row, 2 * column
                routed = routed.at[image, y : y + 2, x : x + 2, channel].set(0)
                routed = routed.at[image, y + down, x + right, channel].set(
                    arriving[image, row, column, channel]
                )
        return routed


def rules(kind: Kind) -> RuleSet:
    """Return the rule set that decides as the references did."""
    return RuleSet(f"{kind}, rerouted", (("relu", Relu(kind)), ("max_pool", Pool())))
