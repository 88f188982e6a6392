"""Convolutions on blocks and their transposes, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxplain.trace.convolution import blocked, is_plain, pays, transposed


def equation(function, *args):
    return jax.make_jaxpr(function)(*args).eqns[0]


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(
        st.tuples(st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.integers(-1, 2), st.integers(0, 1)),
    ),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 1)),
    spread=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
)
def test_equals_the_transpose_that_jax_derives(
    size, kernel, stride, padding, dilation, spread, groups
):
    x = jnp.zeros((2, *size, 4))
    w = np.random.default_rng(0).normal(size=(*kernel, 4 // groups, 8)).astype(np.float32)

    def convolve(x, w=w):
        return lax.conv_general_dilated(
            x, w, stride, padding, lhs_dilation=spread, rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    params = equation(convolve, x).params
    assert is_plain(params)
    shape = jax.eval_shape(convolve, x).shape
    signal = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    @jax.jit
    def both(signal):
        return transposed(signal, w, size, params), jax.vjp(convolve, x)[1](signal)[0]

    found, expected = both(signal)
    assert found.shape == x.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("numbers", [("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NHWC")])
def test_other_layouts_are_not_plain(numbers):
    x, w = jnp.zeros((1, 3, 3, 3)), jnp.zeros((3, 3, 3, 3))
    params = equation(
        lambda x: lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=numbers), x
    ).params
    assert not is_plain(params)


@settings(max_examples=10)
@given(
    size=st.tuples(st.sampled_from([6, 8]), st.sampled_from([6, 10])),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    before=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    more=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    channels=st.sampled_from([(1, 8), (3, 2)]),
)
def test_blocks_give_the_same_convolution(size, kernel, before, more, channels):
    # As much behind as makes the output even.
    padding = [(b, 2 * m + (b + k - 1) % 2) for b, k, m in zip(before, kernel, more, strict=True)]
    random = np.random.default_rng(0)
    x = random.normal(size=(2, *size, channels[0])).astype(np.float32)
    w = random.normal(size=(*kernel, *channels)).astype(np.float32)

    def convolve(x):
        return lax.conv_general_dilated(
            x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    params = equation(convolve, x).params
    found, expected = jax.jit(lambda x: (blocked(x, w, params), convolve(x)))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "options", "expected"),
    [
        ((112, 112, 3), (5, 5, 3, 8), {}, True),
        ((112, 112, 8), (5, 5, 8, 3), {}, True),
        ((112, 112, 3), (3, 3, 3, 64), {}, False),
        ((111, 112, 3), (5, 5, 3, 8), {}, False),
        ((112, 112, 3), (5, 5, 3, 8), {"window_strides": (2, 2)}, False),
        ((112, 112, 4), (5, 5, 1, 8), {"feature_group_count": 4}, False),
    ],
)
def test_blocks_pay_where_there_are_few_channels(size, kernel, options, expected):
    def convolve(x):
        return lax.conv_general_dilated(
            x,
            jnp.zeros(kernel),
            padding=[(k // 2, k // 2) for k in kernel[:2]],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            **{"window_strides": (1, 1)} | options,
        )

    x = jnp.zeros((1, *size))
    params = jax.make_jaxpr(convolve)(x).eqns[-1].params
    assert pays(x, jnp.zeros(kernel), params) is expected
