r"""Visual Explanation by Interpretation: the features that tell classes apart, and where they are.

Oramas, Wang and Tuytelaars 2019, "Visual Explanation by Interpretation: Improving Visual Feedback
Capabilities of Deep Neural Networks", ICLR, arXiv:1712.06302. Every image is described by how
strongly each channel of each layer responds (`descriptors`); a sparse linear model of these numbers
predicts the classes (`select`), and its few channels are what the network goes by. They are shown
by the patches that excite them most (`average_images`), and an answer is explained by the maps of
those that respond most in the image (`explain`).

    statistics = interpretation.gather(model, batches)
    features = interpretation.select(statistics, mu=10.0)
    found = interpretation.explain(model, images, targets, importance=features)

What the paper leaves open is chosen in `select` (which of many solutions) and `explain` (how maps
are made and put together). `gather` runs on one device or many, goes on from checkpoints, and keeps
statistics of constant size only.
"""

from jaxplain.methods.interpretation.averages import AverageImages, average_images
from jaxplain.methods.interpretation.descriptors import Block, Kind, blocks, descriptors
from jaxplain.methods.interpretation.explain import Interpretation, explain
from jaxplain.methods.interpretation.features import (
    SUFFIX,
    Feature,
    RelevantFeatures,
    Settings,
    check_model,
    load,
    save,
    shipped,
)
from jaxplain.methods.interpretation.gather import LABELS, FeatureStatistics, gather
from jaxplain.methods.interpretation.select import POOLS, select
from jaxplain.methods.streaming import Progress

__all__ = [
    "LABELS",
    "POOLS",
    "SUFFIX",
    "AverageImages",
    "Block",
    "Feature",
    "FeatureStatistics",
    "Interpretation",
    "Kind",
    "Progress",
    "RelevantFeatures",
    "Settings",
    "average_images",
    "blocks",
    "check_model",
    "descriptors",
    "explain",
    "gather",
    "load",
    "save",
    "select",
    "shipped",
]
