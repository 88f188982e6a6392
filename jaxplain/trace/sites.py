"""Sites: what a network does, read off its program.

A *site* is a group of equations that the rules treat as one thing: a ReLU however it is written, a
pooling, or a convolution (dense layer) together with the bias and the batch norm behind it.
`survey` finds them and says which variables depend on the explained input:

- *active*: a floating-point path leads there from the input;
- *dependent*: it depends on the input without a derivative (`x > 0`, an index, a stopped gradient).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from jaxplain.trace import jaxpr as jx
from jaxplain.trace.jaxpr import Atom, Equation, Program
from jaxplain.trace.labels import labels
from jaxplain.trace.patterns import (
    AFFINE,
    LAYOUT,
    LINEAR_KINDS,
    PRODUCTS,
    RECTIFIERS,
    Reader,
    Site,
    Tail,
)
from jaxplain.trace.signs import nonnegative

# Linear in all active operands together.
LINEAR = jx.words(
    """add add_any sub neg reshape transpose broadcast_in_dim reduce_sum reduce_window_sum
    convert_element_type pad slice concatenate squeeze expand_dims rev copy copy_p name cumsum
    sharding_constraint optimization_barrier pvary pcast device_put split reduce_precision psum
    psum_invariant reshard"""
)
# Linear in one active operand, provided that the others do not depend on the input.
BILINEAR = jx.words("mul dot_general conv_general_dilated")
INDEXED = jx.words("gather dynamic_slice dynamic_update_slice scatter scatter-add select_n")
CUSTOM = jx.words("custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr")


@dataclasses.dataclass(frozen=True)
class Survey:
    """What `survey` found.

    Attributes:
        sites: the sites by the index of their last equation.
        inner: the other equations of sites.
        active: variables that are floating-point functions of the input.
        dependent: variables that depend on it in another way.
        inside: the programs inside the loops and branches, by the index of their equation.
        ambiguous: "first" and "last" where a site in a loop is so in some steps only.
    """

    sites: Mapping[int, Site]
    inner: frozenset[int]
    active: frozenset[int]
    dependent: frozenset[int]
    inside: Mapping[int, tuple["Inside", ...]] = dataclasses.field(default_factory=dict)
    ambiguous: frozenset[str] = frozenset()

    def is_active(self, atom: Atom) -> bool:
        """Say whether an operand is a floating-point function of the input."""
        return isinstance(atom, int) and atom in self.active

    def depends(self, atom: Atom) -> bool:
        """Say whether an operand depends on the input at all."""
        return isinstance(atom, int) and (atom in self.active or atom in self.dependent)


@dataclasses.dataclass(frozen=True)
class Inside:
    """One step of a loop, or one branch.

    Attributes:
        program: its program.
        survey: what is in it.
        inputs: which of its inputs are active.
        outputs: which of its outputs are.
    """

    program: Program
    survey: Survey
    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


def survey(
    program: Program,
    inputs: Iterable[int],
    names: Mapping[int, str] | None = None,
    *,
    dependent: Iterable[int] = (),
    after: Iterable[int] = (),
    before: Iterable[int] = (),
    cuts: Iterable[int] = (),
) -> Survey:
    """Find the sites of a program.

    Args:
        program: the flat program.
        inputs: the active input variables: what is explained.
        names: further names of variables (module outputs), beside the tags.
        dependent: input variables that depend on what is explained without a derivative.
        after: input variables behind a convolution or dense layer.
        before: variables before one: outputs that are read outside.
        cuts: variables that no site may reach over.
    """
    active, dependents = activity(program, inputs, dependent)
    reader = Reader(program, active, dependents, frozenset(cuts))
    sites: dict[int, Site] = {}
    claimed: set[int] = set()
    for index, equation in enumerate(program.equations):
        if index in claimed or not any(isinstance(a, int) and a in active for a in equation.inputs):
            continue
        site = reader.affine(index) or reader.activation(index) or reader.pooling(index)
        if site is not None and not claimed & set(site.equations):
            sites[site.equations[-1]] = site
            claimed.update(site.equations)
    ends = _Ends(program, sites, active, set(after), set(before))
    inside = ends.inside(dependents)
    layers = labels(reader, names or {}, sites)
    positive = nonnegative(program, {i for i, s in sites.items() if s.kind in RECTIFIERS})
    for index, site in sites.items():
        sites[index] = dataclasses.replace(
            site,
            layer=layers[index],
            first=index in ends.firsts,
            last=index in ends.lasts,
            nonnegative=site.input in positive,
        )
    return Survey(
        sites,
        frozenset(claimed - set(sites)),
        frozenset(active),
        frozenset(dependents),
        inside,
        frozenset(ends.ambiguous),
    )


def activity(
    program: Program, inputs: Iterable[int], dependent: Iterable[int] = ()
) -> tuple[set[int], set[int]]:
    """Return the (active, dependent) variables, given those among the inputs."""
    active, dependents = set(inputs), set(dependent)
    for equation in program.equations:
        touched = [a in active for a in equation.inputs if a in active or a in dependents]
        if not touched:
            continue
        flows = any(touched) and equation.name != "stop_gradient"
        outputs: Sequence[bool] = [flows] * len(equation.outputs)
        if flows and equation.name in ("scan", "cond"):
            outputs = _flow(equation, active, dependents)[2]
        for variable, flag in zip(equation.outputs, outputs, strict=True):
            flag = flag and jx.is_float(program.avals[variable])
            (active if flag else dependents).add(variable)
    return active, dependents


def _flow(
    equation: Equation, active: set[int], dependent: set[int]
) -> tuple[list[bool], list[bool], list[bool]]:
    """Return which inputs of a step or branch are active, which dependent, which outputs active."""
    operands = equation.inputs if equation.name == "scan" else equation.inputs[1:]
    flags = [a in active for a in operands]
    others = [a in dependent for a in operands]
    if equation.name == "cond":
        outputs = [False] * len(equation.outputs)
        for branch in jx.branches(equation):
            found = _outputs(branch, flags, others)[0]
            outputs = [a or b for a, b in zip(outputs, found, strict=True)]
        return flags, others, outputs
    body, count = jx.scan_body(equation), equation.params["num_carry"]
    carry = slice(equation.params["num_consts"], equation.params["num_consts"] + count)
    while True:  # until the carry says of itself what was assumed
        outputs, more = _outputs(body, flags, others)
        new_flags = [a or b for a, b in zip(flags[carry], outputs[:count], strict=True)]
        new_others = [a or b for a, b in zip(others[carry], more[:count], strict=True)]
        if new_flags == flags[carry] and new_others == others[carry]:
            return flags, others, new_flags + outputs[count:]
        flags[carry], others[carry] = new_flags, new_others


def _outputs(
    program: Program, flags: Sequence[bool], others: Sequence[bool]
) -> tuple[list[bool], list[bool]]:
    active, dependent = activity(
        program, _selected(program.inputs, flags), _selected(program.inputs, others)
    )
    return [o in active for o in program.outputs], [o in dependent for o in program.outputs]


def _selected(atoms: Sequence[Atom], flags: Sequence[bool]) -> list[int]:
    return [a for a, flag in zip(atoms, flags, strict=True) if flag and isinstance(a, int)]


class _Ends:
    """Which affine sites are first and last, through loops and branches too."""

    def __init__(
        self,
        program: Program,
        sites: Mapping[int, Site],
        active: set[int],
        after: set[int],
        before: set[int],
    ):
        self.program, self.active = program, active
        self.after, self.before = after, before
        self.firsts: set[int] = set()
        self.lasts: set[int] = set()
        self.ambiguous: set[str] = set()
        affine = {i: s for i, s in sites.items() if s.kind in AFFINE}
        products = {s.equations[0] for s in affine.values()}
        blocks = {
            i
            for i, e in enumerate(program.equations)
            if e.name in ("scan", "cond") and self._flows(e) and _has_product(e)
        }
        for index, equation in enumerate(program.equations):
            if index in affine and affine[index].input not in after:
                self.firsts.add(index)
            makes = index in affine or index in blocks
            if makes or any(a in after for a in equation.inputs):
                after.update(equation.outputs)
        for index in range(len(program.equations) - 1, -1, -1):
            equation = program.equations[index]
            if index in affine and affine[index].output not in before:
                self.lasts.add(index)
            starts = index in products or index in blocks
            if starts or any(v in before for v in equation.outputs):
                before.update(a for a in equation.inputs if isinstance(a, int) and a in active)

    def _flows(self, equation: Equation) -> bool:
        return any(a in self.active for a in equation.inputs)

    def inside(self, dependent: set[int]) -> dict[int, tuple[Inside, ...]]:
        """Survey the loops and branches, knowing what is before and behind them."""
        return {
            index: self._loop(equation, dependent)
            if equation.name == "scan"
            else self._branches(equation, dependent)
            for index, equation in enumerate(self.program.equations)
            if equation.name in ("scan", "cond") and self._flows(equation)
        }

    def _branches(self, equation: Equation, dependent: set[int]) -> tuple[Inside, ...]:
        flags, others, outputs = _flow(equation, self.active, dependent)
        after = [a in self.after for a in equation.inputs[1:]]
        before = [v in self.before for v in equation.outputs]
        return tuple(
            self._survey(branch, flags, others, outputs, after, before)
            for branch in jx.branches(equation)
        )

    def _loop(self, equation: Equation, dependent: set[int]) -> tuple[Inside, ...]:
        body, count = jx.scan_body(equation), equation.params["num_carry"]
        start = equation.params["num_consts"]
        flags, others, outputs = _flow(equation, self.active, dependent)
        before_loop = [a in self.after for a in equation.inputs]
        behind_loop = [v in self.before for v in equation.outputs]
        # A step comes after itself, so that what its carry meets in one step it has met in the
        # next.
        step = self._survey(body, flags, others, outputs, before_loop, behind_loop)
        product = any(s.kind in AFFINE for s in step.survey.sites.values()) or any(
            _has_product(e) for e in body.equations
        )
        if not product or equation.params["length"] < 2 or not count:
            return (step,)
        again = self._survey(
            body,
            flags,
            others,
            outputs,
            [a or (start <= i < start + count and flags[i]) for i, a in enumerate(before_loop)],
            [b or (i < count and outputs[i]) for i, b in enumerate(behind_loop)],
        )
        for end in ("first", "last"):
            marked = [
                [getattr(s, end) for s in found.survey.sites.values()] for found in (step, again)
            ]
            if marked[0] != marked[1]:
                self.ambiguous.add(end)
        return (again,)

    def _survey(
        self,
        program: Program,
        flags: Sequence[bool],
        others: Sequence[bool],
        outputs: Sequence[bool],
        after: Sequence[bool],
        before: Sequence[bool],
    ) -> Inside:
        found = survey(
            program,
            _selected(program.inputs, flags),
            dependent=_selected(program.inputs, others),
            after=_selected(program.inputs, after),
            before=_selected(program.outputs, before),
        )
        self.ambiguous |= found.ambiguous
        return Inside(program, found, tuple(flags), tuple(outputs))


def _has_product(equation: Equation) -> bool:
    """Say whether a loop or branch holds a convolution or dense product, at any depth."""
    if equation.name == "scan":
        programs: tuple[Program, ...] = (jx.scan_body(equation),)
    elif equation.name == "cond":
        programs = jx.branches(equation)
    else:
        return False
    return any(e.name in PRODUCTS or _has_product(e) for p in programs for e in p.equations)


def nonlinearity(equation: Equation, found: Survey) -> str | None:
    """Say why an equation's own derivative may not stand for a rule; None where it is linear."""
    active = [found.is_active(a) for a in equation.inputs]
    depends = [found.depends(a) for a in equation.inputs]
    stopped = any(d and not a for d, a in zip(depends, active, strict=True))
    name = equation.name
    if name in LINEAR:
        return "joins a part whose derivative is stopped" if stopped else None
    if name in BILINEAR:
        return None if sum(depends) == 1 else "multiplies two things that depend on the input"
    if name == "div":
        return None if not depends[1] else "divides by something that depends on the input"
    if name in INDEXED:
        return "selects by something that depends on the input" if stopped else None
    if name == "cond":
        return "chooses its branch by something that depends on the input" if depends[0] else None
    if name == "scan":
        return None
    if name in CUSTOM:
        return f"is a function with a derivative of its own ({jx.source(equation)})"
    return "is not linear in the input"


__all__ = [
    "AFFINE",
    "LAYOUT",
    "LINEAR_KINDS",
    "PRODUCTS",
    "Inside",
    "Site",
    "Survey",
    "Tail",
    "activity",
    "nonlinearity",
    "survey",
]
