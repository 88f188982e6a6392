"""The statistics of CHIP against the sums and expectations that they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chip_networks import CLASSES, images, small

from jaxplain.methods.chip import engine, statistics
from jaxplain.methods.chip.fit import gather
from jaxplain.methods.chip.solve import solve
from jaxplain.trace import split

GATES, SIGMA, COUNT = 7, 0.8, 11
FIELDS = ("packed", "corr", "energy", "weight", "predicted")


def explicit(model, layer, pictures, key, shared):
    """Eqs. (1)–(8) and (14), one image and one gate vector after the other."""
    prefix, suffix = split(model, layer)
    activation = np.asarray(prefix(jnp.asarray(pictures)))
    channels = activation.shape[-1]
    probabilities = jax.nn.sigmoid if model.multilabel else jax.nn.softmax
    logits = np.asarray(model(jnp.asarray(pictures)))
    loyalty = np.asarray(probabilities(logits))
    numbers = jnp.zeros(len(pictures), int) if shared else jnp.arange(len(pictures))
    gates = statistics.draw_gates(
        engine.layer_key(key, layer), numbers, channels, num_gates=GATES, keep=0.5
    )
    opened = np.asarray(gates, float)
    shape = (len(pictures), GATES, *(1,) * (activation.ndim - 2), channels)
    gated = activation[:, None] * opened.reshape(shape)
    chances = np.asarray(
        probabilities(suffix(jnp.asarray(gated.reshape(-1, *activation.shape[1:]))))
    )
    chances = chances.reshape(len(pictures), GATES, CLASSES)
    gram, corr = np.zeros((CLASSES, channels, channels)), np.zeros((CLASSES, channels))
    energy, weight = np.zeros(CLASSES), np.zeros(CLASSES)
    for s in range(len(pictures)):
        for n in range(GATES):
            d = opened[s, n]
            h = np.exp(-np.sum((d - 1) ** 2) / (SIGMA**2 * channels))
            z = gated[s, n].reshape(-1, channels).mean(0)
            for c in range(CLASSES):
                w, g = loyalty[s, c] * h, chances[s, n, c]
                gram[c] += w * np.outer(z, z)
                corr[c] += w * g * z
                energy[c] += w * g * g
                weight[c] += w
    if model.multilabel:
        predicted = (logits > 0).sum(0)
    else:
        predicted = np.bincount(loyalty.argmax(1), minlength=CLASSES)
    return {"gram": gram, "corr": corr, "energy": energy, "weight": weight, "predicted": predicted}


@pytest.mark.parametrize(
    ("gates", "layers", "multilabel"),
    [
        ("fresh", ("conv1", "conv2"), False),
        ("shared", ("fc",), False),
        ("fresh", ("conv2", "fc"), True),
    ],
    ids=["fresh", "shared", "sigmoids"],
)
def test_statistics_are_the_explicit_sums(gates, layers, multilabel):
    with jax.enable_x64(True):
        model, pictures, key = small("float64"), images(COUNT, "float64"), jax.random.key(5)
        model = dataclasses.replace(model, multilabel=multilabel)
        batches = [pictures[:4], pictures[4:8], pictures[8:]]
        found = gather(
            model, batches, layers, key=key, num_gates=GATES, sigma=SIGMA, gates=gates, chunk=8
        )
        paths = {layer: stats.path.partition(":")[0] for layer, stats in found.items()}
        again = "run again for every gate vector"
        expected = {"conv1": again, "conv2": "linear in the gates up to fc", "fc": again}
        assert paths == {layer: expected[layer] for layer in layers}
        for layer in layers:
            expected = explicit(model, layer, pictures, key, gates == "shared")
            own = {name: getattr(found[layer], name) for name in FIELDS[1:]}
            own["gram"] = found[layer].gram(slice(None))
            for name, value in expected.items():
                np.testing.assert_allclose(own[name], value, rtol=1e-11, atol=1e-13, err_msg=name)
            assert (expected["predicted"] > 0).sum() > 2


def test_conditions_of_optimality_hold_in_every_class():
    found = gather(small(), [images(64)], "conv2", key=jax.random.key(1), num_gates=20)["conv2"]
    for penalty in (0.3, 0.01, 1e-4):
        importance = solve(found, penalty=penalty)
        assert importance.converged.all()
        assert importance.fitted.all()
        assert float(importance.kkt.max()) < 1e-6
        # Written down once more, from the sums themselves.
        for c in range(CLASSES):
            gram = found.gram(c).astype(float) / found.weight[c]
            corr = found.corr[c].astype(float) / found.weight[c]
            w, bound = np.asarray(importance.weights[c], float), penalty * np.abs(corr).max()
            residual = corr - gram @ w
            slack = 1e-6 * np.abs(corr).max()
            assert np.abs(residual).max() <= bound + slack
            support = np.flatnonzero(w)
            np.testing.assert_allclose(residual[support], bound * np.sign(w[support]), atol=slack)
    assert (np.asarray(importance.weights) != 0).all()


def test_the_mean_over_fresh_gates_is_the_closed_form():
    count, channels, keep, sigma = 4000, 5, 0.6, 0.7
    gates = statistics.draw_gates(
        jax.random.key(2), jnp.arange(count), channels, num_gates=8, keep=keep
    )
    weights = statistics.proximity(gates, sigma)
    products = np.einsum("snk,snl->snkl", gates, gates) * np.asarray(weights)[..., None, None]
    products = products.reshape(-1, channels, channels)
    mean, error = products.mean(0), products.std(0) / np.sqrt(len(products))
    r = np.exp(-1 / (sigma**2 * channels))
    kappa = keep + (1 - keep) * r
    expected = np.full((channels, channels), keep**2 * kappa ** (channels - 2))
    np.fill_diagonal(expected, keep * kappa ** (channels - 1))
    assert (np.abs(mean - expected) < 4 * error).all()
    assert (error < 0.01 * expected).all()
    # `observe` sums the same, seen through the averages.
    ones = jnp.ones((count, 1))
    averages = jnp.broadcast_to(jnp.arange(1.0, 1 + channels), (count, channels))
    chances = jnp.broadcast_to(ones[:, None], (*weights.shape, 1))
    found = statistics.observe(averages, gates, weights, ones, chances)
    gram = statistics.unpack(np.asarray(found.moments.sum(0)), channels) / len(products)
    scale = np.outer(averages[0], averages[0])
    np.testing.assert_allclose(gram, mean * scale, rtol=1e-4)


def test_gates_do_not_depend_on_batch_size_order_of_layers_or_other_layers():
    model, pictures, key = small(), images(9), jax.random.key(3)
    options = {"key": key, "num_gates": 4}
    together = gather(model, [pictures], ("conv1", "conv2"), **options)
    alone = gather(model, [pictures[:5], pictures[5:]], ("conv2",), chunk=3, rows=5, **options)
    for name in FIELDS:
        one, other = getattr(together["conv2"], name), getattr(alone["conv2"], name)
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-7, err_msg=name)


def test_what_is_packed_comes_back():
    matrices = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    matrices = matrices + matrices.transpose(0, 2, 1)
    packed = np.asarray(statistics.pack(jnp.asarray(matrices)))
    assert packed.shape == (3, 10)
    np.testing.assert_array_equal(statistics.unpack(packed, 4), matrices)
