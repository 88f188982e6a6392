import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxplain.solvers import gram, statistics


def data(rows=57, features=4, targets=3, seed=0):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(rows, features)), rng.normal(size=(rows, targets))
    return tuple(jnp.asarray(x) for x in (z, y, rng.random(rows), rng.random((rows, targets))))


def slow(z, y, w):
    """Row by row, as the definition says."""
    q, c, e = 0, 0, 0
    for zn, yn, wn in zip(*map(np.asarray, (z, y, w)), strict=True):
        q, c, e = q + wn * np.outer(zn, zn), c + wn * np.outer(yn, zn), e + wn * yn * yn
    return q, c, e, w.sum()


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize("block", [1, 8, 57, 1000])
def test_shared_weights_equal_the_definition_at_any_block(block):
    z, y, w, _ = data()
    assert_same(statistics(z, y, w, block=block), slow(z, y, w), rtol=1e-12, atol=1e-12)
    assert_same(statistics(z, y, block=block), slow(z, y, jnp.ones(57)), rtol=1e-12, atol=1e-12)


def test_weights_of_each_target_equal_a_loop_over_targets():
    z, y, _, w = data()
    found = statistics(z, y, w, block=10)
    for t in range(3):
        q, c, e, total = slow(z, y[:, t : t + 1], w[:, t])
        assert_same(
            (found.gram[t], found.corr[t], found.energy[t], found.weight[t]),
            (q, c[0], e[0], total),
            rtol=1e-12,
            atol=1e-12,
        )


def test_normalised_statistics_are_means():
    z, y, w, each = data()
    assert_same(
        statistics(z, y, 7 * w).normalised(), statistics(z, y, w / w.sum()), rtol=1e-12, atol=1e-12
    )
    assert_same(
        statistics(z, y, each).normalised(),
        statistics(z, y, each / each.sum(axis=0, keepdims=True)),
        rtol=1e-12,
        atol=1e-12,
    )
    nothing = statistics(z, y, 0 * w).normalised()
    assert all(not np.any(x) for x in nothing)


def test_parts_merge_to_the_whole():
    z, y, w, _ = data()
    parts = [
        gram.add(gram.zeros(4, 3, dtype=float), z[s], y[s], w[s], block=5)
        for s in (slice(0, 20), slice(20, 21), slice(21, 57))
    ]
    whole = gram.merge(gram.merge(parts[0], parts[1]), parts[2])
    assert_same(gram.read(whole), slow(z, y, w), rtol=1e-12, atol=1e-12)


def test_devices_sum_to_the_whole():
    z, y, w, _ = data(rows=64)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = PartitionSpec("data")

    def share(z, y, w):
        return gram.psum(gram.add(gram.zeros(4, 3, dtype=float), z, y, w, block=4), "data")

    total = jax.jit(
        jax.shard_map(share, mesh=mesh, in_specs=split, out_specs=PartitionSpec(), check_vma=False)
    )(z, y, w)
    assert_same(gram.read(total), slow(z, y, w), rtol=1e-12, atol=1e-12)


def test_ten_million_float32_rows_agree_with_float64():
    rows, parts = 10_000, 1_000

    base = jax.random.normal(jax.random.key(0), (rows, 2), "float32")

    def part(index):
        z = 3 + base * jnp.sin(index.astype("float32"))
        return z, (z[:, :1] * z[:, 1:]) / 7

    def more(carry, index):
        compensated, exact = carry
        z, y = part(index)
        compensated = gram.add(compensated, z, y)
        exact = gram.add(exact, z.astype(float), y.astype(float), block=rows)
        return (compensated, exact), None

    @jax.jit
    def stream():
        start = gram.zeros(2, 1), gram.zeros(2, 1, dtype=float)
        return jax.lax.scan(more, start, jnp.arange(parts))[0]

    single, double = stream()
    assert single.sums.gram.dtype == jnp.float32

    def error(found):
        pairs = zip(found, gram.read(double), strict=True)
        return max(float(jnp.max(jnp.abs(a.astype(float) / b - 1))) for a, b in pairs)

    assert error(gram.read(single)) <= 1e-6
    # the sums alone, without what rounding lost, would not do
    assert error(single.sums) > 3 * error(gram.read(single))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"features": jnp.ones((5, 3))}, "features"),
        ({"targets": jnp.ones((4, 1))}, "targets"),
        ({"weights": jnp.ones((5, 1))}, "weights"),
        ({"block": 0}, "block"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(change, name):
    good = {"features": jnp.ones((5, 2)), "targets": jnp.ones((5, 1)), "weights": jnp.ones(5)}
    # shapes that contradict each other are caught by the signature first, where it is checked
    with pytest.raises((ValueError, TypeError), match=name):
        gram.add(gram.zeros(2, 1, dtype=float), **(good | change))


def test_empty_or_unequal_accumulators_are_refused():
    with pytest.raises(ValueError, match="features"):
        gram.zeros(0, 1)
    with pytest.raises(ValueError, match="shape"):
        gram.merge(gram.zeros(2, 1), gram.zeros(3, 1))


def test_targets_of_whole_features_are_not_cut():
    states = jnp.array([[1, 0], [1, 1], [0, 1]])
    found = statistics(states, jnp.array([[0.5], [0.25], [1.0]]))
    np.testing.assert_allclose(found.corr, [[0.75, 1.25]])
    with pytest.raises(ValueError, match="dtype must be floating, got int32"):
        gram.zeros(2, 1, dtype=jnp.int32)
