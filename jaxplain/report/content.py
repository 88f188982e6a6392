"""What a report says, as plain data: arrays and strings, so that anything can fill one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

Picture = UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """What the page says of a method, in one section.

    Attributes:
        name: its name in METHODS.
        title: for people, such as "Grad-CAM".
        signed: whether negative values mean evidence against.
        family: heading under which its maps stand.
        summary: what it does, where the glossary has no text of its own.
        reference: where it was published.
        options: what it was called with, besides its defaults.
        layer: the layer that it explains at, where it has one.
        seconds: per image, compiled, if measured.
        compile_seconds: of tracing and compiling, if measured.
        audit: of a rule method: which operations its rules met, one mapping a site, the same keys
            in each.
        baseline: no explanation but a yardstick, such as a map of noise; it appears in the tables
            alone.
    """

    name: str
    title: str
    signed: bool = False
    family: str = ""
    summary: str = ""
    reference: str = ""
    options: str = ""
    layer: str | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    audit: Sequence[Mapping[str, Any]] = ()
    baseline: bool = False


@dataclasses.dataclass(frozen=True)
class Explained:
    """One class of one picture, explained.

    Attributes:
        target: the class.
        heatmaps: method name -> (H, W) map of the network's input, finite.
        notes: method name -> what to say under its map, such as a completeness gap.
    """

    target: int
    heatmaps: Mapping[str, Float[np.ndarray, "h w"]]
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A picture of which the network sees only a part.

    Attributes:
        picture: all of it, uint8.
        region: (top, left, height, width) of the part, in pixels of `picture`.
    """

    picture: Picture
    region: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Case:
    """One picture.

    Attributes:
        name: what to call it; a file name, say.
        picture: the part of it that the network sees, uint8 (h, w, 3) or (h, w).
        probabilities: (classes,) of the network.
        explained: the classes that were explained.
        truth: its true class, if known.
        mask: (H, W) the known evidence, if any, of the shape of the maps.
        entered: how the picture became the network's input, in words, if that needs any.
        whole: the picture with what the network does not see, if there is such.
    """

    name: str
    picture: Picture
    probabilities: Float[np.ndarray, " classes"]
    explained: Sequence[Explained]
    truth: int | None = None
    mask: Bool[np.ndarray, "rows columns"] | None = None
    entered: str = ""
    whole: Whole | None = None


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: the mean.
        bounds: (lower, upper); None where a spread is not known, as of a class with one picture.
    """

    mean: float
    bounds: tuple[float, float] | None = None


ByMetric = Mapping[str, Mapping[str, Interval]]
"""Metric name -> method name -> mean with its interval."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well the maps of each method agree with the known evidence.

    Attributes:
        images: how many pictures were scored.
        metrics: metric name (a key of the glossary) -> method name -> mean over the classes with
            its interval, each in 0..1.
        thresholds: (T,) thresholds of the curves.
        curves: method name -> (T,) mean IoU.
        confidence: of the intervals, in 0..1.
        by_class: class name -> the same as `metrics`, over the pictures of that class alone.
        noise: the method whose maps are noise: what any other must surpass to say anything.
    """

    images: int
    metrics: ByMetric
    thresholds: Float[np.ndarray, " t"]
    curves: Mapping[str, Float[np.ndarray, " t"]]
    confidence: float = 0.95
    by_class: Mapping[str, ByMetric] = dataclasses.field(default_factory=dict)
    noise: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """One network and the pictures explained with it.

    Attributes:
        title: heading.
        description: a sentence or two on what the pictures are and what to look for.
        class_names: of the network; empty if nobody named them.
        methods: every method that appears in the cases or scores.
        cases: the pictures.
        facts: label -> value: accuracy, parameters, and so on.
        scores: agreement with known evidence, if measured.
        skipped: title of a method -> why it is missing.
        caution: what a reader must know before believing anything, if there is such.
    """

    title: str
    description: str
    class_names: Sequence[str]
    methods: Sequence[MethodEntry]
    cases: Sequence[Case]
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scores: Scores | None = None
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caution: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        title: heading of the page.
        lead: a few sentences below it.
        sections: one a network.
        facts: label -> value: versions, device, seeds, command.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
