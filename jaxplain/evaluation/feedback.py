"""Three ways to show the same features, measured against known evidence: Figs. 8 and 9 of a paper.

Oramas et al. 2019, "Visual Explanation by Interpretation", §4.3: maps of the same relevant features
by upsampled activations, by deconvnet with guided backprop, and by the paper's own variant at unit
stride, thresholded and compared with the masks of the flowers. Its areas under the IoU curve are
`PAPER_AREAS`; the flowers here are rendered anew after its description, and the networks have no
strided convolutions, so that its variant needs pooling to differ from guided backprop.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxplain.evaluation.results import Evaluation
from jaxplain.methods import METHODS, Method
from jaxplain.methods.interpretation import RelevantFeatures

TITLES = {
    "activation": "Upsampled activations",
    "guided": "Deconvnet + guided backprop",
    "unit_stride": "Unit stride",
    "unit_stride_pooling": "Unit stride, pooling too",
}

PAPER_AREAS: Mapping[str, Mapping[str, float]] = {
    "single_6c": {"activation": 0.15, "guided": 0.22, "unit_stride": 0.23},
    "double_12c": {"activation": 0.19, "guided": 0.20, "unit_stride": 0.21},
}
"""Areas under the IoU curve: the table of Fig. 8."""


def feedback_methods(
    features: RelevantFeatures,
    *,
    top: int = 3,
    feedback: Sequence[str] = tuple(TITLES),
    signs: str = "positive",
    smoothing: float = 0.0,
) -> tuple[Method, ...]:
    """Return the ways to show features, as methods for `evaluate`.

    Args:
        features: what is shown.
        top: how many of them in each image.
        feedback: which ways, by the names of `interpretation.explain`.
        signs: as in `interpretation.explain`, of all ways alike.
        smoothing: likewise.

    Example:
        >>> from jaxplain.methods.interpretation import shipped
        >>> from jaxplain.models import load_model
        >>> [method.name for method in feedback_methods(shipped(load_model("digits")))][:2]
        ['activation', 'guided']
    """
    method = METHODS["interpretation"]
    return tuple(
        dataclasses.replace(
            method,
            name=name,
            title=TITLES[name],
            options=(
                ("feedback", name),
                ("top", top),
                ("signs", signs),
                ("smoothing", smoothing),
            ),
            importance=features,
        )
        for name in feedback
    )


def feedback_table(
    evaluation: Evaluation, paper: Mapping[str, float] | None = None
) -> list[dict[str, object]]:
    """Return the areas under the IoU curve with their intervals, beside those of the paper.

    Args:
        evaluation: of `feedback_methods`.
        paper: one of `PAPER_AREAS`.

    Example:
        >>> import jax
        >>> from jaxplain.data.an8flower import dataset_arrays
        >>> from jaxplain.evaluation import evaluate
        >>> from jaxplain.methods.interpretation import shipped
        >>> from jaxplain.models import load_model
        >>> model, test = load_model("an8flower-single-6c"), dataset_arrays("single_6c", "test", 6)
        >>> images = model.preprocessing.batch(test.images)
        >>> methods = feedback_methods(shipped(model), feedback=["activation"])
        >>> found = evaluate(
        ...     model, methods, images, test.labels, test.masks, key=jax.random.key(0), batch_size=6
        ... )
        >>> [list(row) for row in feedback_table(found, PAPER_AREAS["single_6c"])]
        [['feedback', 'area', 'low', 'high', 'paper']]
    """
    rows = []
    for result in evaluation.results:
        if result.baseline or not result.scores:
            continue
        area = result.scores["iou_area"].mean
        row = {"feedback": result.title, "area": area.value, "low": area.low, "high": area.high}
        rows.append(row | {"paper": (paper or {}).get(result.name)})
    return rows
