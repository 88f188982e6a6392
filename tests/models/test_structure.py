"""Gates, masks, edits and cuts of every port, read off its program: no number is computed.

What is shown is that the program with an edit at every layer is the one without, but for factors;
that `edit` makes that same program; and that the halves of a cut make it, too. So gates of ones
change no bit, whatever the weights, and a gate of zero is a channel thrown away, since nothing else
reads it. That a factor multiplies the axis that it should is tested with numbers, on one port of
each kind (test_ports.py).
"""

import dataclasses
import functools
import hashlib
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from ports import SIZES

from jaxplain.adapters import LinenApply
from jaxplain.model import Model
from jaxplain.models import MODELS, functions, parameter_count
from jaxplain.models.weights.fill import torch_plan
from jaxplain.trace.layers import edit, split

BODIES = ("jaxpr", "call_jaxpr")


class Step(NamedTuple):
    """One equation: its operands are numbers of variables, or texts of constants."""

    name: str
    parameters: str
    operands: tuple[int | str, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass
class Program:
    """A function of a tree of arrays, written out without calls and tags.

    Attributes:
        inputs: where a leaf lies in the tree -> its number.
        steps: what is computed, in order.
        tags: layer -> the tensor that has its name.
        result: what is returned.
    """

    inputs: dict[str, int]
    steps: list[Step] = dataclasses.field(default_factory=list)
    tags: dict[str, int | str] = dataclasses.field(default_factory=dict)
    result: int | str = ""

    @classmethod
    def of(cls, function: Any, tree: Any) -> "Program":
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        program = cls(
            {jax.tree_util.keystr(path): number for number, (path, _) in enumerate(leaves)}
        )
        closed = jax.make_jaxpr(function)(tree)
        (program.result,) = program._run(closed, list(program.inputs.values()))
        return program

    def _run(self, closed: Any, values: list[int | str]) -> list[int | str]:
        known = dict(zip(closed.jaxpr.invars, values, strict=True))
        constants = [f"constant {value!r}" for value in closed.consts]
        known |= dict(zip(closed.jaxpr.constvars, constants, strict=True))

        def read(atom: Any) -> int | str:
            return f"{atom.val!r}" if hasattr(atom, "val") else known[atom]

        for equation in closed.jaxpr.eqns:
            operands = tuple(read(atom) for atom in equation.invars)
            body = next((equation.params[key] for key in BODIES if key in equation.params), None)
            if body is not None:
                outputs = self._run(body, list(operands))
            elif equation.primitive.name == "name":
                outputs = list(operands)
                self.tags[equation.params["name"]] = operands[0]
            else:
                first = self.steps[-1].outputs[-1] + 1 if self.steps else len(self.inputs)
                outputs = [first + i for i in range(len(equation.outvars))]
                about = sorted((key, str(value)) for key, value in equation.params.items())
                shapes = [str(variable.aval) for variable in equation.outvars]
                name = equation.primitive.name
                self.steps.append(Step(name, f"{about} -> {shapes}", operands, tuple(outputs)))
            known |= dict(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def described(self) -> list[Any]:
        """Return what leads to the result, with variables known by what made them."""
        needed, kept = {self.result}, []
        for step in reversed(self.steps):
            if needed & set(step.outputs):
                needed |= set(step.operands)
                kept.append(step)
        known: dict[Any, Any] = {number: place for place, number in self.inputs.items()}
        lines: list[Any] = []
        for step in reversed(kept):
            operands = tuple(known.get(operand, operand) for operand in step.operands)
            lines.append((step.name, step.parameters, operands))
            known |= {output: (len(lines), i) for i, output in enumerate(step.outputs)}
        return [*lines, known[self.result]]

    def without_factors(self) -> tuple["Program", dict[int, tuple[str, int]]]:
        """Return the program with every edit taken out, and the edits.

        Those are: product -> (place of the gate or mask, what it multiplies).

        Raises:
            AssertionError: an edit does something else than multiplying one tensor.
        """
        made_of = {n: place for place, n in self.inputs.items() if place.startswith(EDITS)}
        instead: dict[Any, Any] = {}
        factors: dict[int, tuple[str, int]] = {}
        rest = []
        for step in self.steps:
            edits = [made_of[operand] for operand in step.operands if operand in made_of]
            tensors = [o for o in step.operands if isinstance(o, int) and o not in made_of]
            if edits and not tensors:
                assert len(set(edits)) == 1, step
                made_of |= dict.fromkeys(step.outputs, edits[0])
            elif edits:
                assert (step.name, len(edits), len(tensors)) == ("mul", 1, 1), step
                (product,), (tensor,) = step.outputs, tensors
                factors[product] = edits[0], tensor
                instead[product] = instead.get(tensor, tensor)
            else:
                operands = tuple(instead.get(operand, operand) for operand in step.operands)
                rest.append(step._replace(operands=operands))
        inputs = {place: n for place, n in self.inputs.items() if not place.startswith(EDITS)}
        return Program(inputs, rest, {}, instead.get(self.result, self.result)), factors


EDITS = ("['gates']", "['masks']")

# torchvision's networks: how many parameters its documentation says that they have (Inception-V3's
# without the second head, which takes no part in a prediction), and the SHA-256 of the names and
# shapes in their state dicts, but for the counts of batches: "name (shape)", sorted, a line each.
TORCHVISION = {
    "alexnet": (61_100_840, "935c1ea73a7869ee"),
    "googlenet": (6_624_904, "b2fadd85b321b7a9"),
    "inception_v3": (23_834_568, "5beceaea5a4204b9"),
    "resnet18": (11_689_512, "2bb53b15765c4651"),
    "resnet34": (21_797_672, "b945021fb00b779b"),
    "resnet50": (25_557_032, "cf11dad974eadeaa"),
    "resnet101": (44_549_160, "d916ed2068e1af5d"),
    "resnet152": (60_192_808, "2fe195791c8ffb5f"),
    "vgg11": (132_863_336, "b11acd4f90d9643f"),
    "vgg13": (133_047_848, "79ca8fd7a1480aa7"),
    "vgg16": (138_357_544, "ba63c2556d912509"),
    "vgg19": (143_667_240, "393fac8b08b63fbe"),
    "vgg11_bn": (132_868_840, "eb52f2d89ad478d4"),
    "vgg13_bn": (133_053_736, "e71996a6a29bacd7"),
    "vgg16_bn": (138_365_992, "d8308b804a50efac"),
    "vgg19_bn": (143_678_248, "8f342fea647d72df"),
}


class Port:
    """A network's program without and with an edit of every layer."""

    def __init__(self, name: str):
        self.network = network = MODELS[name].build(1000)
        size = SIZES[name]
        images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        variables = jax.eval_shape(network.init, jax.random.key(0), images)
        apply = jax.jit(LinenApply(network))  # keeps its trace
        self.model = Model.from_function(apply, input_shape=(size, size, 3), name=name)
        self.tree: dict[str, Any] = {"variables": variables, "images": images}
        # Within the call, ReLUs are still calls that say what they are.
        self.equations = jax.make_jaxpr(apply)(variables, images).jaxpr.eqns[0].params["jaxpr"].eqns
        names = [e for e in self.equations if e.primitive.name == "name"]
        self.shapes = {e.params["name"]: e.outvars[0].aval.shape for e in names}
        assert len(self.shapes) == len(names)
        self.plain = Program.of(lambda tree: apply(tree["variables"], tree["images"]), self.tree)
        maps = {layer: shape for layer, shape in self.shapes.items() if len(shape) == 4}
        self.edits = {
            "gates": {layer: floats(shape[-1:]) for layer, shape in self.shapes.items()},
            "masks": {layer: floats(shape[1:3]) for layer, shape in maps.items()}
            | {"input": floats((size, size))},
        }
        self.edited = Program.of(
            lambda tree: network.apply(
                tree["variables"], tree["images"], gates=tree["gates"], masks=tree["masks"]
            ),
            self.tree | self.edits,
        )

    def with_variables(self, tree: Any) -> Model:
        return dataclasses.replace(self.model, params=tree["variables"])


def floats(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


prepared = functools.cache(Port)


@pytest.mark.parametrize("name", SIZES)
def test_edits_of_every_layer_are_factors_and_nothing_reads_past_them(name):
    port = prepared(name)
    plain, factors = port.edited.without_factors()
    assert plain.described() == port.plain.described()

    readers = Counter(o for step in port.edited.steps for o in step.operands)
    readers[port.edited.result] += 1
    wanted = []
    for layer, tensor in port.edited.tags.items():
        kinds = ("masks", "gates") if layer in port.edits["masks"] else ("gates",)
        for kind in kinds:
            place, tensor = factors[tensor]
            assert place == f"['{kind}']['{layer}']"
            assert readers[tensor] == 1
            wanted.append(place)
    place, images = next(found for found in factors.values() if found[0] == "['masks']['input']")
    assert images == port.edited.inputs["['images']"]
    assert readers[images] == 1
    assert sorted([*wanted, place]) == sorted(p for p in port.edited.inputs if p.startswith(EDITS))


# What must be tapped: poolings and ReLUs (the calls with a derivative of their own).
TAPPED = {"reduce_window_max", "reduce_window_sum", "custom_jvp_call", "jit"}


def pools(equation):
    """Whether a window moves over positions: VGG-F's normalization has one over channels."""
    return equation.params.get("window_dimensions", (0, 0, 0, 0))[1:3] != (1, 1)


@pytest.mark.parametrize("name", SIZES)
def test_every_relu_and_pooling_is_read_by_its_tap_alone(name):
    equations = prepared(name).equations
    readers = defaultdict(list)
    for equation in equations:
        for variable in equation.invars:
            if not hasattr(variable, "val"):
                readers[variable].append(equation)
    found = 0
    for equation in equations:
        if equation.primitive.name in TAPPED and pools(equation):
            found += 1
            (output,) = equation.outvars
            reading = readers[output]
            while [e.primitive.name for e in reading] == ["div"]:  # a sum becomes an average
                reading = readers[reading[0].outvars[0]]
            assert [e.primitive.name for e in reading] == ["name"], equation
    assert found >= 10


@pytest.mark.parametrize("name", SIZES)
def test_the_layers_that_methods_use_exist(name):
    shapes, architecture = prepared(name).shapes, MODELS[name]
    assert len(shapes[architecture.default_layer]) == 4
    assert len(shapes[architecture.evidence_layer]) == 4
    assert shapes[prepared(name).network.head] == (2, 1000)


def test_every_network_is_a_plain_function():
    assert sorted(functions.__all__) == sorted(SIZES)
    assert all(getattr(functions, name).__name__ == name for name in SIZES)


@pytest.mark.parametrize("name", ["vgg_f", "vgg13_bn", "resnet18"])
def test_a_plain_function_makes_the_program_of_the_module(name):
    port, function = prepared(name), getattr(functions, name)
    found = Program.of(
        lambda tree: function(
            tree["variables"], tree["images"], gates=tree["gates"], masks=tree["masks"]
        ),
        port.tree | port.edits,
    )
    assert found.described() == port.edited.described()


def test_vgg_f_has_as_many_parameters_as_the_paper_says():
    port = prepared("vgg_f")  # 61 million
    assert parameter_count(port.with_variables(port.tree)) == 60_834_536


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_named_and_shaped_as_in_torchvision(name):
    port = prepared(name)
    count, digest = TORCHVISION[name]
    assert parameter_count(port.with_variables(port.tree)) == count
    flat = traverse_util.flatten_dict(port.tree["variables"])
    shapes = {path: leaf.shape for path, leaf in flat.items()}
    plan = torch_plan(port.network, shapes, {})
    lines = sorted(f"{slot.name} {slot.shape}" for slot in plan.values())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest().startswith(digest)


@pytest.mark.parametrize("name", SIZES)
def test_edit_makes_the_program_of_the_explicit_arguments(name):
    port = prepared(name)

    def edited(tree):
        model = edit(port.with_variables(tree), gates=tree["gates"], masks=tree["masks"])
        return model(tree["images"])

    found = Program.of(edited, port.tree | port.edits)
    assert found.described() == port.edited.described()


@pytest.mark.parametrize("name", SIZES)
def test_the_halves_of_a_cut_make_the_program(name):
    port = prepared(name)

    def halves(tree):
        prefix, suffix = split(port.with_variables(tree), MODELS[name].evidence_layer)
        return suffix(prefix(tree["images"]))

    assert Program.of(halves, port.tree).described() == port.plain.described()
