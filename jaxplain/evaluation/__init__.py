"""Measures of explanations against known evidence, and the table that compares methods.

- `mask_iou_curves`: IoU of thresholded maps with the mask, its curve and area.
- `pointing_game`: does the maximum lie on the evidence?
- `energy_inside`: the share of a map inside the mask.
- `class_means`: means per class and over classes, with bootstrap intervals.
- `evaluate`: all of these for every method, with timings, as an `Evaluation`.
"""

from jaxplain.evaluation.baselines import centre_map, random_maps
from jaxplain.evaluation.bootstrap import ClassMeans, Interval, class_means
from jaxplain.evaluation.energy import energy_inside
from jaxplain.evaluation.mask_iou import THRESHOLDS, MaskIou, area_under, mask_iou_curves
from jaxplain.evaluation.normalize import min_max
from jaxplain.evaluation.pointing import pointing_game, scaled_tolerance

__all__ = [
    "THRESHOLDS",
    "ClassMeans",
    "Interval",
    "MaskIou",
    "area_under",
    "centre_map",
    "class_means",
    "energy_inside",
    "mask_iou_curves",
    "min_max",
    "pointing_game",
    "random_maps",
    "scaled_tolerance",
]
