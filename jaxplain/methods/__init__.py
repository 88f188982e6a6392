"""Methods of explanation, one family a file, and the table of them all."""

import jax
import jax.numpy as jnp

from jaxplain.methods import chip, interpretation, lime, masker, mint
from jaxplain.methods.cam import cam, grad_cam, guided_grad_cam
from jaxplain.methods.extremal import extremal_channels, extremal_perturbation
from jaxplain.methods.gradients import (
    gradient,
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from jaxplain.methods.inversion import guided_feature_inversion
from jaxplain.methods.masks import meaningful_perturbation
from jaxplain.methods.method import Explanation, Method
from jaxplain.methods.relevance import (
    contrastive_excitation_backprop,
    deconvnet,
    excitation_backprop,
    guided_backprop,
    lrp,
)
from jaxplain.methods.rise import rise
from jaxplain.methods.sampling import occlusion
from jaxplain.methods.synthesis import activation_maximisation, feature_inversion
from jaxplain.names import unknown

__all__ = [
    "METHODS",
    "Explanation",
    "Method",
    "activation_maximisation",
    "cam",
    "chip",
    "contrastive_excitation_backprop",
    "deconvnet",
    "excitation_backprop",
    "extremal_channels",
    "extremal_perturbation",
    "feature_inversion",
    "find_method",
    "grad_cam",
    "gradient",
    "guided_backprop",
    "guided_feature_inversion",
    "guided_grad_cam",
    "input_x_gradient",
    "integrated_gradients",
    "interpretation",
    "lime",
    "lrp",
    "masker",
    "meaningful_perturbation",
    "mint",
    "occlusion",
    "rise",
    "saliency",
    "smooth_grad",
]


def _strongest(attribution: jax.Array) -> jax.Array:
    """Return the largest absolute value over the channels."""
    return jnp.abs(attribution).max(-1)


def _length(attribution: jax.Array) -> jax.Array:
    """Return the Euclidean norm over the channels."""
    return jnp.sqrt((attribution**2).sum(-1))


def _sum(attribution: jax.Array) -> jax.Array:
    """Return the sum over the channels."""
    return attribution.sum(-1)


def _same(heatmap: jax.Array) -> jax.Array:
    return heatmap


def _above_least(heatmap: jax.Array) -> jax.Array:
    """Return what rises above the least of a map: a level that is everywhere tells of no place."""
    return heatmap - heatmap.min((1, 2), keepdims=True)


# Enough to rank superpixels; `tolerance` asks for more where the standard errors are large.
_SAMPLES = (("num_samples", 512),)

_TABLE = (
    Method(
        "gradient",
        "Gradient",
        gradient,
        _length,
        "How strongly a small change of each pixel would change the class score.",
        "Simonyan et al. 2014, arXiv:1312.6034",
    ),
    Method(
        "saliency",
        "Saliency",
        gradient,
        _strongest,
        "The same, with the largest absolute derivative over the colours.",
        "Simonyan et al. 2014, arXiv:1312.6034",
    ),
    Method(
        "input_x_gradient",
        "Input × gradient",
        input_x_gradient,
        _sum,
        "First-order share of each pixel in the score, against the mean colour.",
        "Shrikumar et al. 2016, arXiv:1605.01713",
        signed=True,
    ),
    Method(
        "smooth_grad",
        "SmoothGrad",
        smooth_grad,
        _strongest,
        "The gradient averaged over noisy copies of the image, with its standard error.",
        "Smilkov et al. 2017, arXiv:1706.03825",
        random=True,
        options=(("samples", 16),),
    ),
    Method(
        "integrated_gradients",
        "Integrated gradients",
        integrated_gradients,
        _sum,
        "Shares of the pixels that add up to the score's rise from the mean colour to the image.",
        "Sundararajan et al. 2017, arXiv:1703.01365",
        signed=True,
        options=(("steps", 16),),
    ),
    Method(
        "guided_backprop",
        "Guided backprop",
        guided_backprop,
        _strongest,
        "The gradient with supporting signals only: sharp, but nearly blind to the class.",
        "Springenberg et al. 2015, arXiv:1412.6806",
    ),
    Method(
        "deconvnet",
        "Deconvnet",
        deconvnet,
        _strongest,
        "The network run backwards with ReLUs on the way back only.",
        "Zeiler and Fergus 2014, arXiv:1311.2901",
    ),
    Method(
        "excitation_backprop",
        "Excitation backprop",
        excitation_backprop,
        _same,
        "Probability that a walk from the class down its exciting connections ends here.",
        "Zhang et al. 2016, arXiv:1608.00507",
        layered=True,
        evidence=True,
    ),
    Method(
        "contrastive_excitation_backprop",
        "Contrastive excitation backprop",
        contrastive_excitation_backprop,
        _same,
        "The same, minus the walk from everything that is not the class.",
        "Zhang et al. 2016, arXiv:1608.00507",
        layered=True,
        evidence=True,
    ),
    Method(
        "lrp_epsilon_plus",
        "LRP EpsilonPlus",
        lrp,
        _sum,
        "Relevance shared layer by layer among what raised each unit.",
        "Bach et al. 2015, doi:10.1371/journal.pone.0130140",
        signed=True,
        options=(("rules", "epsilon_plus"),),
    ),
    Method(
        "lrp_epsilon_alpha2_beta1",
        "LRP EpsilonAlpha2Beta1",
        lrp,
        _sum,
        "Relevance with twice the supporting minus the opposing shares.",
        "Bach et al. 2015, doi:10.1371/journal.pone.0130140",
        signed=True,
        options=(("rules", "epsilon_alpha2_beta1"),),
    ),
    Method(
        "lrp_epsilon_gamma_box",
        "LRP EpsilonGammaBox",
        lrp,
        _sum,
        "Relevance with supporting shares favoured, and the range of pixel values respected.",
        "Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10",
        signed=True,
        options=(("rules", "epsilon_gamma_box"),),
    ),
    Method(
        "cam",
        "CAM",
        cam,
        _same,
        "What each position adds to the score, in networks that average their last layer.",
        "Zhou et al. 2016, arXiv:1512.04150",
        layered=True,
        signed=True,
    ),
    Method(
        "grad_cam",
        "Grad-CAM",
        grad_cam,
        _same,
        "The last convolution's channels, weighed by how much the class wants them.",
        "Selvaraju et al. 2017, arXiv:1610.02391",
        layered=True,
    ),
    Method(
        "guided_grad_cam",
        "Guided Grad-CAM",
        guided_grad_cam,
        _strongest,
        "Guided backprop where Grad-CAM looks.",
        "Selvaraju et al. 2017, arXiv:1610.02391",
        layered=True,
    ),
    Method(
        "chip",
        "CHIP",
        chip.heatmap,
        _same,
        "Channels weighed by how much the class needs them, as learned from many pictures.",
        "Cui et al. 2019, arXiv:1902.02497",
        layered=True,
        signed=True,
        fit=chip.shipped,
    ),
    Method(
        "refined_chip",
        "Refined CHIP",
        chip.refined,
        _same,
        "The CHIP map of the first convolution where that of the last one looks.",
        "Cui et al. 2019, arXiv:1902.02497",
        fit=chip.shipped,
    ),
    Method(
        "guided_chip",
        "Guided CHIP",
        chip.guided,
        _strongest,
        "Guided backprop where CHIP looks.",
        "Cui et al. 2019, arXiv:1902.02497",
        layered=True,
        fit=chip.shipped,
    ),
    Method(
        "interpretation",
        "Interpretation",
        interpretation.explain,
        _same,
        "Where the few channels respond that tell the class apart, as learned from many pictures.",
        "Oramas et al. 2019, arXiv:1712.06302",
        fit=interpretation.shipped,
    ),
    Method(
        "masker",
        "Real-time saliency",
        masker.explain,
        _same,
        "The least of the picture that keeps the class, as a second network has learned to say.",
        "Dabkowski and Gal 2017, arXiv:1705.07857",
        fit=masker.shipped,
    ),
    Method(
        "occlusion",
        "Occlusion",
        occlusion,
        _same,
        "How far the score falls when a grey window covers this place.",
        "Zeiler and Fergus 2014, arXiv:1311.2901",
        signed=True,
        gradient=False,
    ),
    Method(
        "lime",
        "LIME",
        lime.explain,
        _same,
        "A linear model of the prediction while superpixels are hidden: its weight of each.",
        "Ribeiro et al. 2016, arXiv:1602.04938",
        random=True,
        signed=True,
        gradient=False,
        costly=True,
        host=True,
        options=_SAMPLES,
    ),
    Method(
        "mint_coarse",
        "MINT coarse",
        mint.explain,
        _same,
        "The same for large superpixels: the region that the deep layer attends to, and others.",
        "Cui et al. 2019, Multi-scale Interpretation Model (MINT)",
        random=True,
        layered=True,
        signed=True,
        costly=True,
        host=True,
        options=_SAMPLES,
        view=lambda found: found.at("coarse"),
    ),
    Method(
        "mint_fine",
        "MINT fine",
        mint.explain,
        _same,
        "What the small superpixels of a shallow layer add, kept in step with the large ones.",
        "Cui et al. 2019, Multi-scale Interpretation Model (MINT)",
        random=True,
        layered=True,
        signed=True,
        costly=True,
        host=True,
        options=_SAMPLES,
        view=lambda found: found.at("fine"),
    ),
    Method(
        "rise",
        "RISE",
        rise,
        _above_least,
        "How probable the class is, on average, when this place is shown among random others.",
        "Petsiuk et al. 2018, arXiv:1806.07421",
        random=True,
        gradient=False,
        costly=True,
        options=(("samples", 2000), ("antithetic", True)),
    ),
    Method(
        "meaningful_perturbation",
        "Meaningful perturbation",
        meaningful_perturbation,
        _same,
        "The smallest smooth area whose blur hides the class.",
        "Fong and Vedaldi 2017, arXiv:1704.03296",
        random=True,
        costly=True,
        options=(("steps", 300),),
    ),
    Method(
        "extremal_perturbation",
        "Extremal perturbation",
        extremal_perturbation,
        _same,
        "The smooth areas of 5, 10 and 20 % that excite the class most when all else is blurred.",
        "Fong et al. 2019, arXiv:1910.08485",
        costly=True,
        options=(("areas", (0.05, 0.1, 0.2)), ("steps", 300), ("smooth", 0.09)),
    ),
    Method(
        "guided_feature_inversion",
        "Guided Feature Inversion",
        guided_feature_inversion,
        _same,
        "The sum of the network's own channels that keeps the class, and hides it when inverted.",
        "Du et al. 2018, arXiv:1804.00506",
        costly=True,
        options=(("inversion_steps", 10), ("steps", 70)),
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}


def find_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        ValueError: no such method; the nearest are named.

    Example:
        >>> find_method("grad_cam").title
        'Grad-CAM'
    """
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    return METHODS[name]
