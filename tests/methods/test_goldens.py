"""Every method on `tiny`, in Linen and in NNX, against torchvision, Captum, Zennit and TorchRay."""

import dataclasses

import numpy as np
import pytest
import tiny

import jaxplain as jxp

LRP = "lrp/epsilon_{}/epsilon_1e-6"
BOX = LRP.format("gamma_box") + "/gamma_0.25/low_-2.117904/high_2.640000"
MIDPOINT = "integrated_gradients/riemann_middle_16/baseline_0"
EXPLAINERS = {
    "logits": lambda m, x, t: m(x),
    "gradient": jxp.gradient,
    "input_x_gradient": jxp.input_x_gradient,
    MIDPOINT: lambda m, x, t: jxp.integrated_gradients(m, x, t, steps=16, rule="midpoint")[0],
    "grad_cam/features.6": lambda m, x, t: jxp.grad_cam(m, x, t, upsample=False),
    "grad_cam_upsampled/features.6": jxp.grad_cam,
    "occlusion/window_8/stride_8/baseline_0": lambda m, x, t: np.repeat(
        jxp.occlusion(m, x, t, window=8, stride=8)[..., None], 3, -1
    ),
    "guided_backprop": lambda m, x, t: jxp.guided_backprop(m, x, t).attribution,
    "deconvnet": lambda m, x, t: jxp.deconvnet(m, x, t).attribution,
    "guided_grad_cam": lambda m, x, t: (
        jxp.guided_grad_cam(m, x, t, interpolation="nearest").attribution
    ),
    LRP.format("plus"): lambda m, x, t: jxp.lrp(m, x, t, rules="epsilon_plus").attribution,
    LRP.format("alpha2_beta1"): lambda m, x, t: (
        jxp.lrp(m, x, t, rules="epsilon_alpha2_beta1").attribution
    ),
    BOX: lambda m, x, t: (
        jxp.lrp(m, x, t, rules=jxp.rules.epsilon_gamma_box(-2.117904, 2.64)).attribution
    ),
    "excitation_backprop/features.2": lambda m, x, t: (
        jxp.excitation_backprop(m, x, t, layer="features.2", upsample=False).heatmap
    ),
    "contrastive_excitation_backprop/features.2/contrast_classifier.1": lambda m, x, t: (
        jxp.contrastive_excitation_backprop(m, x, t, layer="features.2", upsample=False).heatmap
    ),
}


@pytest.mark.parametrize("library", tiny.MODELS)
@pytest.mark.parametrize("key", EXPLAINERS)
def test_reference_is_reproduced(key, library):
    images, targets = tiny.inputs()
    found = EXPLAINERS[key](tiny.MODELS[library](), images, targets)
    assert tiny.relative_error(found, tiny.references()[key]) <= 1e-5


def test_no_reference_is_left_out():
    assert set(tiny.references()) == {"images", "targets", *EXPLAINERS}


def test_contrast_may_be_read_at_any_named_layer():
    images, targets = tiny.inputs()
    model = dataclasses.replace(tiny.linen_model(), evidence_layer="features.2")
    named = jxp.contrastive_excitation_backprop(model, images, targets, contrast="classifier.1")
    default = jxp.contrastive_excitation_backprop(model, images, targets)
    np.testing.assert_allclose(named.heatmap, default.heatmap, rtol=1e-6)
