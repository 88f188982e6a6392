"""Explanations of photographs by VGG-16 and ResNet-18 are those of Captum, Zennit and TorchRay.

They take half an hour and some gigabytes, so that only `make parity` runs them; what they say
about ties in general is checked on small arrays everywhere (tests/models/test_pooling.py).
"""

import dataclasses
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_decisions import POINTS, Decided, changes, decisions, share
from ports import NETWORKS, photographs, variables_of

import jaxplain as jxp
from jaxplain.adapters import LinenApply

pytestmark = pytest.mark.skipif(
    os.environ.get("JAXPLAIN_PARITY") != "all", reason="large networks; `make parity` runs them"
)
BOX = "lrp/epsilon_gamma_box/epsilon_1e-6/gamma_0.25/low_-2.117904/high_2.640000"
INTEGRATED = "integrated_gradients/riemann_middle_16/baseline_0"
# Keys of VGG-16 that depend on decisions which float32 leaves open, so that torch itself, run again
# on another processor, is far from its references (parity_decisions.py). They are compared given
# the same decisions.
OPEN = {
    "gradient", "input_x_gradient", INTEGRATED, "guided_backprop", "deconvnet", "guided_grad_cam",
}  # fmt: skip


def occlusion(model, images, targets):
    found = jxp.occlusion(model, images, targets, window=56, stride=56, chunk=4)
    return jnp.broadcast_to(found[..., None], images.shape)


def lrp(rules):
    return lambda model, images, targets: jxp.lrp(model, images, targets, rules=rules).attribution


EVERYWHERE = {
    "logits": lambda model, images, _: jax.jit(model)(images),
    "gradient": jxp.gradient,
    "input_x_gradient": jxp.input_x_gradient,
    INTEGRATED: lambda model, images, targets: (
        jxp.integrated_gradients(model, images, targets, steps=16, rule="midpoint").attribution
    ),
    "occlusion/window_56/stride_56/baseline_0": occlusion,
    "lrp/epsilon_plus/epsilon_1e-6": lrp("epsilon_plus"),
    "lrp/epsilon_alpha2_beta1/epsilon_1e-6": lrp("epsilon_alpha2_beta1"),
    BOX: lrp(jxp.rules.epsilon_gamma_box(-2.117904, 2.64)),
}
METHODS = {
    "resnet18": EVERYWHERE
    | {
        "grad_cam/layer4": functools.partial(jxp.grad_cam, layer="layer4", upsample=False),
        "grad_cam_upsampled/layer4": functools.partial(jxp.grad_cam, layer="layer4"),
    },
    "vgg16": EVERYWHERE
    | {
        "grad_cam/features.29": functools.partial(jxp.grad_cam, layer="conv5_3", upsample=False),
        "grad_cam_upsampled/features.29": functools.partial(jxp.grad_cam, layer="conv5_3"),
        "guided_backprop": lambda *a: jxp.guided_backprop(*a).attribution,
        "deconvnet": lambda *a: jxp.deconvnet(*a).attribution,
        "guided_grad_cam": lambda *a: (
            jxp.guided_grad_cam(*a, layer="conv5_3", interpolation="nearest").attribution
        ),
        "excitation_backprop/features.23": lambda *a: (
            jxp.excitation_backprop(*a, layer="pool4", upsample=False).heatmap
        ),
        "contrastive_excitation_backprop/features.23/contrast_classifier.4": lambda *a: (
            jxp.contrastive_excitation_backprop(
                *a, layer="pool4", contrast="fc7", upsample=False
            ).heatmap
        ),
    },
}
CASES = [(name, key) for name, methods in METHODS.items() for key in methods]


@functools.cache
def references():
    with np.load(Path(__file__).parents[1] / "data" / "explain_photographs.npz") as file:
        return {key: file[key] for key in file.files}


@functools.cache
def variables(name):
    return variables_of(NETWORKS[name])


def prepared(name, dtype=jnp.float32):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables(name))
    model = jxp.Model.from_function(
        LinenApply(NETWORKS[name]), params, input_shape=(224, 224, 3), name=name
    )
    return model, photographs(224).astype(dtype), jnp.asarray(references()["targets"])


def errors(found, name, key):
    """Return the errors at the recorded places over the largest value; the first 512 are random."""
    reference = references()[f"{name}/{key}/value"]
    places = references()[f"{name}/{key}/index"]
    assert found.shape == tuple(references()[f"{name}/{key}/shape"])
    return np.abs(np.asarray(found).ravel()[places] - reference) / np.abs(reference).max()


def test_every_recorded_explanation_is_checked():
    recorded = {key.removesuffix("/value") for key in references() if key.endswith("/value")}
    assert recorded == {f"{name}/{key}" for name, key in CASES}


@pytest.mark.parametrize(("name", "key"), CASES)
def test_explanations_are_those_of_the_other_libraries(name, key):
    found = errors(METHODS[name][key](*prepared(name)), name, key)
    print(f"{name}/{key}: largest error {found.max():.1e}")
    if name == "vgg16" and key in OPEN:
        assert np.mean(found[:512] > 1e-3) < 0.25
        assert found.max() < 0.2
    else:
        assert found.max() <= 1e-3


@functools.cache
def changed(point):
    """Return what makes VGG-16 decide at a point as the references did, and how much that is."""
    _, images, _ = prepared("vgg16")
    return changes(NETWORKS["vgg16"], variables("vgg16"), share(point) * images, decisions(point))


def decided(point):
    """Return VGG-16 with the decisions of the references at a point."""
    model, images, targets = prepared("vgg16")
    params = {"variables": model.params, "changes": changed(point)[0]}
    apply = Decided(NETWORKS["vgg16"])
    return dataclasses.replace(model, params=params, apply=apply), images, targets


@pytest.mark.parametrize("key", sorted(OPEN - {INTEGRATED}))
def test_given_their_decisions_explanations_are_the_references(key):
    found = errors(METHODS["vgg16"][key](*decided(POINTS)), "vgg16", key)
    print(f"vgg16/{key} with the same decisions: largest error {found.max():.1e}")
    assert found.max() < 1e-5


def part(point):
    """Return the integrated gradients of the part of the line that has a point at its middle."""
    model, images, targets = decided(point)
    return jxp.integrated_gradients(
        model,
        images * ((point + 1) / POINTS),
        targets,
        baseline=images * (point / POINTS),
        steps=1,
        rule="midpoint",
    ).attribution


def test_given_their_decisions_integrated_gradients_are_the_references():
    # In parts, since the network is told otherwise at each point.
    found = errors(sum(part(point) for point in range(POINTS)), "vgg16", INTEGRATED)
    print(f"vgg16/{INTEGRATED} with the same decisions: largest error {found.max():.1e}")
    assert found.max() < 1e-5


@pytest.mark.parametrize("point", range(POINTS + 1))
def test_the_decisions_are_ties_to_the_accuracy_of_float32(point):
    _, sizes = changed(point)
    assert set(sizes) == set(decisions(point))
    assert 0 < max(sizes.values()) < 5e-6
