"""Gates, masks, edits and cuts of every port, with six channels everywhere.

The networks are built by the same code as those in the table, but for the number of features that
their layers ask for: what is tested here is how they are joined and tapped.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ports import SIZES, cheap_variables, interpret

from jaxplain.adapters import LinenApply
from jaxplain.model import Model
from jaxplain.models import alexnet, inception, network, resnet, vgg, zoo
from jaxplain.trace import backpropagate
from jaxplain.trace import rules as R
from jaxplain.trace.layers import edit, split

EVERYTHING = os.environ.get("JAXPLAIN_PARITY") == "all"
# One of each kind; of the others only the structure is tested every time (test_structure.py).
QUICK = (
    "alexnet",
    "vgg_f",
    "vgg11_bn",
    "inception_v3",
    "resnet50",
)
NAMES = [
    name
    if name in QUICK
    else pytest.param(
        name,
        marks=pytest.mark.skipif(
            not EVERYTHING, reason="more of the same kind; `make parity` runs it"
        ),
    )
    for name in SIZES
]


WIDTH = 6


@pytest.fixture
def narrow(monkeypatch):
    for module in (alexnet, inception, vgg):
        monkeypatch.setattr(module, "conv", narrow_conv)
    # A block of ResNet reads off the sum how many features its shortcut has.
    monkeypatch.setattr(resnet, "WIDTHS", (WIDTH,) * 4)
    monkeypatch.setattr(
        resnet,
        "conv",
        lambda x, name, *a, **k: (narrow_conv if name == "conv1" else network.conv)(
            x, name, *a, **k
        ),
    )
    monkeypatch.setattr(vgg, "DENSE_WIDTH", WIDTH)


def narrow_conv(x, name, features, *arguments, **options):
    return network.conv(x, name, WIDTH, *arguments, **options)


class Port:
    """One network and what the tests run of it, compiled once."""

    def __init__(self, name):
        self.network = next(a for a in zoo.ARCHITECTURES if a.name == name).build(10)
        size = SIZES[name]
        self.images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
        shapes = jax.eval_shape(self.network.init, jax.random.key(0), self.images)
        shapes = traverse_util.flatten_dict(shapes)
        self.variables = cheap_variables({path: leaf.shape for path, leaf in shapes.items()})
        self.apply = jax.jit(LinenApply(self.network))  # its trace is kept
        self.model = Model.from_function(
            self.apply, self.variables, input_shape=(size, size, 3), name=name
        )
        self.program = jax.make_jaxpr(self.network.apply)(self.variables, self.images)
        self.shapes = {
            e.params["name"]: e.outvars[0].aval.shape
            for e in self.program.jaxpr.eqns
            if e.primitive.name == "name"
        }
        self.logits = self.apply(self.variables, self.images)
        self.scale = float(jnp.abs(self.logits).max())

    def edits(self, value):
        """Return gates of all layers and masks of all maps and the input, made by value(shape)."""
        gates = {layer: value(shape[-1:]) for layer, shape in self.shapes.items()}
        masks = {layer: value(s[1:3]) for layer, s in self.shapes.items() if len(s) == 4}
        return {"gates": gates, "masks": masks | {"input": value(self.images.shape[1:3])}}

    @functools.cached_property
    def by_hand(self):
        """Return the network in which channels are thrown away, equation by equation."""

        def run(kept):
            def throw(layer, x):
                keep = kept[layer].reshape((1,) * (x.ndim - 1) + (-1,))
                return jnp.where(keep, x, 0)

            return interpret(self.program, (self.variables, self.images), throw)

        return jax.jit(run)

    def separating(self):
        """Return the layers through which every path from the images to the logits leads."""
        images = self.program.jaxpr.invars[-1]
        found = []
        for cut in self.program.jaxpr.eqns:
            if cut.primitive.name == "name":
                reached = {images}
                for equation in self.program.jaxpr.eqns:
                    reads = any(v in reached for v in equation.invars if not hasattr(v, "val"))
                    if equation is not cut and reads:
                        reached.update(equation.outvars)
                if self.program.jaxpr.outvars[0] not in reached:
                    found.append(cut.params["name"])
        return found


prepared = functools.cache(Port)


@pytest.fixture(params=NAMES)
def port(request, narrow):
    return prepared(request.param)


def test_gates_and_masks_of_ones_change_no_bit(port):
    # As XLA compiles for users: the emitters that tests ask for round some sums otherwise.
    options = {"xla_cpu_use_fusion_emitters": True}
    apply = jax.jit(LinenApply(port.network), compiler_options=options)
    edited = apply(port.variables, port.images, **port.edits(np.ones))
    np.testing.assert_array_equal(edited, apply(port.variables, port.images))


def test_a_zero_gate_is_a_channel_thrown_away_by_hand(port):
    ones = port.edits(np.ones)
    all_kept = {layer: np.ones(shape[-1], bool) for layer, shape in port.shapes.items()}
    for layer, shape in port.shapes.items():
        for first in (0, 1):
            kept = np.arange(shape[-1]) % 2 == first
            gates = ones["gates"] | {layer: kept.astype(float)}
            gated = port.apply(port.variables, port.images, gates=gates, masks=ones["masks"])
            by_hand = port.by_hand(all_kept | {layer: kept})
            np.testing.assert_allclose(gated, by_hand, rtol=0, atol=1e-5 * port.scale)
            if np.abs(gated - port.logits).max() > 1e-3 * port.scale:
                break
        else:
            pytest.fail(f"nothing depends on the gates of {layer}")


def test_edit_and_the_explicit_arguments_agree(port):
    draw = np.random.default_rng(0)
    edits = port.edits(lambda shape: jnp.asarray(draw.uniform(0.5, 1.5, shape), jnp.float32))
    explicit = port.apply(port.variables, port.images, **edits)
    edited = edit(port.model, **edits)
    found = jax.jit(edited.apply)(edited.params, port.images)
    scale = float(jnp.abs(explicit).max())
    np.testing.assert_allclose(found, explicit, rtol=0, atol=1e-6 * scale)
    assert not np.allclose(found, port.logits, rtol=0, atol=0.1 * port.scale)


def test_the_two_halves_of_every_cut_make_the_whole(port):
    separating = port.separating()
    assert len(separating) >= 12
    # Every cut is a program of its own: some of them, from the first to the last.
    cuts = (
        separating
        if EVERYTHING
        else np.array(separating)[np.linspace(0, -1 + len(separating), 3).astype(int)]
    )
    for layer in cuts:
        prefix, suffix = split(port.model, layer)
        logits = suffix.apply(suffix.params, prefix.apply(prefix.params, port.images))
        np.testing.assert_allclose(
            logits, port.logits, rtol=0, atol=1e-5 * port.scale, err_msg=layer
        )
    beside = [layer for layer in port.shapes if layer not in separating][:2]
    for layer in beside:
        with pytest.raises(ValueError, match="does not separate"):
            split(port.model, layer)


@pytest.mark.parametrize(
    "rules",
    [
        R.GUIDED_BACKPROP,
        R.DECONVNET,
        R.epsilon_plus(),
        R.epsilon_alpha2_beta1(),
        R.epsilon_gamma_box(-3.0, 3.0),
        R.excitation_rules(),
    ],
    ids=lambda rules: rules.name,
)
def test_rule_sets_cover_a_network_with_normalization(narrow, rules):
    port = prepared("vgg_f")
    run = jax.jit(
        lambda model, images: backpropagate(
            model, images, jnp.array([3, 7]), rules, layers=("conv1", "norm1", "pool2")
        )
    )
    found = run(port.model, port.images)
    assert found.audit.uncovered == ()
    (first, second) = (s for s in found.audit.sites if s.kind == "local_response_normalization")
    assert (first.layer, second.layer) == ("norm1", "norm2")
    assert bool(jnp.isfinite(found.attribution).all())
    if rules.relevance:
        np.testing.assert_array_equal(found.layers["conv1"], found.layers["norm1"])
    if "excitation" in rules.name:
        np.testing.assert_allclose(found.layers["pool2"].sum((1, 2, 3)), 1, rtol=1e-4)
