r"""One reverse sweep over a model's program, in which rules replace derivatives.

The default for an equation is its own vjp. What travels backwards is a cotangent; under relevance rules it is
$c = R/x$, relevance per unit of activation, so that every linear operation (residual sums, pooling, batch norm, reshaping)
keeps its own vjp and shares relevance in proportion to the contributions. Where relevance itself must travel (the seed, whose logit may
be zero or negative; rules that do not start from $x$), it travels beside $c$ until a convolution or dense layer takes it up.

Nothing is silent: in strict mode, the default, the sweep raises on a non-linearity that the rule set neither covers nor declares
transparent and on a rule set that matched nothing; and it returns an `Audit`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxplain.model import Model, check_images
from jaxplain.scores import Score, check_targets, score_fn
from jaxplain.trace import jaxpr as jx
from jaxplain.trace.jaxpr import Atom, Equation, Program
from jaxplain.trace.layers import INPUT, trace_model
from jaxplain.trace.rules import At, Relevance, Rule, RuleSet, divide
from jaxplain.trace.sites import (
    LAYOUT,
    Site,
    Survey,
    fold,
    nonlinearity,
    output_activity,
    scan_activity,
    survey,
    weight_channel_axis,
)

# Elementwise maps of one active operand that hand relevance on unchanged.
_CARRIERS = frozenset("add sub mul div neg convert_element_type copy reduce_precision".split())


class UncoveredError(ValueError):
    """The network does something that the rule set does not cover."""


@dataclasses.dataclass(frozen=True)
class Matched:
    """One line of an audit.

    Attributes:
        layer: where.
        kind: what kind of site.
        rule: the rule it got, or "own derivative".
        shape: shape of the site's output.
    """

    layer: str
    kind: str
    rule: str
    shape: tuple[int, ...]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Audit:
    """Which rule every site of a network got.

    Attributes:
        rule_set: name of the rule set.
        sites: the sites in evaluation order.
        unused: kinds that the rule set has a rule for and the network lacks.
        uncovered: what the rule set does not cover; empty in strict mode.
    """

    rule_set: str
    sites: tuple[Matched, ...]
    unused: tuple[str, ...] = ()
    uncovered: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, str]]:
        """Return one dictionary of strings a site."""
        return [
            {"layer": s.layer, "kind": s.kind, "rule": s.rule, "shape": "x".join(map(str, s.shape))}
            for s in self.sites
        ]

    def __str__(self) -> str:
        width = max([len(s.layer) for s in self.sites], default=0)
        lines = [
            f"{self.rule_set}: {sum(s.rule != OWN for s in self.sites)} of {len(self.sites)} sites got a rule"
        ]
        lines += [f"  {s.layer:{width}}  {s.kind:10}  {s.rule}" for s in self.sites]
        lines += [f"  not covered: {u}" for u in self.uncovered]
        return "\n".join(lines)


OWN = "own derivative"


class Backpropagation(NamedTuple):
    """What a sweep found.

    Attributes:
        logits: (B, classes).
        attribution: (B, H, W, C) at the input: a cotangent, or relevance under relevance rules.
        layers: the same at each layer asked for, of the layer's shape.
        audit: which rule every site got.
    """

    logits: Float[Array, "b k"]
    attribution: Float[Array, "b h w c"]
    layers: dict[str, jax.Array]
    audit: Audit


def backpropagate(
    model: Model,
    images: Float[Array, "b h w c"],
    targets: Int[Array, " b"],
    rules: RuleSet,
    *,
    layers: Sequence[str] = (),
    score: Score = "logit",
    strict: bool = True,
) -> Backpropagation:
    """Propagate a class score back through a network by a set of rules.

    Works on unmodified models under jit, vmap, grad, jvp and shard_map. In ReLU networks the derivative of guided backprop and
    deconvnet with respect to the *images* is zero almost everywhere; with respect to the parameters it is not.

    Args:
        model: any model.
        images: (B, H, W, C) floats.
        targets: (B,) classes.
        rules: a rule set, such as `jaxplain.rules.GUIDED_BACKPROP`.
        layers: names of layers whose attribution is wanted too.
        score: what is propagated under gradient rules: "logit", "probability", "log_probability", "contrast", or a function of
            (logits, targets). Relevance rules start with relevance 1 at the target's logit.
        strict: raise on what the rule set does not cover.

    Returns:
        Logits, attributions and the audit.

    Raises:
        UncoveredError: strict, and the network has a non-linearity without a rule, or no site that the rule set is made for.
        ValueError: unknown layer, wrong shape or target.

    Example:
        >>> import jaxplain as jxp
        >>> model = jxp.load_model("digits")
        >>> found = backpropagate(model, jnp.ones((1, 28, 28, 1)), jnp.array([3]), jxp.rules.GUIDED_BACKPROP)
        >>> found.attribution.shape, found.audit.sites[0].layer
        ((1, 28, 28, 1), 'conv1')
    """
    images = check_images(images, model)
    sweep = Sweep(model, images)
    targets = check_targets(targets, sweep.logits)
    if rules.relevance:
        seed = Seed(relevance=one_hot(targets, sweep.logits))
    else:
        _, pull = jax.vjp(lambda logits: score_fn(score)(logits, targets), sweep.logits)
        seed = Seed(cotangent=pull(jnp.ones(targets.shape, sweep.logits.dtype))[0])
    found = sweep.pull(rules, {"logits": seed}, [INPUT, *layers], strict=strict)
    return Backpropagation(
        sweep.logits,
        found[INPUT].value,
        {n: found[n].value for n in layers},
        sweep.audit(rules, strict=strict),
    )


def one_hot(targets: jax.Array, logits: jax.Array) -> jax.Array:
    """Return 1 at each target, and NaN throughout for a target that does not exist."""
    seed = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    valid = (targets >= 0) & (targets < logits.shape[-1])
    return jnp.where(valid[:, None], seed, jnp.nan)


class Seed(NamedTuple):
    """What arrives at a tensor: a cotangent, relevance, or both. None is zero."""

    cotangent: jax.Array | None = None
    relevance: jax.Array | None = None

    def __add__(self, other: "Seed") -> "Seed":  # type: ignore[override]
        return Seed(_sum(self.cotangent, other.cotangent), _sum(self.relevance, other.relevance))


def _sum(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    return b if a is None else a if b is None else a + b


class Arrived(NamedTuple):
    """What arrived at a tensor and the tensor's activation."""

    value: jax.Array
    seed: Seed
    activation: jax.Array


class Sweep:
    """A forward run of a model that can be swept backwards, with several rule sets and from several places.

    For use inside one traced function; a sweep holds the values of the run and is no pytree.
    """

    def __init__(self, model: Model, images: jax.Array):
        self._traced = trace_model(model, images)
        program = self._traced.program
        labels = {v: n for n, v in self._traced.names.items() if n != INPUT}
        self._survey = survey(program, [self._traced.image], labels)
        self._tape = _forward(program, self._traced.bind(model.params, images), self._survey)
        self._logits_at = program.outputs[0]
        self.logits: jax.Array = jx.read(self._tape.env, self._logits_at)
        if not self._survey.is_active(self._logits_at):
            raise UncoveredError(
                f"the logits of model {model.name!r} have no derivative with respect to the images"
            )

    def activation(self, layer: str) -> jax.Array:
        """Return the activation of a layer."""
        return jx.read(self._tape.env, self._variable(layer))

    def _variable(self, layer: str) -> Atom:
        if layer == "logits" and layer not in self._traced.names:
            return self._logits_at
        return self._traced.variable(layer)

    def audit(self, rules: RuleSet, *, strict: bool = True) -> Audit:
        """Return which rule every site gets; raise in strict mode on what is not covered."""
        sites, uncovered = _inspect(self._traced.program, self._survey, rules)
        kinds = {s.kind for s in sites}
        unused = tuple(kind for kind, _ in rules.rules if kind not in kinds)
        if strict:
            if uncovered:
                raise UncoveredError(
                    f"{rules.name} does not cover this network:\n  " + "\n  ".join(uncovered) + "\n"
                    "Give the rule set a rule for it, or pass strict=False to use the derivative there."
                )
            if rules.require and not kinds & set(rules.require):
                raise UncoveredError(
                    f"{rules.name} matched nothing: the network has no {' or '.join(rules.require)}"
                )
        return Audit(rules.name, tuple(sites), unused, tuple(uncovered))

    def pull(
        self,
        rules: RuleSet,
        seeds: Mapping[str, Seed],
        layers: Iterable[str],
        *,
        strict: bool = True,
    ) -> dict[str, Arrived]:
        """Sweep backwards from `seeds` at named layers (or "logits") and return what arrives at `layers`.

        `value` is the cotangent, or the relevance c x + R under relevance rules.
        """
        self.audit(rules, strict=strict)
        wanted = {name: self._variable(name) for name in layers}
        start: dict[int, Seed] = {}
        for name, seed in seeds.items():
            variable = self._variable(name)
            assert isinstance(variable, int)
            start[variable] = start.get(variable, Seed()) + seed
        arrived = _backward(self._tape, rules, start, set(wanted.values()))
        found = {}
        for name, variable in wanted.items():
            activation = jx.read(self._tape.env, variable)
            seed = arrived.get(variable, Seed())  # type: ignore[arg-type]
            found[name] = Arrived(
                _value(seed, activation, relevance=rules.relevance), seed, activation
            )
        return found


def _value(seed: Seed, activation: jax.Array, *, relevance: bool) -> jax.Array:
    cotangent = jnp.zeros_like(activation) if seed.cotangent is None else seed.cotangent
    if not relevance:
        return cotangent
    value = cotangent * activation
    return value if seed.relevance is None else value + seed.relevance


def _inspect(program: Program, found: Survey, rules: RuleSet) -> tuple[list[Matched], list[str]]:
    """List the sites of a program (and of the loops and branches in it) and what the rules leave uncovered."""
    sites: list[Matched] = []
    uncovered: list[str] = []
    covered = {kind for kind, _ in rules.rules} | rules.transparent
    for index, equation in enumerate(program.equations):
        if index in found.inner or not any(found.depends(a) for a in equation.inputs):
            continue
        active = any(found.is_active(a) for a in equation.inputs)
        if index in found.sites:
            site = found.sites[index]
            rule = rules.rule(site)
            sites.append(
                Matched(
                    site.layer, site.kind, _rule_name(rule), tuple(program.avals[site.output].shape)
                )
            )
            if rule is None and site.kind not in covered | {"conv", "dense"}:
                uncovered.append(f"{site.kind} at {site.layer}")
        elif not active or all(v in found.dependent for v in equation.outputs):
            continue
        elif equation.name in ("scan", "cond"):
            for inner, inputs in _inner_programs(
                equation, [found.is_active(a) for a in equation.inputs]
            ):
                more, missing = _inspect(inner, survey(inner, inputs), rules)
                sites += [dataclasses.replace(s, layer=f"{equation.name} {s.layer}") for s in more]
                uncovered += missing
        elif equation.name not in covered:
            reason = nonlinearity(equation, found)
            if reason is not None:
                where = f" in {equation.scope}" if equation.scope else ""
                uncovered.append(f"{equation.name} (equation {index}{where}) {reason}")
    return sites, uncovered


def _inner_programs(equation: Equation, active: Sequence[bool]) -> list[tuple[Program, list[int]]]:
    if equation.name == "scan":
        inner, flags = jx.scan_body(equation), scan_activity(equation, active)[0]
        return [(inner, [v for v, a in zip(inner.inputs, flags, strict=True) if a])]
    return [
        (branch, [v for v, a in zip(branch.inputs, active[1:], strict=True) if a])
        for branch in jx.branches(equation)
    ]


def _rule_name(rule: Rule | None) -> str:
    return OWN if rule is None else repr(rule)


class _Tape(NamedTuple):
    """The values of a forward run. `carries` holds, for every active scan, its carry before each step."""

    program: Program
    survey: Survey
    env: dict[int, Any]
    carries: dict[int, list[jax.Array]]


def _forward(program: Program, values: Mapping[int, Any], found: Survey) -> _Tape:
    env, carries = dict(values), {}
    for index, equation in enumerate(program.equations):
        operands = [jx.read(env, a) for a in equation.inputs]
        if equation.name == "scan" and any(found.is_active(a) for a in equation.inputs):
            outputs, carries[index] = _scan_forward(equation, operands)
        else:
            outputs = equation.bind(operands)
        env.update(zip(equation.outputs, outputs, strict=True))
    return _Tape(program, found, env, carries)


def _backward(
    tape: _Tape, rules: RuleSet, seeds: Mapping[int, Seed], keep: set[Atom]
) -> dict[int, Seed]:
    """Sweep from the last equation to the first; return what arrives at the variables in `keep`."""
    arriving = dict(seeds)
    kept = {v: s for v, s in seeds.items() if v in keep}

    def send(variable: int, seed: Seed) -> None:
        arriving[variable] = arriving.get(variable, Seed()) + seed

    for index in range(len(tape.program.equations) - 1, -1, -1):
        equation = tape.program.equations[index]
        for v in equation.outputs:
            if v in keep and v in arriving:
                kept[v] = arriving[v]
        site = tape.survey.sites.get(index)
        rule = (
            rules.rule(site) if site is not None else _primitive_rule(rules, equation, tape.survey)
        )
        if index in tape.survey.inner and not any(v in arriving for v in equation.outputs):
            continue
        if site is not None and rule is not None and site.output in arriving:
            _keep_inside(tape, site, arriving, keep, kept)
            send(site.input, _apply(tape, site, rule, rules, arriving.pop(site.output)))
            continue
        incoming = [arriving.pop(v, None) for v in equation.outputs]
        if all(seed is None for seed in incoming):
            continue
        if rule is not None and site is None:
            source = next(a for a in equation.inputs if tape.survey.is_active(a))
            lone = Site(equation.name, (index,), source, equation.outputs[0])  # type: ignore[arg-type]
            send(lone.input, _apply(tape, lone, rule, rules, incoming[0] or Seed()))
            continue
        for atom, seed in _pull(tape, index, rules, [s or Seed() for s in incoming]):
            send(atom, seed)
    for v in keep:
        if isinstance(v, int) and v in arriving:
            kept[v] = arriving[v]
    return kept


def _primitive_rule(rules: RuleSet, equation: Equation, found: Survey) -> Rule | None:
    """Return the rule that a rule set has for a primitive as such."""
    if sum(found.is_active(a) for a in equation.inputs) != 1:
        return None
    return dict(rules.rules).get(equation.name)


def _keep_inside(
    tape: _Tape, site: Site, arriving: dict[int, Seed], keep: set[Atom], kept: dict[int, Seed]
) -> None:
    """Keep what arrives at layers inside a site: the cotangent, pulled back through the scale and shift behind them."""
    inside = {tape.program.equations[i].outputs[0] for i in site.equations[:-1]} & {
        v for v in keep if isinstance(v, int)
    }
    if not inside:
        return
    seed = _as_cotangent(arriving[site.output], tape.env[site.output])
    for index in reversed(site.equations[1:]):
        equation = tape.program.equations[index]
        variable = next(a for a in equation.inputs if tape.survey.is_active(a))
        pulled = dict(_vjp(tape, index, [seed.cotangent]))
        seed = Seed(pulled[variable])  # type: ignore[index]
        if variable in inside:
            kept[variable] = seed  # type: ignore[index]


def _apply(tape: _Tape, site: Site, rule: Rule, rules: RuleSet, seed: Seed) -> Seed:
    at, restore = _values(tape, site)
    out = tape.env[site.output]
    if rules.relevance:
        arriving = jnp.zeros_like(out) if seed.cotangent is None else seed.cotangent * out
        arriving = arriving if seed.relevance is None else arriving + seed.relevance
    else:
        assert seed.cotangent is not None
        arriving = seed.cotangent
    left = rule(at, restore(arriving))
    return Seed(relevance=left.value) if isinstance(left, Relevance) else Seed(cotangent=left)


def _values(tape: _Tape, site: Site) -> tuple[At, Callable[[jax.Array], jax.Array]]:
    """Return a site with its values, and the map from the site's output layout to the product's."""
    x, out = tape.env[site.input], tape.env[site.output]
    if site.kind not in ("conv", "dense"):
        return At(site, x, out), lambda signal: signal
    product = tape.program.equations[site.equations[0]]
    position = next(i for i, a in enumerate(product.inputs) if a == site.input)
    weight = jx.read(tape.env, product.inputs[1 - position])
    scale, bias = fold(tape.program, site, tape.env)
    shape = tape.program.avals[product.outputs[0]].shape
    axis = site.tail[0].axis if site.tail else len(shape) - 1
    if site.tail:
        weight_axis = weight_channel_axis(product, 1 - position)
        weight = weight * scale.reshape([-1 if d == weight_axis else 1 for d in range(weight.ndim)])
    bias = bias.reshape([-1 if d == axis else 1 for d in range(len(shape))])

    def linear(x: jax.Array, w: jax.Array) -> jax.Array:
        return product.bind([x, w] if position == 0 else [w, x])[0]

    def restore(signal: jax.Array) -> jax.Array:
        for step in reversed(site.tail):
            equation = tape.program.equations[step.equation]
            if equation.name == "transpose":
                order = equation.params["permutation"]
                signal = jnp.transpose(signal, [order.index(d) for d in range(len(order))])
            elif equation.name in LAYOUT:
                signal = signal.reshape(tape.program.avals[equation.inputs[0]].shape)  # type: ignore[index]
        return signal

    return At(site, x, restore(out), weight, bias, linear), restore


def _as_cotangent(seed: Seed, out: jax.Array) -> Seed:
    """Turn relevance into relevance per unit of activation."""
    if seed.relevance is None:
        return seed if seed.cotangent is not None else Seed(jnp.zeros_like(out))
    return Seed(_sum(seed.cotangent, divide(seed.relevance, out)))


def _pull(tape: _Tape, index: int, rules: RuleSet, seeds: list[Seed]) -> list[tuple[int, Seed]]:
    """Pull back through one equation by its own derivative."""
    equation = tape.program.equations[index]
    active = [a for a in equation.inputs if tape.survey.is_active(a)]
    carried: list[tuple[int, Seed]] = []
    if seeds[0].relevance is not None and len(equation.outputs) == 1 and len(active) == 1:
        same = tape.program.avals[active[0]].shape == tape.program.avals[equation.outputs[0]].shape  # type: ignore[index]
        if equation.name in LAYOUT:
            carried = [(a, Seed(relevance=r)) for a, r in _vjp(tape, index, [seeds[0].relevance])]
        elif equation.name in _CARRIERS and same:
            carried = [(active[0], Seed(relevance=seeds[0].relevance))]  # type: ignore[list-item]
        if carried:
            seeds = [Seed(seeds[0].cotangent)]
            if seeds[0].cotangent is None:
                return carried
    outputs = [tape.env[v] for v in equation.outputs]
    cotangents = [
        _as_cotangent(s, o).cotangent if v in tape.survey.active else None
        for s, o, v in zip(seeds, outputs, equation.outputs, strict=True)
    ]
    if equation.name == "scan":
        pulled = _scan_backward(tape, index, rules, cotangents)
    elif equation.name == "cond":
        pulled = _cond_backward(tape, index, rules, cotangents)
    elif equation.name == "while":
        raise UncoveredError("a while loop over the input cannot be swept backwards; use a scan")
    else:
        pulled = _vjp(tape, index, cotangents)
    return carried + [(a, Seed(c)) for a, c in pulled]


def _vjp(
    tape: _Tape, index: int, cotangents: Sequence[jax.Array | None]
) -> list[tuple[int, jax.Array]]:
    """Return (active operand, cotangent) pairs of an equation's own derivative."""
    equation = tape.program.equations[index]
    values = [jx.read(tape.env, a) for a in equation.inputs]
    places = [i for i, a in enumerate(equation.inputs) if tape.survey.is_active(a)]
    flows = [i for i, v in enumerate(equation.outputs) if v in tape.survey.active]

    def function(*operands: jax.Array) -> list[jax.Array]:
        filled = list(values)
        for place, operand in zip(places, operands, strict=True):
            filled[place] = operand
        outputs = equation.bind(filled)
        return [outputs[i] for i in flows]

    outputs, pull = jax.vjp(function, *[values[i] for i in places])
    arriving = [
        jnp.zeros_like(o) if cotangents[i] is None else cotangents[i]
        for i, o in zip(flows, outputs, strict=True)
    ]
    return [(equation.inputs[i], c) for i, c in zip(places, pull(arriving), strict=True)]  # type: ignore[misc]


def _cond_backward(
    tape: _Tape, index: int, rules: RuleSet, cotangents: Sequence[jax.Array | None]
) -> list[tuple[int, jax.Array]]:
    """Sweep the branch that was taken; the choice itself has no derivative."""
    equation = tape.program.equations[index]
    choice, *operands = [jx.read(tape.env, a) for a in equation.inputs]
    active = [tape.survey.is_active(a) for a in equation.inputs][1:]
    flows = output_activity(equation, [False, *active])
    arriving = [c if f else None for c, f in zip(cotangents, flows, strict=True)]

    def sweep(branch: Program) -> Callable[..., list[jax.Array]]:
        return lambda values: _inner_backward(branch, values, active, rules, arriving)

    branches = [sweep(b) for b in jx.branches(equation)]
    pulled = jax.lax.switch(choice, branches, operands)
    sources = [a for a, flag in zip(equation.inputs[1:], active, strict=True) if flag]
    return list(zip(sources, pulled, strict=True))  # type: ignore[arg-type]


def _inner_backward(
    inner: Program,
    values: Sequence[Any],
    active: Sequence[bool],
    rules: RuleSet,
    cotangents: Sequence[jax.Array | None],
) -> list[jax.Array]:
    """Run an inner program and sweep it; return the cotangents of its active inputs."""
    inputs = [v for v, flag in zip(inner.inputs, active, strict=True) if flag]
    found = survey(inner, inputs)
    tape = _forward(inner, dict(zip(inner.inputs, values, strict=True)), found)
    seeds: dict[int, Seed] = {}
    for atom, cotangent in zip(inner.outputs, cotangents, strict=True):
        if isinstance(atom, int) and cotangent is not None and found.is_active(atom):
            seeds[atom] = seeds.get(atom, Seed()) + Seed(cotangent)
    arrived = _backward(tape, rules, seeds, set(inputs))
    pulled = []
    for variable in inputs:
        cotangent = _as_cotangent(arrived.get(variable, Seed()), tape.env[variable]).cotangent
        pulled.append(cotangent)
    return pulled  # type: ignore[return-value]


def _scan_forward(equation: Equation, operands: Sequence[Any]) -> tuple[list[Any], list[jax.Array]]:
    """Run a scan and keep its carry before every step."""
    params = equation.params
    constants, carry, slices = _scan_parts(params, operands)
    inner = jx.scan_body(equation)

    def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], tuple[list[Any], list[Any]]]:
        values = dict(zip(inner.inputs, [*constants, *carry, *slices], strict=True))
        outputs = jx.evaluate(inner, values, inner.outputs)
        count = params["num_carry"]
        return outputs[:count], (outputs[count:], carry)

    last, (stacked, carries) = jax.lax.scan(
        step, carry, slices, length=params["length"], reverse=params["reverse"]
    )
    return [*last, *stacked], carries


def _scan_parts(
    params: Mapping[str, Any], operands: Sequence[Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    a, b = params["num_consts"], params["num_consts"] + params["num_carry"]
    return list(operands[:a]), list(operands[a:b]), list(operands[b:])


def _scan_backward(
    tape: _Tape, index: int, rules: RuleSet, cotangents: Sequence[jax.Array | None]
) -> list[tuple[int, jax.Array]]:
    """Sweep every step of a scan, from the last to the first, with the rules inside."""
    equation = tape.program.equations[index]
    params, operands = equation.params, [jx.read(tape.env, a) for a in equation.inputs]
    active, flows = scan_activity(equation, [tape.survey.is_active(a) for a in equation.inputs])
    constants, _, slices = _scan_parts(params, operands)
    inner, count = jx.scan_body(equation), params["num_carry"]
    on_constants, on_carry, on_slices = _scan_parts(params, active)
    carries = tape.carries[index]

    def filled(cotangent: jax.Array | None, like: jax.Array) -> jax.Array:
        return jnp.zeros_like(like) if cotangent is None else cotangent

    outputs = [tape.env[v] for v in equation.outputs]
    of_carry = [
        filled(c, o)
        for c, o, f in zip(cotangents[:count], outputs[:count], flows[:count], strict=True)
        if f
    ]
    of_stacked = [
        filled(c, o)
        for c, o, f in zip(cotangents[count:], outputs[count:], flows[count:], strict=True)
        if f
    ]
    of_constants = [
        jnp.zeros_like(c) for c, flag in zip(constants, on_constants, strict=True) if flag
    ]

    def step(
        state: tuple[list, list], inputs: tuple[list, list, list]
    ) -> tuple[tuple[list, list], list]:
        (carry_cotangents, constant_cotangents), (carry, piece, stacked) = state, inputs
        arriving = iter([*carry_cotangents, *stacked])
        pulled = _inner_backward(
            inner,
            [*constants, *carry, *piece],
            active,
            rules,
            [next(arriving) if f else None for f in flows],
        )
        first, second = sum(on_constants), sum(on_constants) + sum(on_carry)
        constant_cotangents = [
            a + b for a, b in zip(constant_cotangents, pulled[:first], strict=True)
        ]
        return (pulled[first:second], constant_cotangents), pulled[second:]

    (of_carry, of_constants), of_slices = jax.lax.scan(
        step,
        (of_carry, of_constants),
        (carries, slices, of_stacked),
        length=params["length"],
        reverse=not params["reverse"],
    )
    del on_slices
    pulled = iter([*of_constants, *of_carry, *of_slices])
    found = [(a, next(pulled)) for a, flag in zip(equation.inputs, active, strict=True) if flag]
    return [(a, c) for a, c in found if tape.survey.is_active(a)]  # type: ignore[misc]
