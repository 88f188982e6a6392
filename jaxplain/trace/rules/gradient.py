"""Gradient rules: the cotangent at a site's output becomes the one at its input.

References:
    Springenberg et al. 2015, arXiv:1412.6806 (guided backprop). Zeiler and Fergus 2014,
    arXiv:1311.2901 (deconvnet). Oramas et al. 2019, arXiv:1712.06302 (unit stride).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxplain.trace.resampling import unit_stride_convolution, unit_stride_pooling
from jaxplain.trace.rules.rule import At, RuleSet
from jaxplain.trace.sites import Site


@dataclasses.dataclass(frozen=True)
class Guided:
    """Guided backprop: g_in = g [g > 0] [0 < x < cap]."""

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return the cotangent at the input."""
        opened = at.x > 0
        if at.site.cap < math.inf:
            opened &= at.x < at.site.cap
        return jnp.where(opened, jnp.maximum(arriving, 0), 0)


@dataclasses.dataclass(frozen=True)
class Deconv:
    """Deconvnet: g_in = g [g > 0], whatever the input was."""

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return the cotangent at the input."""
        return jnp.maximum(arriving, 0)


@dataclasses.dataclass(frozen=True)
class UnitStride:
    """A strided site run backwards at stride one, with what arrives resampled to fit.

    Oramas et al. 2019, §3.3, eqs. (2) and (3). A site without a stride keeps its own derivative.
    """

    def covers(self, site: Site) -> bool:
        """Say whether a site has a stride.

        Example:
            >>> UnitStride().covers(Site("conv", (0,), 1, 2, strides=(1, 2)))
            True
        """
        return any(step != 1 for step in site.strides)

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array:
        """Return the cotangent at the input."""
        if at.site.kind == "conv":
            return unit_stride_convolution(arriving, at.weight, at.x, at.params)
        return unit_stride_pooling(arriving, at.x, at.params, largest=at.site.kind == "max_pool")


# Every equation keeps its own derivative: the plain gradient.
NO_RULES = RuleSet("gradient", ())
GUIDED_BACKPROP = RuleSet(
    "guided backprop", (("relu", Guided()), ("relu6", Guided())), require=("relu", "relu6")
)
DECONVNET = RuleSet(
    "deconvnet", (("relu", Deconv()), ("relu6", Deconv())), require=("relu", "relu6")
)


def unit_stride(*, pooling: bool = False) -> RuleSet:
    """Return guided backprop with strided convolutions run backwards at stride one.

    Oramas et al. 2019, §3.3: a stride S sends every signal to one window in S × S, and leaves a
    grid in the map. Here what arrives at a strided convolution is resampled (nearest neighbour) to
    the size that its output would have at stride one, and goes back through that convolution. A
    signal is thereby repeated about S × S times, which scales the map. Without strides the result
    is guided backprop, bit for bit.

    Args:
        pooling: do so in strided pooling, too (maximum and sum, so averages); the authors do not.
            A maximum over windows at stride one then hands each signal to several winners.

    Example:
        >>> unit_stride().rules[-1], unit_stride(pooling=True).rules[-1]
        (('conv', UnitStride()), ('reduce_window_sum', UnitStride()))
    """
    kinds = ("conv", "max_pool", "reduce_window_sum") if pooling else ("conv",)
    return RuleSet(
        "guided backprop at unit stride" + (", pooling too" if pooling else ""),
        (*GUIDED_BACKPROP.rules, *((kind, UnitStride()) for kind in kinds)),
        require=GUIDED_BACKPROP.require,
    )
