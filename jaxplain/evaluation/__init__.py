"""Measures of explanations against known evidence, and the table that compares methods.

- `mask_iou`: IoU of thresholded maps with the mask, its curve and area.
- `pointing_game`: does the maximum lie on the evidence?
- `energy_inside`: the share of a map inside the mask.
- `class_means`: means per class and over classes, with bootstrap intervals.
- `ablate_channels`: does a class lose more by the channels that matter to it than by any others?
- `ablate_features`: what accuracy is left without the features that tell the classes apart?
- `box_occlusion`: how soon is the class lost when a map says what to cover?
- `heatmap_boxes`, `tune`, `localize`: weakly supervised localisation, by the box around a map.
- `feedback_methods`, `feedback_table`: several ways to show the same features, in one table.
- `insertion_deletion`: how does the class fare while pixels appear, or vanish, in the map's order?
- `saliency_detection`: precision, recall and error of a map as a detector of whole objects.
- `fast_gradient_sign`, `rank_correlation`: attacked images, and how little a map should move.
- `grid_energy`: the grid that strides leave in a map.
- `jaxplain.evaluation.leaderboard`: one line a method with all that can be said of its maps.
- `evaluate`: all of these for every method, with timings, as an `Evaluation`.
"""

from jaxplain.evaluation.ablation import (
    Ablation,
    Closed,
    FeatureAblation,
    ablate_channels,
    ablate_features,
)
from jaxplain.evaluation.baselines import centre_map, random_maps
from jaxplain.evaluation.bootstrap import ClassMeans, Interval, class_means
from jaxplain.evaluation.boxes import box_iou, heatmap_boxes
from jaxplain.evaluation.energy import energy_inside
from jaxplain.evaluation.feedback import PAPER_AREAS, feedback_methods, feedback_table
from jaxplain.evaluation.grid import grid_energy
from jaxplain.evaluation.localization import (
    Localization,
    error_interval,
    localization_errors,
    localize,
    localize_methods,
    localize_true,
)
from jaxplain.evaluation.mask_iou import THRESHOLDS, MaskIou, area_under, mask_iou
from jaxplain.evaluation.normalize import min_max
from jaxplain.evaluation.occlusion import BoxOcclusion, box_occlusion
from jaxplain.evaluation.perturbation import PerturbationCurves, insertion_deletion
from jaxplain.evaluation.pointing import pointing_game, scaled_tolerance
from jaxplain.evaluation.results import METRICS, Estimate, Evaluation, MethodResult, Metric, Score
from jaxplain.evaluation.robustness import fast_gradient_sign, rank_correlation
from jaxplain.evaluation.run import evaluate
from jaxplain.evaluation.saliency_detection import SaliencyDetection, saliency_detection
from jaxplain.evaluation.thresholds import BoxRule, Tuned, box_overlaps, choose_threshold, tune

__all__ = [
    "METRICS",
    "PAPER_AREAS",
    "THRESHOLDS",
    "Ablation",
    "BoxOcclusion",
    "BoxRule",
    "ClassMeans",
    "Closed",
    "Estimate",
    "Evaluation",
    "FeatureAblation",
    "Interval",
    "Localization",
    "MaskIou",
    "MethodResult",
    "Metric",
    "PerturbationCurves",
    "SaliencyDetection",
    "Score",
    "Tuned",
    "ablate_channels",
    "ablate_features",
    "area_under",
    "box_iou",
    "box_occlusion",
    "box_overlaps",
    "centre_map",
    "choose_threshold",
    "class_means",
    "energy_inside",
    "error_interval",
    "evaluate",
    "fast_gradient_sign",
    "feedback_methods",
    "feedback_table",
    "grid_energy",
    "heatmap_boxes",
    "insertion_deletion",
    "localization_errors",
    "localize",
    "localize_methods",
    "localize_true",
    "mask_iou",
    "min_max",
    "pointing_game",
    "random_maps",
    "rank_correlation",
    "saliency_detection",
    "scaled_tolerance",
    "tune",
]
