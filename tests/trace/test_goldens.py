"""The sweep against values of Captum, Zennit and TorchRay, on `tiny` in Linen and in NNX."""

import functools

import jax
import numpy as np
import pytest
import tiny
from jax import numpy as jnp

from jaxplain.trace import backpropagate, capture
from jaxplain.trace import rules as R
from jaxplain.trace.backward import LAST_INPUT, Seed, Sweep, one_hot

SWEEPS = {
    "guided_backprop": R.GUIDED_BACKPROP,
    "deconvnet": R.DECONVNET,
    "lrp/epsilon_plus/epsilon_1e-6": R.epsilon_plus(),
    "lrp/epsilon_alpha2_beta1/epsilon_1e-6": R.epsilon_alpha2_beta1(),
    "lrp/epsilon_gamma_box/epsilon_1e-6/gamma_0.25/low_-2.117904/high_2.640000": (
        R.epsilon_gamma_box(-2.117904, 2.64)
    ),
}


@pytest.fixture(scope="module", params=sorted(tiny.MODELS))
def model(request):
    return tiny.MODELS[request.param]()


@pytest.fixture(scope="module")
def references():
    return tiny.references()


def test_logits(model, references):
    images, _ = tiny.inputs()
    assert tiny.relative_error(jax.jit(model)(images), references["logits"]) < 1e-5


@pytest.mark.parametrize("key", SWEEPS)
def test_attributions_at_the_input(model, references, key):
    images, targets = tiny.inputs()
    found = jax.jit(backpropagate, static_argnames="rules")(model, images, targets, SWEEPS[key])
    assert tiny.relative_error(found.attribution, references[key]) < 1e-5
    assert found.audit.uncovered == ()


def test_excitation_backprop(model, references):
    images, targets = tiny.inputs()

    @jax.jit
    def run(model, images, targets):
        sweep = Sweep(model, images)
        seed = {"logits": Seed(relevance=one_hot(targets, sweep.logits))}
        return sweep.pull(R.excitation_rules(), seed, ["features.2"])["features.2"].value

    found = run(model, images, targets).sum(-1)
    assert tiny.relative_error(found, references["excitation_backprop/features.2"]) < 1e-5


def test_contrastive_excitation_backprop(model, references):
    images, targets = tiny.inputs()

    @jax.jit
    def run(model, images, targets):
        sweep = Sweep(model, images)
        seed = {"logits": Seed(relevance=one_hot(targets, sweep.logits))}
        plain, dual = R.excitation_rules(), R.excitation_rules(negative_last=True)
        won = sweep.pull(plain, seed, [LAST_INPUT])[LAST_INPUT].value
        lost = sweep.pull(dual, seed, ["classifier.1"])["classifier.1"].value
        seed = {"classifier.1": Seed(relevance=won - lost)}
        return sweep.pull(plain, seed, ["features.2"])["features.2"].value

    found = jnp.maximum(run(model, images, targets).sum(-1), 0)
    key = "contrastive_excitation_backprop/features.2/contrast_classifier.1"
    assert tiny.relative_error(found, references[key]) < 1e-5


def test_layers_have_the_names_of_their_modules_and_tags(model):
    named = {layer.name: layer for layer in model.layers()}
    assert list(named) == [
        "features_0", "features.1", "features.2", "features_3", "features.4", "features_5",
        "features.6", "classifier_0", "classifier.1", "classifier_2",
    ]  # fmt: skip
    assert named["features.4"].shape == (8, 8, 16)
    found = named["features.6"].receptive_field
    assert (found.size, found.stride, found.offset) == ((16, 16), (4, 4), (-7, -7))
    assert named["classifier.1"].receptive_field is None


def test_both_libraries_give_the_same_audit():
    images, targets = tiny.inputs()
    run = functools.partial(backpropagate, rules=R.epsilon_plus())
    audits = [jax.eval_shape(run, build(), images, targets).audit for build in tiny.MODELS.values()]
    assert audits[0] == audits[1]
    assert [row["layer"] for row in audits[0].rows()][:3] == [
        "features_0", "features.1", "features.2",
    ]  # fmt: skip
    assert np.unique([row["kind"] for row in audits[0].rows()]).tolist() == [
        "conv", "dense", "max_pool", "relu",
    ]  # fmt: skip


def test_captured_layers_are_the_network_itself(model):
    images, _ = tiny.inputs()
    names = ["input", "features_3", "features.4", "logits"]
    found = jax.jit(lambda model, images: capture(model, images, names))(model, images)
    np.testing.assert_array_equal(found["input"], images)
    np.testing.assert_array_equal(found["features.4"], jnp.maximum(found["features_3"], 0))
    np.testing.assert_allclose(found["logits"], model(images), rtol=1e-5, atol=1e-5)
