"""The way back through a dense layer, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxplain.model import Model
from jaxplain.trace import product
from jaxplain.trace.backward import Sweep
from jaxplain.trace.product import is_slow, transposed

KEY = jax.random.key(0)


def equation(batch, inputs, outputs):
    x, w = jnp.zeros((batch, inputs)), jnp.zeros((inputs, outputs))
    (found,) = jax.make_jaxpr(lambda x, w: x @ w)(x, w).eqns
    return found.params


@pytest.mark.parametrize("batch", [2, 3, 16])
@pytest.mark.parametrize("inputs", [128, 384])
def test_it_is_the_transpose(batch, inputs):
    signal = jax.random.normal(KEY, (batch, 24))
    weight = jax.random.normal(jax.random.key(1), (inputs, 24))
    found = transposed(signal, weight, equation(batch, inputs, 24))
    np.testing.assert_allclose(
        found, np.asarray(signal) @ np.asarray(weight).T, rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "slow"),
    [
        (2, 1024, 1024, True),
        (16, 2048, 1024, True),
        (1, 1024, 1024, False),  # with a vector
        (17, 1024, 1024, False),  # many rows
        (2, 1024, 512, False),  # few weights
        (2, 1000, 2048, False),  # no whole blocks
    ],
)
def test_it_is_used_where_it_is_faster(batch, inputs, outputs, slow):
    signal, weight = jnp.zeros((batch, outputs)), jnp.zeros((inputs, outputs))
    assert is_slow(signal, weight, equation(batch, inputs, outputs)) == slow


@pytest.mark.parametrize("axes", [((1,), (1,)), ((0,), (0,))])
def test_only_rows_times_a_matrix_are_meant(axes):
    x, w = jnp.zeros((1024, 1024))[: 2 if axes[0] == (1,) else None], jnp.zeros((1024, 1024))
    (turned,) = jax.make_jaxpr(lambda x, w: lax.dot_general(x, w, (axes, ((), ()))))(x, w).eqns
    signal = jnp.zeros((2, 1024))
    assert not is_slow(signal, w, turned.params)
    assert is_slow(signal, w, equation(2, 1024, 1024))  # nothing else was against it


def test_gradients_through_a_large_dense_layer_are_those_of_jax(monkeypatch):
    calls = []

    def watched(*operands):
        calls.append(operands)
        return transposed(*operands)

    monkeypatch.setattr(product, "transposed", watched)
    weight = jax.random.normal(KEY, (8 * 8 * 16, 1024)) / 32

    def network(w, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ w) @ w[:, :5]

    model = Model.from_function(network, weight)
    images = jax.random.normal(jax.random.key(2), (3, 8, 8, 16))
    targets = jnp.array([0, 4, 2])
    expected = jax.grad(lambda x: network(weight, x)[jnp.arange(3), targets].sum())(images)
    found = jax.jit(lambda m, x: Sweep(m, x).gradient(targets, "logit"))(model, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 1  # the other layer is too small for it
