"""Audits: which rule every site of a network got, and what no rule covers."""

import dataclasses
from collections.abc import Collection

import jax

from jaxplain.trace.jaxpr import Equation, Program, shape
from jaxplain.trace.rules import SMOOTH, Rule, RuleSet
from jaxplain.trace.sites import LINEAR_KINDS, PRODUCTS, Survey, nonlinearity

OWN = "own derivative"


class UncoveredError(ValueError):
    """The network does something that the rule set does not cover.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxplain import Model, backpropagate, rules
        >>> model = Model.from_function(lambda _, x: jnp.tanh(x).sum((1, 2)))
        >>> try:
        ...     backpropagate(model, jnp.ones((1, 2, 2, 2)), jnp.array([0]), rules.GUIDED_BACKPROP)
        ... except UncoveredError as error:
        ...     print(str(error).splitlines()[0])
        guided backprop does not cover this network:
    """


@dataclasses.dataclass(frozen=True)
class Matched:
    """One line of an audit.

    Attributes:
        layer: where.
        kind: what kind of site.
        rule: the rule it got, or "own derivative".
        shape: shape of the site's output.
        nonnegative: whether its input is proved to be nowhere negative; None inside loops and
            branches, where nothing is known of what comes in.
    """

    layer: str
    kind: str
    rule: str
    shape: tuple[int, ...]
    nonnegative: bool | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Audit:
    """Which rule every site of a network got.

    Attributes:
        rule_set: name of the rule set.
        sites: the sites in evaluation order.
        unused: kinds that the rule set has a rule for and the network lacks.
        uncovered: what the rule set does not cover; empty in strict mode.

    Example:
        >>> print(Audit("guided backprop", (Matched("conv1", "relu", "Guided()", (1, 8, 8, 4)),)))
        guided backprop: 1 of 1 sites got a rule
          conv1  relu        Guided()
    """

    rule_set: str
    sites: tuple[Matched, ...]
    unused: tuple[str, ...] = ()
    uncovered: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, str]]:
        """Return one dictionary of strings a site.

        Example:
            >>> Audit("mine", (Matched("conv1", "relu", "Guided()", (1, 8, 8, 4)),)).rows()
            [{'layer': 'conv1', 'kind': 'relu', 'rule': 'Guided()', 'shape': '1x8x8x4'}]
        """
        return [
            {"layer": s.layer, "kind": s.kind, "rule": s.rule, "shape": "x".join(map(str, s.shape))}
            for s in self.sites
        ]

    def __str__(self) -> str:
        width = max([len(s.layer) for s in self.sites], default=0)
        ruled = sum(s.rule != OWN for s in self.sites)
        lines = [f"{self.rule_set}: {ruled} of {len(self.sites)} sites got a rule"]
        lines += [f"  {s.layer:{width}}  {s.kind:10}  {s.rule}" for s in self.sites]
        lines += [f"  not covered: {u}" for u in self.uncovered]
        return "\n".join(lines)


def inspect(
    program: Program,
    found: Survey,
    rules: RuleSet,
    path: Collection[int],
    whole: Collection[int],
    *,
    strict: bool,
) -> Audit:
    """Audit the equations of `path`, a part of those of `whole`.

    Raises:
        UncoveredError: strict, and something in `path` is not covered or nothing in `whole`
        matched.
    """
    sites, uncovered = _lines(program, found, rules, path)
    kinds = {s.kind for s in sites}
    for end, rule in (("first", rules.first), ("last", rules.last)):
        if rule is not None and end in found.ambiguous:
            uncovered.append(
                f"the {end} layer is one step of a loop, so that it cannot have a rule of its own"
            )
    if strict and uncovered:
        raise UncoveredError(
            f"{rules.name} does not cover this network:\n  "
            + "\n  ".join(uncovered)
            + "\nGive the rule set a rule for it (its name stands first in the line), write the "
            "network with operations that it knows (see jaxplain.rules), or pass strict=False to "
            "use the derivative there."
        )
    if strict and rules.require and not kinds & set(rules.require):
        everywhere = {s.kind for s in _lines(program, found, rules, whole)[0]}
        if not everywhere & set(rules.require):
            raise UncoveredError(
                f"{rules.name} matched nothing: the network has no {' or '.join(rules.require)}"
            )
    unused = tuple(kind for kind, _ in rules.rules if kind not in kinds)
    return Audit(rules.name, tuple(sites), unused, tuple(uncovered))


def _lines(
    program: Program, found: Survey, rules: RuleSet, path: Collection[int]
) -> tuple[list[Matched], list[str]]:
    """List the sites (and those of the loops and branches) and what the rules leave uncovered."""
    sites: list[Matched] = []
    uncovered: list[str] = []
    covered = {kind for kind, _ in rules.rules} | rules.transparent
    # Under relevance rules a layer's derivative is no rule.
    linear = LINEAR_KINDS - {"conv", "dense"} if rules.relevance else LINEAR_KINDS
    for index in sorted(path):
        equation = program.equations[index]
        if index in found.inner or not any(found.is_active(a) for a in equation.inputs):
            continue
        if index in found.sites:
            site = found.sites[index]
            rule = rules.rule(site)
            where = shape(program, site.output)
            sites.append(Matched(site.layer, site.kind, rule_name(rule), where, site.nonnegative))
            if rule is None and site.kind not in covered | linear:
                uncovered.append(f"{site.kind} at {site.layer}{_hint(site.kind, rules)}")
            continue
        if not any(v in found.active for v in equation.outputs):
            continue
        for inside in found.inside.get(index, ()):
            every = range(len(inside.program.equations))
            more, missing = _lines(inside.program, inside.survey, rules, every)
            sites += [
                dataclasses.replace(s, layer=f"{equation.name}: {s.layer}", nonnegative=None)
                for s in more
            ]
            uncovered += missing
        if equation.name not in covered:
            reason = nonlinearity(equation, found) or _unruled(equation, rules)
            if reason is not None:
                where_ = f" in {equation.scope}" if equation.scope else ""
                uncovered.append(f"{equation.name} (equation {index}{where_}) {reason}")
    return sites, uncovered


def _hint(kind: str, rules: RuleSet) -> str:
    """Say which rule sets cover a kind, if others do."""
    if kind not in SMOOTH or rules.relevance:
        return ""
    return " (the relevance rules cover it, such as jaxplain.rules.epsilon_plus())"


def _unruled(equation: Equation, rules: RuleSet) -> str | None:
    if rules.relevance and equation.name in PRODUCTS:
        return "is not a layer with the images on its left and weights on its right"
    return None


def rule_name(rule: Rule | None) -> str:
    """Return what an audit calls a rule."""
    if rule is None:
        return OWN
    return repr(rule) if dataclasses.is_dataclass(rule) else getattr(rule, "__name__", repr(rule))
