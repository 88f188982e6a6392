"""The reverse sweep itself: over equations, sites, loops and branches."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxplain.trace import jaxpr as jx
from jaxplain.trace import product
from jaxplain.trace.affine import site_values
from jaxplain.trace.audit import UncoveredError
from jaxplain.trace.convolution import is_plain, transposed
from jaxplain.trace.jaxpr import Equation, Program
from jaxplain.trace.pooling import is_disjoint, routed
from jaxplain.trace.rules import Relevance, Rule, RuleSet, divide
from jaxplain.trace.sites import Inside, Site, Survey

# Every element of the result is an element of one operand, so that relevance moves with it.
_MOVES = jx.words(
    """transpose reshape squeeze expand_dims name broadcast_in_dim pad slice concatenate rev copy
    copy_p gather dynamic_slice dynamic_update_slice select_n split optimization_barrier
    sharding_constraint reshard pvary pcast device_put"""
)
# Elementwise in one active operand: relevance stays with the element.
_SHIFTS = jx.words("add sub")
_SCALES = jx.words("mul div neg convert_element_type reduce_precision")


class Seed(NamedTuple):
    """What arrives at a tensor: a cotangent, relevance, or both. None is zero."""

    cotangent: jax.Array | None = None
    relevance: jax.Array | None = None

    def plus(self, other: "Seed") -> "Seed":
        """Return the sum."""
        return Seed(_sum(self.cotangent, other.cotangent), _sum(self.relevance, other.relevance))

    def total(self, activation: jax.Array, *, relevance: bool) -> jax.Array:
        """Return the cotangent or, under relevance rules, the relevance c x + R."""
        found = None if self.cotangent is None else self.cotangent
        if relevance:
            found = _sum(None if found is None else found * activation, self.relevance)
        return jnp.zeros_like(activation) if found is None else found


def _sum(a: jax.Array | None, b: jax.Array | None) -> jax.Array | None:
    return b if a is None else a if b is None else a + b


class Tape(NamedTuple):
    """The values of a forward run. `carries` holds every active scan's carry before each step."""

    program: Program
    survey: Survey
    env: dict[int, Any]
    carries: dict[int, list[jax.Array]]


def forward(program: Program, values: Mapping[int, Any], found: Survey) -> Tape:
    """Run a program and keep all its values."""
    env, carries = dict(values), {}
    for index, equation in enumerate(program.equations):
        operands = [jx.read(env, a) for a in equation.inputs]
        if equation.name == "scan" and index in found.inside:
            outputs, carries[index] = _scan_forward(equation, found.inside[index][0], operands)
        else:
            outputs = equation.run(operands)
        env.update(zip(equation.outputs, outputs, strict=True))
    return Tape(program, found, env, carries)


def backward(
    tape: Tape,
    rules: RuleSet,
    seeds: Mapping[int, Seed],
    keep: Collection[int],
    path: Collection[int] | None = None,
) -> dict[int, Seed]:
    """Sweep from the last equation to the first and return what arrives at the variables in `keep`.

    Args:
        tape: the forward run.
        rules: the rules.
        seeds: what starts, by variable.
        keep: the variables of interest.
        path: indices of the equations between them; None means all.
    """
    arriving = dict(seeds)
    kept: dict[int, Seed] = {}
    for index in sorted(range(len(tape.program.equations)) if path is None else path, reverse=True):
        equation = tape.program.equations[index]
        incoming = [arriving.pop(v, None) for v in equation.outputs]
        pairs = zip(equation.outputs, incoming, strict=True)
        kept |= {v: s for v, s in pairs if v in keep and s is not None}
        if all(seed is None for seed in incoming):
            continue
        for variable, seed in _step(
            tape, index, rules, [s or Seed() for s in incoming], keep, kept
        ):
            arriving[variable] = arriving.get(variable, Seed()).plus(seed)
    return kept | {v: s for v, s in arriving.items() if v in keep}


def _step(
    tape: Tape,
    index: int,
    rules: RuleSet,
    seeds: list[Seed],
    keep: Collection[int],
    kept: dict[int, Seed],
) -> list[tuple[int, Seed]]:
    """Return what one equation, or the site that ends with it, sends to its active operands."""
    equation = tape.program.equations[index]
    site = tape.survey.sites.get(index)
    active = [a for a in equation.inputs if isinstance(a, int) and a in tape.survey.active]
    rule = rules.rule(site) if site is not None else None
    if site is None and len(active) == 1 and len(equation.outputs) == 1:
        strides = tuple(equation.params.get("window_strides") or ())
        whole = Site(equation.name, (index,), active[0], equation.outputs[0], strides=strides)
        rule = rules.rule(whole)
        site = None if rule is None else whole
    if site is not None and rule is not None:
        _keep_inside(tape, site, rules, seeds[0], keep, kept)
        return [(site.input, _apply(tape, site, rule, rules, seeds[0]))]
    if rules.relevance:
        return _relevance_step(tape, index, rules, seeds)
    return [(v, Seed(c)) for v, c in _pull(tape, index, rules, seeds)]


def _apply(tape: Tape, site: Site, rule: Rule, rules: RuleSet, seed: Seed) -> Seed:
    at, restore = site_values(tape.program, site, tape.env)
    arriving = seed.total(tape.env[site.output], relevance=rules.relevance)
    left = rule(at, restore(arriving))
    x = tape.env[site.input]
    value = left.value if isinstance(left, Relevance) else left
    if value.shape != x.shape:
        raise ValueError(
            f"rule {rule!r} returned shape {value.shape} at {site.kind} {site.layer!r}; "
            f"the input of that site has {x.shape}"
        )
    value = value.astype(x.dtype)
    return Seed(relevance=value) if isinstance(left, Relevance) else Seed(cotangent=value)


def _keep_inside(
    tape: Tape, site: Site, rules: RuleSet, seed: Seed, keep: Collection[int], kept: dict[int, Seed]
) -> None:
    """Keep what arrives at layers inside a site.

    A cotangent is pulled back through the scale and shift behind them. Relevance arrives at a
    site as a whole: every tensor in it has the relevance of its output.
    """
    inside = {tape.program.equations[i].outputs[0] for i in site.equations[:-1]} & set(keep)
    if not inside:
        return
    whole = seed.total(tape.env[site.output], relevance=rules.relevance)
    for index in reversed(site.equations[1:]):
        equation = tape.program.equations[index]
        variable = next(
            a for a in equation.inputs if isinstance(a, int) and a in tape.survey.active
        )
        if not rules.relevance or equation.name in _MOVES:
            whole = dict(vjp(tape, index, [whole]))[variable]
        whole = whole.astype(tape.env[variable].dtype)
        if variable in inside:
            kept[variable] = Seed(relevance=whole) if rules.relevance else Seed(whole)


def _relevance_step(
    tape: Tape, index: int, rules: RuleSet, seeds: list[Seed]
) -> list[tuple[int, Seed]]:
    """Send relevance, and relevance per unit of activation, through an equation without a rule."""
    equation = tape.program.equations[index]
    site = tape.survey.sites.get(index)
    active = [a for a in equation.inputs if isinstance(a, int) and a in tape.survey.active]
    out = tape.env[equation.outputs[0]]
    cotangent, relevance = seeds[0]
    if equation.name in ("scan", "cond"):
        inner = _scan_backward if equation.name == "scan" else _cond_backward
        return inner(tape, index, rules, seeds)
    if site is not None and site.kind == "relu":
        # A ReLU, whatever derivative its function claims: open where it let something through.
        opened = None if cotangent is None else jnp.where(out > 0, cotangent, 0)
        return [(site.input, Seed(opened, relevance))]
    moves = equation.name in _MOVES or (site is not None and site.kind == "max_pool")
    elementwise = len(equation.outputs) == 1 and len(active) == 1
    if elementwise and equation.name in _SHIFTS:
        # What shifts a tensor elsewhere than behind a layer takes no part.
        total = seeds[0].total(out, relevance=True)
        return [(active[0], Seed(relevance=_gathered(total, tape.env[active[0]])))]
    found: list[tuple[int, Seed]] = []
    if any(s.relevance is not None for s in seeds):
        if moves:
            found = [(v, Seed(None, r)) for v, r in vjp(tape, index, [s.relevance for s in seeds])]
            seeds = [Seed(s.cotangent) for s in seeds]
        elif elementwise and equation.name in _SCALES:
            assert relevance is not None
            found = [(active[0], Seed(None, _gathered(relevance, tape.env[active[0]])))]
            seeds = [Seed(cotangent)]
    if all(s.cotangent is None and s.relevance is None for s in seeds):
        return found
    return found + [(v, Seed(c)) for v, c in _pull(tape, index, rules, seeds)]


def _gathered(relevance: jax.Array, like: jax.Array) -> jax.Array:
    """Sum over the axes along which `like` was repeated."""
    repeated = [d for d, n in enumerate(like.shape) if n == 1 and relevance.shape[d] != 1]
    return relevance.sum(repeated, keepdims=True).astype(like.dtype)


def as_cotangent(seed: Seed, activation: jax.Array) -> jax.Array | None:
    """Turn relevance into relevance per unit of activation."""
    if seed.relevance is None:
        return seed.cotangent
    return _sum(seed.cotangent, divide(seed.relevance, activation).astype(activation.dtype))


def _pull(tape: Tape, index: int, rules: RuleSet, seeds: list[Seed]) -> list[tuple[int, jax.Array]]:
    """Pull cotangents back through one equation by its own derivative."""
    equation = tape.program.equations[index]
    if equation.name in ("scan", "cond"):
        inner = _scan_backward if equation.name == "scan" else _cond_backward
        found = inner(tape, index, rules, seeds)
        return [(v, s.cotangent) for v, s in found if s.cotangent is not None]
    if equation.name == "while":
        raise UncoveredError(
            "a while loop over the images cannot be swept backwards; use lax.scan, or "
            "lax.fori_loop with a fixed number of steps"
        )
    cotangents = [
        as_cotangent(s, tape.env[v]) for s, v in zip(seeds, equation.outputs, strict=True)
    ]
    return vjp(tape, index, cotangents)


def vjp(
    tape: Tape, index: int, cotangents: Sequence[jax.Array | None]
) -> list[tuple[int, jax.Array]]:
    """Return (active operand, cotangent) pairs of an equation's own derivative."""
    equation = tape.program.equations[index]
    values = [jx.read(tape.env, a) for a in equation.inputs]
    places = [i for i, a in enumerate(equation.inputs) if tape.survey.is_active(a)]
    flows = [i for i, v in enumerate(equation.outputs) if v in tape.survey.active]
    sources = [a for a in equation.inputs if isinstance(a, int) and a in tape.survey.active]
    signal = cotangents[0]
    if places == [0] and len(equation.outputs) == 1 and signal is not None:
        signal = signal.astype(tape.env[equation.outputs[0]].dtype)
        pulled = _pulled(equation, values, signal)
        if pulled is not None:
            return [(sources[0], pulled.astype(values[0].dtype))]

    def function(*operands: jax.Array) -> list[jax.Array]:
        filled = list(values)
        for place, operand in zip(places, operands, strict=True):
            filled[place] = operand
        outputs = equation.bind(filled)
        return [outputs[i] for i in flows]

    outputs, pull = jax.vjp(function, *[values[i] for i in places])
    arriving = []
    for i, output in zip(flows, outputs, strict=True):
        cotangent = cotangents[i]
        arriving.append(
            jnp.zeros_like(output) if cotangent is None else cotangent.astype(output.dtype)
        )
    return list(zip(sources, pull(arriving), strict=True))


def _pulled(equation: Equation, values: Sequence[Any], signal: jax.Array) -> jax.Array | None:
    """Pull back through the first operand where JAX's own derivative is slow; else return None."""
    params = equation.params
    match equation.name:
        case "conv_general_dilated" if is_plain(params):
            image, weight = values
            return transposed(signal, weight, image.shape[1:3], params)
        case "dot_general" if product.is_slow(signal, values[1], params):
            return product.transposed(signal, values[1], params)
        case "reduce_window_max" if is_disjoint(params):
            return routed(signal, values[0], params)
    return None


# -- branches and loops ----------------------------------------------------------------------------


def _filled(seed: Seed, like: jax.Array, *, relevance: bool) -> Seed:
    """Return the seed with zeros for what is missing, so that all branches and steps agree."""
    zero = jnp.zeros_like(like)

    def given(value: jax.Array | None) -> jax.Array:
        # zero + value has the type of both, also across a mesh.
        return zero if value is None else zero + value.astype(zero.dtype)

    return Seed(given(seed.cotangent), given(seed.relevance) if relevance else None)


def _inner_backward(
    inside: Inside, values: Sequence[Any], rules: RuleSet, seeds: Sequence[Seed]
) -> list[Seed]:
    """Run an inner program and sweep it from its active outputs to its active inputs."""
    tape = forward(
        inside.program, dict(zip(inside.program.inputs, values, strict=True)), inside.survey
    )
    flowing = [o for o, flag in zip(inside.program.outputs, inside.outputs, strict=True) if flag]
    start: dict[int, Seed] = {}
    for atom, seed in zip(flowing, seeds, strict=True):
        if isinstance(atom, int) and inside.survey.is_active(atom):
            start[atom] = start.get(atom, Seed()).plus(seed)
    inputs = [v for v, flag in zip(inside.program.inputs, inside.inputs, strict=True) if flag]
    arrived = backward(tape, rules, start, inputs)
    return [_filled(arrived.get(v, Seed()), tape.env[v], relevance=rules.relevance) for v in inputs]


def _outgoing(tape: Tape, index: int, rules: RuleSet, seeds: Sequence[Seed]) -> list[Seed]:
    """Return the seeds of the active outputs of a loop or branch, filled with zeros."""
    equation, flags = tape.program.equations[index], tape.survey.inside[index][0].outputs
    return [
        _filled(seed, tape.env[v], relevance=rules.relevance)
        for seed, v, flag in zip(seeds, equation.outputs, flags, strict=True)
        if flag
    ]


def _cond_backward(
    tape: Tape, index: int, rules: RuleSet, seeds: Sequence[Seed]
) -> list[tuple[int, Seed]]:
    """Sweep the branch that was taken; the choice itself has no derivative."""
    equation, insides = tape.program.equations[index], tape.survey.inside[index]
    choice, *operands = [jx.read(tape.env, a) for a in equation.inputs]
    outgoing = _outgoing(tape, index, rules, seeds)

    def sweep(inside: Inside) -> Callable[[list[Any], list[Seed]], list[Seed]]:
        return lambda values, arriving: _inner_backward(inside, values, rules, arriving)

    pulled = jax.lax.switch(choice, [sweep(inside) for inside in insides], operands, outgoing)
    sources = [a for a, flag in zip(equation.inputs[1:], insides[0].inputs, strict=True) if flag]
    return [(a, s) for a, s in zip(sources, pulled, strict=True) if isinstance(a, int)]


class _Parts(NamedTuple):
    """Operands of a scan, or anything that there is one of for each operand."""

    constants: list[Any]
    carry: list[Any]
    slices: list[Any]


def _parts(equation: Equation, operands: Sequence[Any]) -> _Parts:
    start = equation.params["num_consts"]
    end = start + equation.params["num_carry"]
    return _Parts(list(operands[:start]), list(operands[start:end]), list(operands[end:]))


def _scan_forward(
    equation: Equation, inside: Inside, operands: Sequence[Any]
) -> tuple[list[Any], list[jax.Array]]:
    """Run a scan and keep its carry before every step."""
    params, program = equation.params, inside.program
    constants, carry, slices = _parts(equation, operands)
    count = params["num_carry"]

    def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], tuple[list[Any], list[Any]]]:
        values = dict(zip(program.inputs, [*constants, *carry, *slices], strict=True))
        outputs = jx.evaluate(program, values, program.outputs)
        return outputs[:count], (outputs[count:], carry)

    last, (stacked, carries) = jax.lax.scan(
        step, carry, slices, length=params["length"], reverse=params["reverse"]
    )
    return [*last, *stacked], carries


def _scan_backward(
    tape: Tape, index: int, rules: RuleSet, seeds: Sequence[Seed]
) -> list[tuple[int, Seed]]:
    """Sweep every step of a scan, from the last to the first, with the rules inside."""
    equation, (inside,) = tape.program.equations[index], tape.survey.inside[index]
    params = equation.params
    operands = [jx.read(tape.env, a) for a in equation.inputs]
    constants, _, slices = _parts(equation, operands)
    flags = _parts(equation, inside.inputs)
    outgoing = _outgoing(tape, index, rules, seeds)
    carried = sum(inside.outputs[: params["num_carry"]])
    of_constants = [
        _filled(Seed(), c, relevance=rules.relevance)
        for c, flag in zip(constants, flags.constants, strict=True)
        if flag
    ]

    def step(
        state: tuple[list[Seed], list[Seed]], inputs: tuple[list[Any], list[Any], list[Seed]]
    ) -> tuple[tuple[list[Seed], list[Seed]], list[Seed]]:
        (of_carry, of_constants), (carry, piece, stacked) = state, inputs
        values = [*constants, *carry, *piece]
        pulled = _inner_backward(inside, values, rules, [*of_carry, *stacked])
        first, second = sum(flags.constants), sum(flags.constants) + sum(flags.carry)
        added = [a.plus(b) for a, b in zip(of_constants, pulled[:first], strict=True)]
        return (pulled[first:second], added), pulled[second:]

    (of_carry, of_constants), of_slices = jax.lax.scan(
        step,
        (outgoing[:carried], of_constants),
        (tape.carries[index], slices, outgoing[carried:]),
        length=params["length"],
        reverse=not params["reverse"],
    )
    pulled = iter([*of_constants, *of_carry, *of_slices])
    found = [
        (a, next(pulled)) for a, flag in zip(equation.inputs, inside.inputs, strict=True) if flag
    ]
    return [(a, s) for a, s in found if isinstance(a, int) and a in tape.survey.active]
