"""How often the box around a map finds the evidence of rendered flowers, method by method.

All methods of the table but the costly ones; CHIP, Refined CHIP, Grad-CAM, the gradient's largest
magnitude ("backprop", here `saliency`) and contrastive excitation backprop ("c-MWP") are those of
Table II of CHIP (arXiv:1902.02497). Both protocols: a fraction of the maximum and the largest
component, and a multiple of the mean and all pixels. Thresholds are searched for on the validation
split, errors are those of the test split, with 95 % bootstrap intervals. The figures are errors
(smaller is better), told without a target: what comes out is a finding.

A method explains each picture once, for its true class: the box of another class is an error
whatever its map, and both protocols read the same maps.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from figures import Figures, run

import jaxplain as jxp
from jaxplain.data.an8flower import dataset_arrays
from jaxplain.evaluation import class_means, localize_true

Explain = Callable[[np.ndarray, np.ndarray], np.ndarray]
BATCH = 32

RULES: dict[str, dict[str, Any]] = {
    "max": {"relative_to": "max", "part": "largest"},
    "mean": {"relative_to": "mean", "part": "all"},
}


def _methods(model: jxp.Model) -> dict[str, Explain]:
    """Return every method of the table that is quick enough for hundreds of pictures."""

    def batched(method: jxp.Method) -> Explain:
        bound = method.bound(model)
        run = jax.jit(lambda m, x, t: bound.explain(m, x, t, key=jax.random.key(0)).heatmap)

        def explain(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
            parts = []
            for start in range(0, len(images), BATCH):
                rows = np.minimum(np.arange(start, start + BATCH), len(images) - 1)
                parts.append(np.asarray(run(model, images[rows], classes[rows])))
            maps = np.concatenate(parts)[: len(images)]
            # Evidence against a class does not tell where the class is.
            return np.maximum(maps, 0) if method.signed else maps

        return explain

    return {
        name: batched(method)
        for name, method in jxp.METHODS.items()
        if not method.costly and method.inapplicable(model) is None
    }


def main(figures: Figures) -> None:
    """Localisation errors on both flower sets, the class known and the first guesses."""
    count = 60 if figures.quick else 300
    for variant, name in (
        ("single_6c", "an8flower-single-6c"),
        ("double_12c", "an8flower-double-12c"),
    ):
        model = jxp.load_model(name)
        assert model.preprocessing is not None
        searched = dataset_arrays(variant, "validation", count)
        judged = dataset_arrays(variant, "test", count)
        pictures = np.concatenate([searched.images, judged.images])
        images = np.asarray(model.preprocessing.batch(list(pictures)))
        logits = np.concatenate(
            [np.asarray(model(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
        )
        labels = np.concatenate([searched.labels, judged.labels])
        boxes = np.concatenate([searched.boxes, judged.boxes])
        right = logits[count:].argmax(1) == judged.labels
        figures.add(f"localization/{variant}/classification/top1", float(1 - right.mean()))
        for method, explain in _methods(model).items():
            maps = explain(images, labels)
            for rule, options in RULES.items():
                tuned, errors = localize_true(
                    maps, logits, labels, boxes, tuning=count, top=2, **options
                )
                label = f"localization/{variant}/{rule}/{method}"
                for top, hits in enumerate(errors.hits.T, 1):
                    missed = class_means(
                        1.0 - hits.astype(np.float32),
                        judged.labels,
                        num_classes=int(labels.max()) + 1,
                        key=jax.random.key(0),
                    ).mean
                    figures.add(f"{label}/top{top}", float(missed.value))
                    figures.add(f"{label}/top{top}/low", float(missed.low))
                    figures.add(f"{label}/top{top}/high", float(missed.high))
                figures.add(f"{label}/threshold", tuned.rule.threshold)


if __name__ == "__main__":
    run(main)
