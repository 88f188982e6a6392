"""Selecting features: a NumPy reference, planted features, ties, and what cannot be selected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chip_networks import CHANNELS, PLANTED, planted, planted_images

from jaxplain.methods.interpretation import Block, FeatureStatistics, gather, load, save, select
from jaxplain.methods.interpretation.select import RIDGE


def statistics(x, labels, blocks, classes):
    """Statistics of descriptors that are at hand."""
    one_hot = np.eye(classes)[labels]
    targets = np.concatenate([one_hot, one_hot, np.ones((len(x), 1))], 1)
    counts = one_hot.sum(0).astype(np.int64)
    return FeatureStatistics(
        x.T @ x, targets.T @ x, np.stack([counts, counts]), len(x), blocks, True, False, "drawn", 0
    )


def drawn(count=40, layers=(5, 4, 6), classes=3, seed=0):
    """Random descriptors whose layers sum to one."""
    rng = np.random.default_rng(seed)
    parts = [rng.uniform(size=(count, size)) for size in layers]
    x = np.concatenate([part / part.sum(1, keepdims=True) for part in parts], 1)
    kinds = ("convolution", "pooling", "dense")
    blocks = tuple(Block(f"layer{i}", kinds[i], size) for i, size in enumerate(layers))
    labels = np.argmax(x[:, :classes] + 0.02 * rng.normal(size=(count, classes)), 1)
    return x, labels, blocks


def on_the_path(gram, corr, mu):
    """The weights of norm μ on the path of all penalties (Efron et al. 2004), by scikit-learn."""
    from sklearn.linear_model import lars_path_gram

    _, _, path = lars_path_gram(corr, gram, n_samples=1, method="lasso")
    norms = np.abs(path).sum(0)
    place = min(int(np.searchsorted(norms, mu)), len(norms) - 1)
    share = min(1.0, (mu - norms[place - 1]) / (norms[place] - norms[place - 1]))
    return path[:, place - 1] + share * (path[:, place] - path[:, place - 1])


@pytest.fixture(scope="module")
def example():
    x, labels, blocks = drawn()
    return x, labels, statistics(x, labels, blocks, 3)


@pytest.mark.parametrize("mu", [0.5, 4.0])
def test_weights_equal_a_slow_solver(example, mu):
    x, labels, own = example
    found = select(own, mu=mu)
    gram = x.T @ x / len(x)
    ridge = RIDGE * np.diagonal(gram).mean()
    for label in range(3):
        q = x.T @ (labels == label) / len(x)
        expected = on_the_path(gram + ridge * np.eye(len(q)), q, mu)
        np.testing.assert_allclose(found.weights[label], expected, atol=1e-6)
        assert np.abs(found.weights[label]).sum() <= mu * (1 + 1e-6)
    assert float(found.gap.max()) < 1e-6
    assert bool(found.converged.all())


def test_ties_of_unit_sums_are_resolved_alike_in_any_order(example):
    x, labels, own = example
    # A layer of channels that never differ ties with all others; the order must not matter.
    flat = np.full((len(x), 4), 0.25)
    blocks = (*own.blocks, Block("flat", "dense", 4))
    tied = statistics(np.concatenate([x, flat], 1), labels, blocks, 3)
    order = np.random.default_rng(1).permutation(len(tied.gram))
    shuffled = dataclasses.replace(
        tied, gram=tied.gram[np.ix_(order, order)], corr=tied.corr[:, order]
    )
    one, other = (select(own, mu=30.0).weights for own in (tied, shuffled))
    np.testing.assert_allclose(np.asarray(one)[:, order], other, atol=1e-4)
    # Equal channels share what they do.
    np.testing.assert_allclose(one[:, -4:], np.repeat(one[:, -1:], 4, 1), atol=1e-4)
    settings = select(tied, mu=30.0).settings
    assert settings.sums == 3
    assert settings.features - settings.rank >= 3 + 3


def test_planted_weights_are_recovered():
    x, labels, blocks = drawn(count=200)
    planted_weights = np.zeros((3, 15))
    planted_weights[0, [1, 7]] = 2.0, -1.0
    planted_weights[1, [4, 10, 12]] = 1.0, 1.5, 0.5
    planted_weights[2, 13] = 3.0
    own = statistics(x, labels, blocks, 3)
    # What the descriptors say exactly, in place of labels.
    own.corr[:3] = planted_weights @ x.T @ x
    found = select(own, mu=3.0)
    np.testing.assert_allclose(found.weights, planted_weights, atol=1e-4)


def test_planted_channels_come_first():
    images = planted_images(60)
    labels = np.arange(60) % 3
    found = select(gather(planted(), [{"image": images, "label": labels}]), mu=2.0)
    for label, channels in PLANTED.items():
        assert found.of(label)[0].channel in channels
    assert found.of(3) == []  # which has no images
    assert found.fitted.tolist() == [True, True, True, False]
    assert len(found.selected()) < CHANNELS


def test_pools_signs_and_labels(example):
    _, _, own = example
    conv = select(own, mu=3.0, pool="convolution")
    assert {feature.kind for feature in conv.selected()} == {"convolution"}
    assert conv.settings.features == 5
    positive = select(own, mu=3.0, nonnegative=True)
    assert float(positive.weights.min()) == 0.0
    assert float(positive.gap.max()) < 1e-6
    np.testing.assert_array_equal(
        select(own, mu=3.0).weights, select(own, mu=3.0, labels="predicted").weights
    )


def test_a_silent_channel_and_fewer_images_than_features():
    x, labels, blocks = drawn(count=6)
    x[:, 2] = 0
    found = select(statistics(x, labels, blocks, 3), mu=2.0)
    assert (found.weights[:, 2] == 0).all()
    assert found.settings.silent == 1
    assert found.settings.rank <= 6
    assert float(found.gap.max()) < 1e-6
    assert jnp.isfinite(found.weights).all()


def test_a_constant_channel_is_no_obstacle(example):
    x, labels, own = example
    still = x.copy()
    still[:, 3] = 0.2
    constant = statistics(still, labels, own.blocks, 3)
    found = select(constant, mu=4.0)
    assert float(found.gap.max()) < 1e-6
    assert float(found.kkt.max()) < 1e-6
    assert jnp.isfinite(found.weights).all()


def test_nothing_but_silence_has_no_features():
    _, labels, blocks = drawn(count=6)
    found = select(statistics(np.zeros((6, 15)), labels, blocks, 3))
    assert found.selected() == []


def test_gates_close_what_was_selected(example):
    found = select(example[2], mu=2.0)
    gates = found.gates()
    closed = {(name, int(k)) for name, gate in gates.items() for k in np.flatnonzero(gate == 0)}
    assert closed == {(feature.layer, feature.channel) for feature in found.selected()}


def test_features_come_back_from_their_file(tmp_path, example):
    found = select(example[2], mu=2.0)
    save(tmp_path / "own.features.safetensors", found)
    again = load(tmp_path / "own.features.safetensors")
    assert (again.settings, again.blocks) == (found.settings, found.blocks)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.of(0) == found.of(0)


def test_what_cannot_be_is_refused_by_name(example):
    own = example[2]
    for options, message in (
        ({"mu": 0.0}, "mu is 0.0; expected above 0"),
        ({"mu": float("nan")}, "mu is nan"),
        ({"pool": "conv"}, "unknown pool 'conv'; nearest: convolution"),
        ({"labels": "ture"}, "unknown labels 'ture'; nearest: true"),
    ):
        with pytest.raises(ValueError, match=message):
            select(own, **options)
    dense = dataclasses.replace(own, blocks=(Block("fc", "dense", 15),))
    with pytest.raises(ValueError, match="no layer is a convolution; layers: fc"):
        select(dense, pool="convolution")
    found = select(own, mu=2.0)
    with pytest.raises(ValueError, match="class 3 does not exist"):
        found.of(3)
    with pytest.raises(ValueError, match="feature 15 does not exist"):
        found.feature(15)


def test_files_of_something_else_are_refused(tmp_path):
    from jaxplain.methods import chip
    from jaxplain.models import load_model

    chip.save(tmp_path / "chip.safetensors", chip.shipped(load_model("digits")))
    with pytest.raises(ValueError, match="holds no relevant features"):
        load(tmp_path / "chip.safetensors")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors")
