"""Mean class accuracy without the features that were selected, and without as many at random.

Oramas et al. 2019, Fig. 4, on rendered flowers: features of all layers, and of convolutions alone.
Random ones are drawn as in the paper, from all layers that the features could be of, and once more
of each layer as many as were selected there ("matched"), which asks for more.
docs/visual-explanation.md says what the figures mean.
"""

import jax
import numpy as np
from figures import Figures, run

import jaxplain as jxp
from jaxplain.data.an8flower import dataset_arrays
from jaxplain.evaluation import ablate_features
from jaxplain.methods import interpretation

KEY = jax.random.key(0)
MU = 5.0
"""What the authors take for the flowers."""


def _flowers(figures: Figures, variant: str, learned: int, judged: int) -> None:
    model = jxp.load_model(f"an8flower-{variant.replace('_', '-')}")
    assert model.preprocessing is not None
    learn = dataset_arrays(variant, "train", learned)
    statistics = interpretation.gather(
        model,
        (
            {"image": learn.images[i : i + 24], "label": learn.labels[i : i + 24]}
            for i in range(0, len(learn.labels), 24)
        ),
    )
    sets = {
        "all": interpretation.select(statistics, mu=MU),
        "only_conv": interpretation.select(statistics, mu=MU, pool="convolution"),
    }
    test = dataset_arrays(variant, "test", judged)
    images = np.asarray(model.preprocessing.batch(list(test.images)))
    for matched in (False, True):
        found = ablate_features(
            model, images, test.labels, sets, key=KEY, batch_size=12, matched=matched
        )
        way = "matched" if matched else "random"
        if not matched:
            figures.add(f"{variant}/original", float(found.original.mean.value))
        for name, closed in found.sets.items():
            label = f"{variant}/{name}"
            if not matched:
                figures.add(f"{label}/closed", closed.channels)
                for part in ("value", "low", "high"):
                    figures.add(f"{label}/mca/{part}", float(getattr(closed.accuracy.mean, part)))
            low, high = np.quantile(closed.random, (0.025, 0.975))
            figures.add(f"{label}/{way}/mca", float(closed.random.mean()))
            figures.add(f"{label}/{way}/mca/low", float(low))
            figures.add(f"{label}/{way}/mca/high", float(high))
            fall = closed.fall.mean
            figures.add(f"{label}/beyond_{way}", float(fall.value))
            # As the paper does it, the whole interval has to be above zero; the other is told.
            figures.add(
                f"{label}/beyond_{way}/low", float(fall.low), at_least=None if matched else 0
            )
            figures.add(f"{label}/beyond_{way}/high", float(fall.high))


def main(figures: Figures) -> None:
    """Accuracy without selected features and without random ones, on both sets of flowers."""
    learned, judged = (120, 24) if figures.quick else (600, 240)
    for variant in ("single_6c", "double_12c"):
        _flowers(figures, variant, learned, judged)


if __name__ == "__main__":
    run(main)
