import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxplain.evaluation import bootstrap
from jaxplain.evaluation.bootstrap import class_means


def sample(seed: int = 0):
    """Two skewed classes of unequal size, shuffled together."""
    generator = np.random.default_rng(seed)
    values = np.concatenate([generator.exponential(size=25), 3 + generator.exponential(size=40)])
    labels = np.repeat([0, 1], [25, 40])
    order = generator.permutation(65)
    return values[order].astype(np.float32), labels[order]


@pytest.mark.parametrize(("kind", "name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_intervals_agree_with_scipy(kind, name):
    values, labels = sample()
    result = class_means(
        values, labels, num_classes=2, key=jax.random.key(0), resamples=20_000, kind=kind
    )
    groups = [values[labels == label].astype(np.float64) for label in (0, 1)]
    options = {"method": name, "n_resamples": 20_000, "rng": np.random.default_rng(1)}
    means = scipy.stats.bootstrap(
        groups, lambda a, b, axis: (a.mean(axis) + b.mean(axis)) / 2, **options
    )
    width = means.confidence_interval.high - means.confidence_interval.low
    np.testing.assert_allclose(result.mean.value, np.mean([g.mean() for g in groups]), rtol=1e-6)
    np.testing.assert_allclose(
        [result.mean.low, result.mean.high], means.confidence_interval, atol=0.04 * width
    )
    for label in (0, 1):
        alone = scipy.stats.bootstrap([groups[label]], np.mean, **options).confidence_interval
        bounds = result.per_class.low[label], result.per_class.high[label]
        np.testing.assert_allclose(bounds, alone, atol=0.04 * (alone.high - alone.low))


def test_bca_follows_the_skew_and_percentile_does_not():
    values, labels = sample()
    bounds = {
        kind: class_means(values, labels, num_classes=2, key=jax.random.key(2), kind=kind).mean
        for kind in ("bca", "percentile")
    }
    assert bounds["bca"].low > bounds["percentile"].low
    assert bounds["bca"].high > bounds["percentile"].high


def test_interval_covers_the_truth_as_often_as_it_claims():
    repeats, size = 400, 60
    labels = jnp.repeat(jnp.arange(2), size // 2)
    values = jax.random.normal(jax.random.key(3), (repeats, size)) + (1 + 4 * labels)[None]

    @jax.jit
    @jax.vmap
    def covered(sampled, key):
        mean = class_means(
            sampled, labels, num_classes=2, key=key, resamples=400, confidence=0.9
        ).mean
        return (mean.low <= 3) & (mean.high >= 3)

    share = covered(values, jax.random.split(jax.random.key(4), repeats)).mean()
    # Binomial standard error 0.015; the bootstrap itself falls a little short at 30 a class.
    assert 0.84 < float(share) < 0.95


def test_classes_are_drawn_from_themselves():
    # Constant within each class: only mixing classes could move a resampled mean.
    values, labels = np.array([0.0, 0.0, 0.0, 8.0, 8.0], np.float32), np.array([0, 0, 0, 1, 1])
    result = class_means(values, labels, num_classes=2, key=jax.random.key(0))
    np.testing.assert_array_equal(result.per_class.low, [0, 8])
    np.testing.assert_array_equal(result.per_class.high, [0, 8])
    assert [float(bound) for bound in result.mean] == [4, 4, 4]


def test_hits_of_all_images_leave_room_for_a_miss():
    for n in (5, 102):
        labels = np.arange(n) % 2
        for hits, outcome in ((n, 1.0), (0, 0.0)):
            exact = scipy.stats.binomtest(hits, n).proportion_ci(0.95, "exact")
            found = class_means(np.full(n, outcome), labels, num_classes=2, key=jax.random.key(0))
            np.testing.assert_allclose(found.mean.low, exact.low, atol=1e-6)
            np.testing.assert_allclose(found.mean.high, exact.high, atol=1e-6)
            each = scipy.stats.binomtest(int(outcome) * (n // 2), n // 2).proportion_ci(0.95)
            np.testing.assert_allclose(found.per_class.low[1], each.low, atol=1e-6)


def test_every_class_weighs_alike():
    values, labels = np.array([1.0] * 9 + [0.0], np.float32), np.array([0] * 9 + [1])
    assert (
        float(class_means(values, labels, num_classes=2, key=jax.random.key(0)).mean.value) == 0.5
    )


def test_undefined_values_are_left_out_without_a_trace():
    values, labels = sample()
    holes = np.insert(values, [0, 10, 65], np.nan)
    result = class_means(
        holes, np.insert(labels, [0, 10, 65], [0, 1, 1]), num_classes=2, key=jax.random.key(1)
    )
    full = class_means(values, labels, num_classes=2, key=jax.random.key(1))
    assert result.counts.tolist() == [25, 40]
    np.testing.assert_allclose(result.per_class.value, full.per_class.value, rtol=1e-6)
    width = full.mean.high - full.mean.low
    np.testing.assert_allclose(result.mean.low, full.mean.low, atol=0.1 * width)
    np.testing.assert_allclose(result.mean.high, full.mean.high, atol=0.1 * width)


def test_empty_and_single_valued_classes_are_said_to_be_unknown():
    values = np.array([1.0, 2.0, 3.0, np.nan], np.float32)
    labels = np.array([0, 0, 2, 1])
    result = class_means(values, labels, num_classes=4, key=jax.random.key(0))
    assert result.counts.tolist() == [2, 0, 1, 0]
    np.testing.assert_array_equal(result.per_class.value, [1.5, np.nan, 3, np.nan])
    assert np.isnan(result.per_class.low).tolist() == [False, True, True, True]
    assert float(result.mean.value) == 2.25
    assert 1.99 < float(result.mean.low) < 2.25 < float(result.mean.high) < 2.51


@pytest.mark.parametrize("kind", ["bca", "percentile"])
def test_one_value_a_class_tells_no_spread_unless_all_hit_or_all_miss(kind):
    """By Clopper and Pearson, four hits of four leave a share of misses open."""
    labels, options = np.arange(4), {"num_classes": 4, "key": jax.random.key(0), "kind": kind}
    values = np.array([0.2, 0.4, 0.9, 1.0], np.float32)
    result = class_means(values, labels, **options)
    np.testing.assert_allclose(result.mean.value, 0.625, rtol=1e-6)
    assert np.isnan([float(result.mean.low), float(result.mean.high)]).all()
    for value, name in ((1.0, "low"), (0.0, "high")):
        found = class_means(np.full(4, value, np.float32), labels, **options)
        hits = scipy.stats.binomtest(int(4 * value), 4).proportion_ci(method="exact")
        np.testing.assert_allclose(getattr(found.mean, name), getattr(hits, name), rtol=1e-5)
        assert np.isnan(found.per_class.low).all()


def test_nothing_defined_is_nan():
    result = class_means(
        np.full(3, np.nan, np.float32), np.zeros(3, int), num_classes=1, key=jax.random.key(0)
    )
    assert np.isnan([float(bound) for bound in result.mean]).all()


def test_same_key_same_bounds_and_other_keys_other_bounds():
    values, labels = sample()
    low = [
        float(class_means(values, labels, num_classes=2, key=jax.random.key(seed)).mean.low)
        for seed in (5, 5, 6)
    ]
    assert low[0] == low[1] != low[2]


def test_chunks_of_resamples_change_nothing(monkeypatch):
    values, labels = sample()
    options = {"num_classes": 2, "key": jax.random.key(0), "resamples": 333}
    whole = class_means(values, labels, **options)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 65 * 10)
    bootstrap._class_means.clear_cache()
    chunked = class_means(values, labels, **options)
    np.testing.assert_allclose(chunked.mean.low, whole.mean.low, rtol=1e-6)
    np.testing.assert_allclose(chunked.mean.high, whole.mean.high, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_classes": 1}, "labels"),
        ({"num_classes": 0}, "num_classes"),
        ({"resamples": 1}, "resamples"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_impossible_options_are_refused_by_name(options, name):
    values, labels = sample()
    with pytest.raises(ValueError, match=name):
        class_means(values, labels, **{"num_classes": 2, "key": jax.random.key(0), **options})
