"""Closing channels, against falls that are known by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chip_networks import CHANNELS, PLANTED, planted, planted_images
from fitted import importances

from jaxplain.data.an8flower import dataset_arrays
from jaxplain.evaluation import ablate_channels
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
    test = dataset_arrays(variant, "test", 12)
    inputs = model.preprocessing.batch(test.images)
    importance = shipped(model)["conv4"]
    found = ablate_channels(
        model, inputs, test.labels, importance, key=KEY, draws=4, batch_size=12, resamples=500
    )
    assert (found.closed == 10).all()
    assert found.difference.mean.low > 0.2
