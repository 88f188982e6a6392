"""Real-time saliency: a network that has learned to mask what a classifier needs for a class.

Dabkowski and Gal 2017, "Real Time Image Saliency for Black Box Classifiers", arXiv:1705.07857.
Methods that optimise a mask do so anew for every picture. Here a second network, on the features of
the classifier, has learned to give the mask at once: one forward run a picture. `network` is the
masking network (4)-(6), `losses` what it was trained to lower (1)-(3), numbered here; `jaxplain
train masker` trains one, and the flowers' networks come with theirs.

    own = jaxplain.masker.load("own.masker.safetensors")
    jaxplain.masker.explain(model, images, targets, importance=own)

The masking network was trained on pictures like its own, and has a say: a mask may show what such
pictures look like rather than what the classifier saw in this one.
"""

from jaxplain.methods.masker.explain import explain
from jaxplain.methods.masker.losses import (
    Terms,
    Weights,
    masking_loss,
    others,
    terms,
    total_variation,
    under,
)
from jaxplain.methods.masker.network import Masked, MaskingNetwork, apply_masker, scales
from jaxplain.methods.masker.trained import Masker, check_model, first, load, save, shipped

__all__ = [
    "Masked",
    "Masker",
    "MaskingNetwork",
    "Terms",
    "Weights",
    "apply_masker",
    "check_model",
    "explain",
    "first",
    "load",
    "masking_loss",
    "others",
    "save",
    "scales",
    "shipped",
    "terms",
    "total_variation",
    "under",
]
