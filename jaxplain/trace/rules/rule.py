"""What a rule is, what it sees of a site, and which sites get which rule."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxplain.trace.compounds import NORMALIZATION
from jaxplain.trace.sites import Site


class Relevance(NamedTuple):
    """Relevance at a site's input, where a rule gives it directly."""

    value: jax.Array


@dataclasses.dataclass(frozen=True)
class At:
    """A site with its values, as a rule sees it.

    Attributes:
        site: what it is.
        x: its input.
        out: its output; of an affine site in the layout of the product.
        weight: of an affine site, the weights with scale folded in; else None.
        bias: of an affine site, the shift, broadcastable to `out`; else None.
        linear: of an affine site, (x, w) -> x . w.
        input_axis: of an affine site, the axis of the input's channels, if there is exactly one.
        back: of a plain convolution, (signal, w) -> T_w(signal) in a form that is fast in loops.
        params: what the site's first equation is told: strides, padding and the like.
    """

    site: Site
    x: jax.Array
    out: jax.Array
    weight: Any = None
    bias: Any = None
    linear: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    input_axis: int | None = None
    back: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def product(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """Return x . w."""
        assert self.linear is not None
        return self.linear(x, weight)

    def transpose(self, signal: jax.Array, weight: jax.Array) -> jax.Array:
        """Return T_w(signal)."""
        if self.back is not None:
            return self.back(signal, weight)
        _, pull = jax.vjp(lambda x: self.product(x, weight), self.x)
        return pull(signal)[0]


@runtime_checkable
class Rule(Protocol):
    """A hashable function of a site and of what arrives at its output.

    One that has a method `covers(site)` is for the sites of which that is true; the others of its
    kind keep their own derivative.
    """

    def __call__(self, at: At, arriving: jax.Array) -> jax.Array | Relevance:
        """Return what leaves at the site's input."""
        ...


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """Which rule each kind of site gets. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        name: what reports call it.
        rules: (kind, rule) pairs. Kinds are those of `jaxplain.trace.sites.Site`, or names of
            primitives ("tanh").
        transparent: kinds whose own derivative is what this rule set means.
        require: in strict mode at least one site must be of one of these kinds.
        relevance: whether relevance is propagated (and returned) instead of a cotangent.
        first: rule of the affine sites before which there is no other, or None.
        last: rule of the affine sites behind which there is no other, or None.

    Example:
        >>> from jaxplain import Model, RuleSet, backpropagate
        >>> def halved(at, arriving):
        ...     return arriving / 2
        >>> rules = RuleSet("halved", (("relu", halved),), require=("relu",))
        >>> model = Model.from_function(lambda _, x: jax.nn.relu(x).sum((1, 2)))
        >>> found = backpropagate(model, jnp.ones((1, 2, 2, 1)), jnp.array([0]), rules)
        >>> found.attribution[0, ..., 0].tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """

    name: str
    rules: tuple[tuple[str, Rule], ...]
    transparent: frozenset[str] = frozenset({"max_pool", NORMALIZATION})
    require: tuple[str, ...] = ()
    relevance: bool = False
    first: Rule | None = None
    last: Rule | None = None

    def rule(self, site: Site) -> Rule | None:
        """Return the rule of a site, or None where its own derivative holds.

        Example:
            >>> from jaxplain.trace.rules import GUIDED_BACKPROP, NO_RULES
        >>> relu = Site("relu", equations=(4,), input=3, output=5)
            >>> GUIDED_BACKPROP.rule(relu), NO_RULES.rule(relu)
            (Guided(), None)
        """
        affine = site.kind in ("conv", "dense")
        if affine and site.first and self.first is not None:
            return self.first
        if affine and site.last and self.last is not None:
            return self.last
        rule = dict(self.rules).get(site.kind)
        covers = getattr(rule, "covers", None)
        return rule if covers is None or covers(site) else None


def stabilise(z: jax.Array, epsilon: float) -> jax.Array:
    """Return z + epsilon sign(z), with sign(0) = 1.

    Example:
        >>> stabilise(jnp.array([0.0, -2.0]), 0.5).tolist()
        [0.5, -2.5]
    """
    return z + jnp.where(z >= 0, epsilon, -epsilon).astype(z.dtype)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return the quotient, and 0 where the denominator is 0.

    Example:
        >>> divide(jnp.array([1.0, 1.0]), jnp.array([4.0, 0.0])).tolist()
        [0.25, 0.0]
    """
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))
