"""The transpose of max pooling, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxplain.trace.pooling import is_disjoint, routed


def pool(window, strides, padding):
    return lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
    )


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    gap=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    padding=st.tuples(
        st.tuples(st.integers(0, 1), st.integers(0, 2)),
        st.tuples(st.just(0), st.integers(0, 1)),
    ),
)
def test_every_window_sends_to_the_first_of_its_largest(size, window, gap, padding):
    # Whole numbers of few values, so that most windows have ties.
    x = np.random.default_rng(0).integers(0, 3, (2, *size, 3)).astype(np.float32)
    pooled = pool(window, [w + g for w, g in zip(window, gap, strict=True)], padding)
    params = jax.make_jaxpr(pooled)(x).eqns[-1].params
    assert is_disjoint(params)
    signal = np.random.default_rng(1).normal(size=jax.eval_shape(pooled, x).shape)

    @jax.jit
    def both(signal, x):
        return routed(signal, x, params), jax.vjp(pooled, x)[1](signal)[0]

    found, expected = both(signal.astype(np.float32), x)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("window", "strides", "expected"),
    [((2, 2), (2, 2), True), ((3, 3), (2, 2), False), ((7, 7), (7, 7), False)],
)
def test_small_disjoint_windows_are_covered(window, strides, expected):
    x = jnp.zeros((1, 14, 14, 1))
    params = jax.make_jaxpr(pool(window, strides, ((0, 0), (0, 0))))(x).eqns[-1].params
    assert is_disjoint(params) is expected
