"""Strided operations at stride one: sizes, a slow version, guided backprop without strides."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_weights import fixture
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxplain.evaluation import grid_energy
from jaxplain.model import Model
from jaxplain.trace import backpropagate, resampling
from jaxplain.trace import rules as R
from jaxplain.trace.backward import Seed, Sweep
from jaxplain.trace.resampling import unit_size, unit_stride_convolution, unit_stride_pooling


def parameters(function, *arrays):
    """What the equation that a function is made of is told."""
    (equation,) = jax.make_jaxpr(function)(*arrays).eqns
    return equation.params


def settings(count):
    """Draw (A, M, S, O, O', dilation) that leave at least one position."""
    rng = np.random.default_rng(5)
    while count:
        size, window, stride, low, high, dilation = rng.integers(
            (1, 1, 1, 0, 0, 1), (40, 9, 6, 5, 5, 4)
        )
        if size + low + high >= (window - 1) * dilation + 1:
            count -= 1
            yield tuple(int(n) for n in (size, window, stride, low, high, dilation))


def forward(image, weight, strides, padding, dilation, **more):
    return lax.conv_general_dilated(
        image, weight, strides, padding, rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), **more,
    )  # fmt: skip


def test_shapes_are_exact_for_any_size_window_stride_and_padding():
    drawn = list(settings(1000))
    for rows, columns in zip(drawn[::2], drawn[1::2], strict=True):
        (size, window, stride, low, high, dilation) = zip(rows, columns, strict=True)
        padding = list(zip(low, high, strict=True))
        image = jax.ShapeDtypeStruct((1, *size, 2), jnp.float32)
        weight = jax.ShapeDtypeStruct((*window, 2, 3), jnp.float32)

        def run(image, weight, stride=stride, padding=padding, dilation=dilation):
            return forward(image, weight, stride, padding, dilation)

        told = parameters(run, image, weight)

        def back(signal, weight, image, told=told):
            return unit_stride_convolution(signal, weight, image, told)

        signal = jax.eval_shape(run, image, weight)
        assert jax.eval_shape(back, signal, weight, image).shape == image.shape
        for axis in (0, 1):
            extent = (window[axis] - 1) * dilation[axis] + 1
            positions = unit_size(size[axis], window[axis], padding[axis], dilation=dilation[axis])
            # Eq. (2) at stride one, and eq. (3).
            assert size[axis] + sum(padding[axis]) == extent + positions - 1
            assert signal.shape[1 + axis] == (positions - 1) // stride[axis] + 1


def slow(signal, weight, size, padding, dilation):
    """Resample, then add each signal's window to a padded canvas, in loops."""
    counts = [size[a] + sum(padding[a]) - (weight.shape[a] - 1) * dilation[a] for a in (0, 1)]
    canvas = np.zeros((size[0] + sum(padding[0]), size[1] + sum(padding[1]), weight.shape[2]))
    for i, j in itertools.product(*map(range, counts)):
        y, x = (
            int((n + 0.5) * b / c) for n, b, c in zip((i, j), signal.shape, counts, strict=False)
        )
        for u, v in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
            canvas[i + u * dilation[0], j + v * dilation[1]] += weight[u, v] @ signal[y, x]
    return canvas[padding[0][0] :, padding[1][0] :][: size[0], : size[1]]


@pytest.mark.parametrize(
    ("size", "window", "strides", "padding", "dilation"),
    [
        ((9, 12), (3, 2), (2, 3), ((0, 0), (0, 0)), (1, 1)),
        ((10, 7), (3, 3), (3, 2), ((2, 0), (0, 1)), (1, 2)),
        ((5, 5), (5, 4), (4, 4), ((2, 3), (3, 2)), (1, 1)),
    ],
)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_convolutions_equal_a_slow_version(size, window, strides, padding, dilation, layout):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(*window, 2, 3)).astype(np.float32)
    image = jnp.zeros((1, *size, 2) if layout == "NHWC" else (1, 2, *size))

    def run(image, weight):
        return lax.conv_general_dilated(
            image, weight, strides, padding, rhs_dilation=dilation,
            dimension_numbers=(layout, "HWIO", layout),
        )  # fmt: skip

    told = parameters(run, image, weight)
    signal = rng.normal(size=run(image, weight).shape).astype(np.float32)
    found = unit_stride_convolution(jnp.asarray(signal), jnp.asarray(weight), image, told)
    last = signal if layout == "NHWC" else signal.transpose(0, 2, 3, 1)
    expected = slow(last[0], weight, size, padding, dilation)
    found = found if layout == "NHWC" else found.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_pooling_hands_each_resampled_signal_to_the_winners_of_its_windows():
    x = jnp.asarray(np.random.default_rng(2).permutation(7).astype(np.float32)).reshape(1, 7, 1, 1)

    def run(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 1, 1), (1, 2, 1, 1), "VALID")

    told = parameters(run, x)
    signal = jnp.array([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)
    expected = np.zeros(7)
    for place, arrived in enumerate([1, 1, 10, 100, 100]):
        expected[place + int(np.argmax(x[0, place : place + 3]))] += arrived
    found = unit_stride_pooling(signal, x, told, largest=True)
    assert found.ravel().tolist() == expected.tolist()

    def add(x):
        return lax.reduce_window(x, 0.0, lax.add, (1, 3, 1, 1), (1, 2, 1, 1), "VALID")

    found = unit_stride_pooling(signal, x, parameters(add, x), largest=False)
    assert found.ravel().tolist() == [1, 2, 12, 111, 210, 200, 100]


def network(strides, norm=1.0):
    """Convolutions with the strides, the first with a batch norm's scale behind it."""

    def apply(params, x):
        one, two = params
        x = forward(x, one, strides, ((1, 1), (1, 1)), (1, 1)) * (norm * jnp.ones((1, 1, 1, 6)))
        x = checkpoint_name(jax.nn.relu(x + 0.1), "conv1")
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME")
        x = jax.nn.relu(forward(x, two, (1, 1), "SAME", (1, 1)))
        return checkpoint_name(x, "conv2").mean((1, 2))

    rng = np.random.default_rng(3)
    one, two = (rng.normal(size=s).astype(np.float32) for s in ((3, 3, 2, 6), (3, 3, 6, 4)))
    return Model.from_function(apply, (jnp.asarray(one), jnp.asarray(two)))


def test_without_strides_it_is_guided_backprop_bit_for_bit():
    images = jax.random.normal(jax.random.key(0), (2, 9, 8, 2))
    model, targets = network((1, 1), norm=0.7), jnp.array([0, 3])
    guided = backpropagate(model, images, targets, R.GUIDED_BACKPROP)
    for pooling in (False, True):
        found = backpropagate(model, images, targets, R.unit_stride(pooling=pooling))
        np.testing.assert_array_equal(found.attribution, guided.attribution)
        assert {s.rule for s in found.audit.sites if s.kind == "conv"} == {"own derivative"}


def test_a_scale_behind_a_strided_convolution_is_kept_and_the_audit_names_the_rule():
    images = jax.random.normal(jax.random.key(0), (2, 9, 8, 2))
    targets = jnp.array([0, 3])
    model = network((2, 3), norm=0.5)
    one, two = model.params
    found = backpropagate(model, images, targets, R.unit_stride())
    folded = dataclasses.replace(network((2, 3)), params=(one / 2, two))
    plain = backpropagate(folded, images, targets, R.unit_stride())
    np.testing.assert_allclose(found.attribution, plain.attribution, atol=1e-6)
    assert float(jnp.abs(plain.attribution).max()) > 0.1
    assert [s.rule for s in plain.audit.sites if s.kind == "conv"] == [
        "UnitStride()", "own derivative",
    ]  # fmt: skip
    assert plain.attribution.shape == images.shape


def test_averages_over_windows_are_covered_when_asked_for():
    def apply(weight, x):
        x = jax.nn.relu(forward(x, weight, (2, 2), "SAME", (1, 1)))
        x = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "VALID") / 9
        return x.mean((1, 2))

    images, targets = jax.random.normal(jax.random.key(0), (2, 13, 13, 2)), jnp.array([0, 3])
    model = Model.from_function(apply, network((1, 1)).params[0])
    one, other = (
        backpropagate(model, images, targets, R.unit_stride(pooling=pooling)).attribution
        for pooling in (False, True)
    )
    assert one.shape == other.shape == images.shape
    assert float(jnp.abs(one - other).max()) > 1e-3


def test_the_grid_of_alexnets_first_layers_goes():
    """AlexNet up to its second convolution, fixture weights."""
    kernels = {
        name: jnp.asarray(fixture(f"{name}.weight", shape).transpose(2, 3, 1, 0))
        for name, shape in (("features.0", (64, 3, 11, 11)), ("features.3", (192, 64, 5, 5)))
    }

    def apply(params, x):
        x = forward(x, params["features.0"], (4, 4), ((2, 2), (2, 2)), (1, 1))
        x = checkpoint_name(jax.nn.relu(x), "conv1")
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(forward(x, params["features.3"], (1, 1), ((2, 2), (2, 2)), (1, 1)))
        return checkpoint_name(x, "conv2").mean((1, 2))

    model = Model.from_function(apply, kernels)
    smooth = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    images = jax.image.resize(smooth, (2, 127, 127, 3), "cubic")

    @jax.jit
    def energies(model, images):
        sweep = Sweep(model, images)
        seed = sweep.activation("conv1") * (jnp.arange(64) == 5)[None, None, None]
        found = []
        for rules in (R.GUIDED_BACKPROP, R.unit_stride()):
            back = sweep.pull(rules, {"conv1": Seed(seed)}, ["input"])["input"].value
            heat = jnp.linalg.norm(jnp.maximum(back, 0), axis=-1)[:, 8:-8, 8:-8]
            found.append(grid_energy(heat, 4))
        return found

    before, after = energies(model, images)
    assert float((before / after).min()) > 50


def test_resampling_takes_the_middle_of_each_share():
    signal = jnp.arange(4.0)
    for size in (1, 3, 4, 5, 7, 29):
        found = resampling.nearest(signal, [0], [size])
        centres = (np.arange(size) + 0.5) * 4 / size
        np.testing.assert_array_equal(found, np.floor(centres + 1e-9))
