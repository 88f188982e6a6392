import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxplain.solvers import descend


def bowl(x, step):
    del step
    return jnp.sum((x - jnp.array([2.0, 0.25])) ** 2)


def box(x):
    return jnp.clip(x, 0.0, 1.0)


def test_steps_equal_adam_written_out():
    def objective(x, step):
        return jnp.sum(jnp.cosh(x)) + jnp.sum(x) * step / 10

    # the start is projected first: 1.0 lies outside
    x, m, v = np.array([0.5, 0.9]), np.zeros(2), np.zeros(2)
    losses = []
    for t in range(1, 8):
        losses.append(np.cosh(x).sum() + x.sum() * (t - 1) / 10)
        g = np.sinh(x) + (t - 1) / 10
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = np.clip(x, 0.2, 0.9)
    start = jnp.array([0.5, 1.0])
    found = descend(objective, start, steps=7, project=lambda x: jnp.clip(x, 0.2, 0.9))
    np.testing.assert_allclose(found.solution.value, x, rtol=1e-10)
    np.testing.assert_allclose(found.history, losses, rtol=1e-10)


def test_objective_may_bring_its_own_gradient():
    own = descend(jax.value_and_grad(bowl), jnp.zeros(2), steps=9, project=box, has_gradient=True)
    plain = descend(bowl, jnp.zeros(2), steps=9, project=box)
    jax.tree.map(np.testing.assert_array_equal, own, plain)


def test_constrained_minimum_is_found_and_certified():
    found = descend(bowl, jnp.zeros(2), steps=300, project=box)
    np.testing.assert_allclose(found.solution.value, [1.0, 0.25], atol=1e-4)
    assert found.solution.converged
    assert found.solution.steps == 300
    assert found.history[-1] < found.history[0]
    short = descend(bowl, jnp.zeros(2), steps=3, project=box)
    assert not short.solution.converged
    assert short.solution.gap > 0.1


def test_any_transform_and_any_schedule():
    sgd = descend(bowl, jnp.zeros(2), steps=1, optimiser=optax.sgd(0.25))
    np.testing.assert_allclose(sgd.solution.value, [1.0, 0.125])
    still = descend(bowl, jnp.zeros(2), steps=5, learning_rate=lambda step: 0.0 * step)
    np.testing.assert_array_equal(still.solution.value, 0)


def test_breakdown_keeps_the_last_good_value_and_says_so():
    def cliff(x, step):
        return jnp.where(step < 4, jnp.sum(x**2), jnp.nan)

    found = descend(cliff, jnp.ones(2), steps=10)
    expected = descend(cliff, jnp.ones(2), steps=4)
    np.testing.assert_array_equal(found.solution.value, expected.solution.value)
    assert found.solution.steps == 4
    assert not found.solution.converged
    assert found.solution.gap == np.inf
    assert np.isfinite(found.history).all()


def test_trees_jit_vmap_and_derivatives():
    def objective(tree, step):
        del step
        return jnp.sum((tree["a"] - 1) ** 2) + (tree["b"] + 1) ** 2

    starts = {"a": jnp.zeros((3, 2)), "b": jnp.arange(3.0)}
    many = jax.jit(jax.vmap(lambda s: descend(objective, s, steps=50)))(starts)
    one = descend(objective, jax.tree.map(lambda x: x[1], starts), steps=50)
    np.testing.assert_allclose(many.solution.value["a"][1], one.solution.value["a"], rtol=1e-12)
    np.testing.assert_allclose(many.history[1], one.history, rtol=1e-12)

    def end(x):
        return descend(bowl, jnp.stack([x, x]), steps=3, optimiser=optax.sgd(0.1)).solution.value[0]

    np.testing.assert_allclose(jax.grad(end)(0.3), 0.8**3)


def test_no_steps_return_the_projected_start():
    found = descend(bowl, jnp.full(2, 7.0), steps=0, project=box)
    np.testing.assert_array_equal(found.solution.value, 1)
    assert found.history.shape == (0,)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="steps"):
        descend(bowl, jnp.ones(2), steps=-1)
    with pytest.raises(ValueError, match="learning_rate"):
        descend(bowl, jnp.ones(2), steps=1, learning_rate=0.2, optimiser=optax.sgd(0.1))
    with pytest.raises(TypeError, match="initial"):
        descend(bowl, jnp.ones(2, int), steps=1)
