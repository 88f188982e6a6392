"""jaxplain: explain the predictions of image classifiers written in JAX."""

from jaxplain.methods import (
    METHODS,
    Explanation,
    Method,
    activation_maximisation,
    cam,
    chip,
    contrastive_excitation_backprop,
    deconvnet,
    excitation_backprop,
    extremal_channels,
    extremal_perturbation,
    feature_inversion,
    find_method,
    grad_cam,
    gradient,
    guided_backprop,
    guided_feature_inversion,
    guided_grad_cam,
    input_x_gradient,
    integrated_gradients,
    interpretation,
    lime,
    lrp,
    masker,
    meaningful_perturbation,
    mint,
    occlusion,
    rise,
    saliency,
    smooth_grad,
)
from jaxplain.model import Layer, Model, ReceptiveField
from jaxplain.models import MODELS, load_model
from jaxplain.preprocessing import Preprocessing
from jaxplain.trace import (
    Audit,
    Backpropagation,
    RuleSet,
    UncoveredError,
    backpropagate,
    capture,
    edit,
    rules,
    split,
)
from jaxplain.trace.folding import fold_batch_norm

__version__: str

__all__ = [
    "METHODS",
    "MODELS",
    "Audit",
    "Backpropagation",
    "Explanation",
    "Layer",
    "Method",
    "Model",
    "Preprocessing",
    "ReceptiveField",
    "RuleSet",
    "UncoveredError",
    "activation_maximisation",
    "backpropagate",
    "cam",
    "capture",
    "chip",
    "contrastive_excitation_backprop",
    "deconvnet",
    "edit",
    "excitation_backprop",
    "extremal_channels",
    "extremal_perturbation",
    "feature_inversion",
    "find_method",
    "fold_batch_norm",
    "grad_cam",
    "gradient",
    "guided_backprop",
    "guided_feature_inversion",
    "guided_grad_cam",
    "input_x_gradient",
    "integrated_gradients",
    "interpretation",
    "lime",
    "load_model",
    "lrp",
    "masker",
    "meaningful_perturbation",
    "mint",
    "occlusion",
    "rise",
    "rules",
    "saliency",
    "smooth_grad",
    "split",
]


def __getattr__(name: str) -> str:
    """Look the version up when it is asked for: reading it takes longer than most imports."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jaxplain")
    raise AttributeError(f"module 'jaxplain' has no attribute {name!r}")
