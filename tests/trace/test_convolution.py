"""The transposed convolution against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxplain.trace.convolution import is_plain, transposed


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
    w = jax.random.normal(jax.random.key(0), (*kernel, 4 // groups, 8))

    def convolve(x, w=w):
        return lax.conv_general_dilated(
            x, w, stride, padding, lhs_dilation=spread, rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    params = equation(convolve, x).params
    assert is_plain(params)
    y, pull = jax.vjp(convolve, x)
    signal = jax.random.normal(jax.random.key(1), y.shape)
    found = transposed(signal, w, size, params)
    assert found.shape == x.shape
    np.testing.assert_allclose(found, pull(signal)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("numbers", [("NCHW", "OIHW", "NCHW"), ("NHWC", "OIHW", "NHWC")])
def test_other_layouts_are_not_plain(numbers):
    x, w = jnp.zeros((1, 3, 3, 3)), jnp.zeros((3, 3, 3, 3))
    params = equation(
        lambda x: lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=numbers), x
    ).params
    assert not is_plain(params)
