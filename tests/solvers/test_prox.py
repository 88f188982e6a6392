import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxplain.solvers import (
    ball_threshold,
    project_box,
    project_l1_ball,
    project_l1_ball_nonnegative,
    project_simplex,
    soft_threshold,
)

D = 6
numbers = st.floats(-100, 100, allow_nan=False, width=32)
points = st.lists(numbers, min_size=D, max_size=D).map(lambda x: np.array(x, float))
radii = st.floats(0, 150, allow_nan=False, width=32)

EYE = np.eye(D)
PROJECTIONS = {
    # the projection, and the corners of its set: x is nearest to v if and only if
    # (v − x)·(corner − x) ≤ 0 for each of them
    "l1 ball": (jax.jit(project_l1_ball), lambda r: r * np.concatenate([EYE, -EYE])),
    "l1 ball, w >= 0": (
        jax.jit(project_l1_ball_nonnegative),
        lambda r: r * np.concatenate([EYE, np.zeros((1, D))]),
    ),
    "simplex": (jax.jit(project_simplex), lambda r: r * EYE),
    "box": (
        jax.jit(lambda v, r: project_box(v, -r, r)),
        lambda r: r * (2 * ((np.arange(2**D)[:, None] >> np.arange(D)) & 1) - 1),
    ),
}
threshold = jax.jit(ball_threshold)
every_projection = pytest.mark.parametrize("name", PROJECTIONS)


@every_projection
@given(v=points, r=radii)
def test_projection_is_the_nearest_point(name, v, r):
    project, corners = PROJECTIONS[name]
    x = np.asarray(project(jnp.asarray(v), r))
    size = 1 + np.abs(v).max() + r
    assert ((corners(r) - x) @ (v - x) <= 1e-12 * size**2).all()
    # and it lies in the set: nearest to itself
    np.testing.assert_allclose(project(jnp.asarray(x), r), x, atol=1e-13 * size)


@every_projection
@given(v=points, other=points, r=radii)
def test_projection_does_not_expand(name, v, other, r):
    project, _ = PROJECTIONS[name]
    apart = np.linalg.norm(project(jnp.asarray(v), r) - project(jnp.asarray(other), r))
    assert apart <= np.linalg.norm(v - other) * (1 + 1e-12) + 1e-12


@given(v=points, t=st.floats(0, 50))
def test_soft_threshold_satisfies_its_optimality_conditions(v, t):
    x = np.asarray(soft_threshold(jnp.asarray(v), t))
    subgradient = v - x
    assert (np.abs(subgradient) <= t * (1 + 1e-12)).all()
    np.testing.assert_allclose(subgradient[x != 0], t * np.sign(x[x != 0]), atol=1e-12)


@given(v=points, r=radii, start=st.floats(0, 200))
def test_newton_finds_the_threshold_of_sorting_from_any_start(v, r, start):
    v = jnp.asarray(v)
    theta = threshold(jnp.abs(v), jnp.asarray(r), start=jnp.asarray(start))
    expected = PROJECTIONS["l1 ball"][0](v, r)
    atol = 1e-11 * (1 + float(jnp.abs(v).max()))
    np.testing.assert_allclose(soft_threshold(v, theta), expected, atol=atol)


def test_inside_the_ball_nothing_moves_and_radius_zero_gives_zero():
    v = jnp.array([0.5, -0.25, 0.125])
    np.testing.assert_array_equal(project_l1_ball(v, 1.0), v)
    np.testing.assert_array_equal(project_l1_ball(v, 0.0), jnp.zeros(3))
    np.testing.assert_array_equal(project_l1_ball(jnp.ones(4), 2.0), jnp.full(4, 0.5))


def test_batches_have_a_radius_each_and_equal_singles():
    v = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 6)))
    r = jnp.asarray([[0.5, 1.0], [2.0, 20.0], [0.0, 3.0]])
    project, _ = PROJECTIONS["l1 ball"]
    whole = project(v, r)
    for i, j in np.ndindex(3, 2):
        np.testing.assert_allclose(whole[i, j], project(v[i, j], r[i, j]), atol=1e-14)


@pytest.mark.parametrize("name", ["l1 ball", "l1 ball, w >= 0", "simplex"])
def test_derivative_equals_finite_differences(name):
    project, _ = PROJECTIONS[name]
    v, r = jnp.array([1.3, -0.4, 0.9, 0.1, -2.0, 0.3]), 1.7
    check_grads(project, (v, r), order=1, modes=("fwd", "rev"), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: project_l1_ball(jnp.ones(2), -1.0), "radius"),
        (lambda: project_l1_ball_nonnegative(jnp.ones(2), -1.0), "radius"),
        (lambda: project_simplex(jnp.ones(2), 0.0), "total"),
        (lambda: project_box(jnp.ones(2), 1.0, 0.0), "low"),
    ],
)
def test_impossible_sets_are_refused_by_name(call, name):
    with pytest.raises(ValueError, match=name):
        call()
