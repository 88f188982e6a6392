"""Closing channels, against falls that are known by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chip_networks import CHANNELS, PLANTED, images, planted, planted_images, small
from fitted import features, importances

from jaxplain.data.an8flower import dataset_arrays
from jaxplain.evaluation import ablate_channels, ablate_features, ablation
from jaxplain.methods.chip import shipped
from jaxplain.models import load_model

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def truth():
    weights = np.zeros((4, CHANNELS), np.float32)
    for label, channels in PLANTED.items():
        weights[label, list(channels)] = 1
    return dataclasses.replace(importances(planted(), 4)["units"], weights=jnp.asarray(weights))


def test_the_channels_that_a_class_goes_by_cost_it_all_its_probability(truth):
    images, labels = planted_images(12), np.arange(12) % 3
    found = ablate_channels(planted(), images, labels, truth, key=KEY, batch_size=5, draws=10)
    assert found.closed.tolist() == [2, 3, 1, 0]
    model = planted()
    before = jax.nn.softmax(model(images))[np.arange(12), labels]
    shut = images.copy()
    for row, label in enumerate(labels):
        shut[row, ..., list(PLANTED[label])] = 0
    after = jax.nn.softmax(model(shut))[np.arange(12), labels]
    np.testing.assert_allclose(found.highest.mean.value, np.mean(before - after), rtol=1e-4)
    assert found.difference.mean.low > 0.3
    np.testing.assert_allclose(
        found.difference.mean.value,
        found.highest.mean.value - found.random.mean.value,
        rtol=1e-4,
    )


def test_channels_that_do_not_matter_are_worse_than_any(truth):
    images, labels = planted_images(12), np.arange(12) % 3
    wrong = dataclasses.replace(truth, weights=truth.weights[jnp.array([2, 0, 1, 3])])
    found = ablate_channels(planted(), images, labels, wrong, key=KEY, draws=10)
    assert found.difference.mean.high < 0


def test_bad_options_are_refused_by_name(truth):
    images, labels = planted_images(3), np.arange(3)
    for options, message in (({"top": 0}, "top is 0"), ({"draws": 0}, "draws is 0")):
        with pytest.raises(ValueError, match=message):
            ablate_channels(planted(), images, labels, truth, key=KEY, **options)
    narrow = dataclasses.replace(truth, weights=truth.weights[:, :5])
    with pytest.raises(ValueError, match="for 5 channels, the layer has 12"):
        ablate_channels(planted(), images, labels, narrow, key=KEY)


@pytest.mark.parametrize("variant", ["single_6c", "double_12c"])
def test_flowers_lose_more_by_the_channels_of_their_class_than_by_others(variant):
    model = load_model(f"an8flower-{variant.replace('_', '-')}")
    test = dataset_arrays(variant, "test", 24)
    inputs = model.preprocessing.batch(test.images)
    importance = shipped(model)["conv4"]
    found = ablate_channels(
        model, inputs, test.labels, importance, key=KEY, draws=4, batch_size=12, resamples=500
    )
    assert (found.closed == 10).all()
    assert found.difference.mean.low > 0.2


def test_the_features_of_a_class_cost_it_more_accuracy_than_others():
    images, labels = planted_images(24), np.arange(24) % 3
    used = sorted(channel for channels in PLANTED.values() for channel in channels)
    weights = np.zeros((4, CHANNELS), np.float32)
    weights[0, used] = 1
    own = dataclasses.replace(features(planted(), 4), weights=jnp.asarray(weights))
    idle = np.setdiff1d(np.arange(CHANNELS), used)[:2]
    none = np.zeros((4, CHANNELS), np.float32)
    none[1, idle] = 1
    blind = dataclasses.replace(own, weights=jnp.asarray(none))
    found = ablate_features(
        planted(), images, labels, {"All": own, "Idle": blind}, key=KEY, batch_size=7
    )
    assert found.original.mean.value == 1
    known, others = found.sets["All"], found.sets["Idle"]
    # Without any channel the answer is "none of them".
    assert (known.accuracy.mean.value, known.channels) == (0, len(used))
    assert others.accuracy.mean.value == 1
    assert others.random.shape == (20,)
    assert others.random.mean() < 1
    assert known.fall.mean.low > 0.2
    np.testing.assert_allclose(known.fall.mean.value, known.random.mean(), rtol=1e-5)
    rows = found.rows()
    assert [row["set"] for row in rows] == [
        "original", "All", "random for All", "Idle", "random for Idle",
    ]  # fmt: skip
    assert all(row["low"] <= row["mca"] <= row["high"] for row in rows)


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("pool", ["all", "convolution"])
def test_random_channels_are_of_the_pool_s_layers(matched, pool, monkeypatch):
    """Of all of them, as in the paper, or of each as many as were selected there."""
    own = features(small(), 5)
    weights = np.zeros_like(own.weights)
    weights[2, [0, 1, 2]] = weights[1, 3] = 1  # all four of the first layer
    settings = dataclasses.replace(own.settings, pool=pool)
    own = dataclasses.replace(own, weights=jnp.asarray(weights), settings=settings)
    given = []

    def watched(model, images, labels, gates, batch_size):
        given.append(gates)
        return np.zeros((len(gates), len(labels)), np.float32)

    monkeypatch.setattr(ablation, "_right", watched)
    options = {"key": KEY, "draws": 50, "matched": matched}
    found = ablate_features(small(), images(5), np.arange(5), {"All": own}, **options)
    assert found.sets["All"].channels == 4
    selected, *drawn = given[1]
    assert {name: int((g == 0).sum()) for name, g in selected.items() if not g.all()} == {
        "conv1": 4
    }
    closed = np.array([[(g == 0).sum() for g in gates.values()] for gates in drawn])
    assert closed.shape[0] == 50
    assert (closed.sum(1) == 4).all()
    layers = ["conv1", "pool1", "conv2", "fc"] if pool == "all" else ["conv1", "conv2"]
    if matched:
        assert list(drawn[0]) == ["conv1"]
    else:
        assert list(drawn[0]) == layers
        shares = [block.channels for block in own.blocks if block.layer in layers]
        np.testing.assert_allclose(closed.mean(0), 4 * np.array(shares) / sum(shares), atol=0.5)


def test_sets_without_features_and_bad_numbers_are_refused_by_name():
    images, labels = planted_images(3), np.arange(3)
    own = features(planted(), 4)
    with pytest.raises(ValueError, match="draws is 0"):
        ablate_features(planted(), images, labels, {"All": own}, key=KEY, draws=0)
    empty = dataclasses.replace(own, weights=jnp.zeros_like(own.weights))
    with pytest.raises(ValueError, match=r"features\['All'\] selects nothing"):
        ablate_features(planted(), images, labels, {"All": empty}, key=KEY)
