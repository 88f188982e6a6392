"""A small report with everything in it, for the tests of the page."""

import numpy as np

from jaxplain.report import Case, Explained, Interval, MethodEntry, Report, Scores, Section, Whole

PAYLOADS = (
    "<script>document.title='stolen'</script>",
    '"><img src=x onerror="document.title=\'stolen\'">',
    "</style></script><b>bold</b>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)&amp;<!--",
)


def example(
    *,
    names=("rose", "tulip", "lily"),
    picture="first.png",
    title="What did it look at?",
    notes=None,
):
    """Two networks, two pictures each, three methods and a yardstick."""
    random = np.random.default_rng(0)
    methods = [
        MethodEntry(
            "gradient", "Gradient", family="gradients", reference="Someone 2014", seconds=0.01
        ),
        MethodEntry(
            "lrp_epsilon_plus",
            "LRP EpsilonPlus",
            signed=True,
            family="relevance",
            seconds=1.5,
            compile_seconds=0.4,
            audit=[{"layer": "conv1", "kind": "conv", "rule": "z+", "shape": "1x8x8x4"}],
        ),
        MethodEntry("mine", "Mine", family="my own", summary="Says what it likes."),
        MethodEntry("noise", "Noise", baseline=True),
    ]
    explained = [method.name for method in methods if not method.baseline]
    thresholds = np.linspace(0, 1, 5)
    scores = Scores(
        images=24,
        metrics={
            "iou_area": {method.name: Interval(0.4, (0.35, 0.45)) for method in methods},
            "energy": {
                name: Interval(mean, (mean - 0.01, mean + 0.01))
                for name, mean in (("gradient", 0.6), ("mine", 0.12), ("noise", 0.05))
            },
        },
        thresholds=thresholds,
        curves={method.name: np.sin(3 * thresholds) for method in methods},
        by_class={
            name: {
                "iou_area": {"gradient": Interval(0.5 + number / 100, (0.31, 0.69))},
                "energy": {
                    "gradient": Interval(0.21, (0.2, 0.22)),
                    "mine": Interval(0.212, (0.2, 0.22)),
                },
            }
            for number, name in enumerate(names)
        },
        noise="noise",
    )

    def case(number, mask):
        return Case(
            name=picture if number == 0 else f"picture {number}",
            picture=random.integers(0, 256, (40, 60, 3), np.uint8),
            probabilities=np.float32([0.7, 0.2999, 0.0001]),
            explained=[
                Explained(
                    target,
                    {n: random.normal(size=(20, 30)) for n in explained},
                    notes or {"mine": "gap 1 %"},
                )
                for target in (0, 1)
            ],
            truth=number,
            mask=mask,
            entered="" if mask is not None else "the middle 60 × 40 of its 90 × 80 pixels",
            whole=None
            if mask is not None
            else Whole(random.integers(0, 256, (80, 90, 3), np.uint8), (20.0, 15.0, 40.0, 60.0)),
        )

    mask = np.zeros((20, 30), bool)
    mask[5:12, 10:20] = True
    return Report(
        title,
        "Three methods and a yardstick.",
        [
            Section(
                "Flowers",
                "Known evidence.",
                names,
                methods,
                [case(0, mask), case(1, mask)],
                {"Accuracy": "98 %"},
                scores,
            ),
            Section(
                "Others",
                "None.",
                names,
                methods,
                [case(0, None)],
                skipped={"CAM": "no global average"},
                caution="It has seen little.",
            ),
        ],
        {"jaxplain": "0.1.0", "Seed": "0"},
    )
