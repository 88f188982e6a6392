import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain.solvers import Certificate, iterate


def halve(x):
    return x / 2


def size(x):
    return Certificate(jnp.abs(x), jnp.ones_like(x))


def test_each_problem_stops_at_its_own_tolerance_and_never_moves_again():
    run = iterate(halve, size, jnp.array([1.0, 8.0, 0.1]), tolerance=0.3, max_steps=100)
    np.testing.assert_array_equal(run.state, [0.25, 0.25, 0.1])
    np.testing.assert_array_equal(run.steps, [2, 5, 0])
    assert run.converged.all()


def test_a_problem_gives_the_same_bits_alone_in_a_batch_and_under_vmap():
    start = jnp.array([0.7, 123.4, 5.0])

    def logistic(x):
        return x - 0.1 * jnp.tanh(x)

    def solve(x):
        return iterate(logistic, size, x, tolerance=0.01, max_steps=2000)

    batch, mapped = jax.jit(solve)(start), jax.jit(jax.vmap(solve))(start)
    for i in range(3):
        alone = jax.jit(solve)(start[i : i + 1])
        assert batch.state[i] == alone.state[0] == mapped.state[i]
        assert batch.steps[i] == alone.steps[0] == mapped.steps[i]


def test_step_limit_is_reported_as_not_converged():
    run = iterate(halve, size, jnp.array([1.0, 64.0]), tolerance=0.3, max_steps=3)
    np.testing.assert_array_equal(run.converged, [True, False])
    np.testing.assert_array_equal(run.gap, [0.25, 8.0])
    np.testing.assert_array_equal(run.steps, [2, 3])


def test_no_steps_are_allowed_but_certified():
    run = iterate(halve, size, jnp.array([0.1, 1.0]), tolerance=0.3, max_steps=0)
    np.testing.assert_array_equal(run.converged, [True, False])
    np.testing.assert_array_equal(run.state, [0.1, 1.0])


def test_breakdown_keeps_the_last_finite_state_and_spares_the_others():
    def explode(x):
        return jnp.where(x > 100, jnp.nan, x * 3)

    def below(x):
        return Certificate(jnp.abs(x - 9), jnp.ones_like(x))

    run = iterate(explode, below, jnp.array([1.0, 50.0]), tolerance=0.5, max_steps=40)
    np.testing.assert_array_equal(run.state, [9.0, 150.0])
    np.testing.assert_array_equal(run.converged, [True, False])
    assert run.gap[1] == 141.0


def test_start_that_is_not_finite_has_an_infinite_gap():
    run = iterate(halve, size, jnp.array([jnp.nan, jnp.inf, 1.0]), tolerance=0.3, max_steps=9)
    np.testing.assert_array_equal(run.converged, [False, False, True])
    np.testing.assert_array_equal(run.gap[:2], [np.inf, np.inf])


def test_certificate_may_be_asked_for_less_often():
    calls = iterate(halve, size, jnp.array([1.0]), tolerance=0.3, max_steps=100, stride=4)
    assert calls.steps[0] == 4
    assert calls.state[0] == 1 / 16


def test_forward_derivative_passes_through():
    def end(x):
        return iterate(halve, size, x, tolerance=0.3, max_steps=9).state

    _, slope = jax.jvp(end, (jnp.array([1.0]),), (jnp.array([1.0]),))
    assert slope[0] == 0.25


@pytest.mark.parametrize(("argument", "value"), [("max_steps", -1), ("stride", 0)])
def test_bad_limits_are_refused_by_name(argument, value):
    limits = {"max_steps": 3, argument: value}
    with pytest.raises(ValueError, match=argument):
        iterate(halve, size, jnp.ones(1), tolerance=0.1, **limits)
