"""The report: one HTML file that needs nothing else. The only file that makes HTML.

`Report` is plain data, arrays and strings, so that anything that explains pictures can fill one;
`write_report` draws it. The template escapes every string, whatever file or class it names, and the
page forbids itself, by a content security policy, any script but its own and any request at all.

A picture is stored once. The maps laid over it are transparent PNG of 48 colours: the page can fade
them, and lay them over the picture in grey or in colour, without a second copy.
"""

import base64
import dataclasses
import hashlib
import io
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxplain import plot
from jaxplain.names import unknown
from jaxplain.outputs import replacing

TEMPLATES = Path(__file__).parent / "templates"

SHADES = 48
"""Colours of a map in the page: more cannot be told apart, and cost bytes."""

LARGEST_PICTURE = 384
"""Longer side, in pixels, of a picture in the page."""


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
class Case:
    """One picture.

    Attributes:
        name: what to call it; a file name, say.
        picture: the part of it that the network sees, uint8 (h, w, 3) or (h, w).
        probabilities: (classes,) of the network.
        explained: the classes that were explained.
        truth: its true class, if known.
        mask: (H, W) the known evidence, if any, of the shape of the maps.
    """

    name: str
    picture: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]
    probabilities: Float[np.ndarray, " classes"]
    explained: Sequence[Explained]
    truth: int | None = None
    mask: Bool[np.ndarray, "rows columns"] | None = None


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    lower: float
    upper: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well the maps of each method agree with the known evidence.

    Attributes:
        images: how many pictures were scored.
        metrics: metric name (a key of the glossary) -> method name -> mean with interval, each in
            0..1.
        thresholds: (T,) thresholds of the curves.
        curves: method name -> (T,) mean IoU.
        confidence: of the intervals, in 0..1.
        by_class: class name -> method name -> mean of the first metric.
    """

    images: int
    metrics: Mapping[str, Mapping[str, Interval]]
    thresholds: Float[np.ndarray, " t"]
    curves: Mapping[str, Float[np.ndarray, " t"]]
    confidence: float = 0.95
    by_class: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Section:
    """One network and the pictures explained with it.

    Attributes:
        title: heading.
        description: a sentence or two on what the pictures are and what to look for.
        class_names: of the network.
        methods: every method that appears in the cases or scores.
        cases: the pictures.
        facts: label -> value: accuracy, parameters, and so on.
        scores: agreement with known evidence, if measured.
        skipped: title of a method -> why it cannot explain this network.
    """

    title: str
    description: str
    class_names: Sequence[str]
    methods: Sequence[MethodEntry]
    cases: Sequence[Case]
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scores: Scores | None = None
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)


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


def write_report(path: Path | str, report: Report) -> Path:
    """Write the page; an older file at `path` is replaced whole or left as it is.

    Raises:
        ValueError: maps that are not finite (H, W), methods or classes that the section does not
            list.
        TypeError: a picture that is not uint8.
        OSError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> why = Explained(0, {"m": np.eye(8)})
        >>> case = Case("a.png", np.zeros((8, 8), np.uint8), np.float32([0.9, 0.1]), [why])
        >>> section = Section("Two", "", ["zero", "one"], [MethodEntry("m", "A method")], [case])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder) / "report.html", Report("Explained", "", [section])).name
        'report.html'
    """
    path = Path(path)
    text = render_report(report)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def render_report(report: Report) -> str:
    """Return the page as HTML; see `write_report`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "digits": digits}
    glossary = read_glossary()
    rules = _Rules()
    sections = [
        _section(section, number, rules, glossary) for number, section in enumerate(report.sections)
    ]
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8") + "\n".join(rules.lines)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        report=report,
        sections=sections,
        style=_inert(style),
        script=_inert(script),
        policy=(
            f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
            f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
        ),
        bars={
            signed: _png(plot.colour_bar(signed=signed, length=128, thickness=1))
            for signed in (False, True)
        },
        percentile=plot.PERCENTILE,
        evidence=any(case.mask is not None for s in report.sections for case in s.cases),
        used=_used_methods(report.sections, glossary),
        glossary=glossary,
    )


def read_glossary() -> dict[str, Any]:
    """Return what the page says in plain words of "methods", "metrics" and "families"."""
    return tomllib.loads((TEMPLATES / "glossary.toml").read_text(encoding="utf-8"))


def percent(value: float) -> str:
    """Return a share as a percentage that never claims certainty.

    Example:
        >>> percent(0.99996), percent(0.5), percent(0.0321), percent(0.00001)
        ('> 99.9 %', '50 %', '3.2 %', '< 0.1 %')
    """
    hundred = 100 * value
    if 0 < hundred < 0.1:
        return "< 0.1 %"
    if 99.9 < hundred < 100:
        return "> 99.9 %"
    return (
        f"{hundred:.1f} %" if (hundred < 10 or hundred > 99) and hundred % 1 else f"{hundred:.0f} %"
    )


def duration(seconds: float | None) -> str:
    """Return seconds as people read them.

    Example:
        >>> duration(0.00042), duration(0.0123), duration(2.345), duration(None)
        ('0.4 ms', '12 ms', '2.3 s', '–')
    """
    if seconds is None:
        return "–"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.002 else f"{1000 * seconds:.1f} ms"


def digits(value: float) -> str:
    """Return a score in 0..1 with two digits.

    Example:
        >>> digits(0.4567)
        '0.46'
    """
    return f"{value:.2f}"


class _Rules:
    """CSS rules that hold the pictures: what many places of the page show is stored once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, **properties: str) -> str:
        """Return the name of a class with these custom properties."""
        name = f"p{len(self.lines)}"
        body = "".join(f"--{key}:{value};" for key, value in properties.items())
        self.lines.append(f".{name}{{{body}}}")
        return name


def _section(
    section: Section, number: int, rules: _Rules, glossary: Mapping[str, Any]
) -> dict[str, Any]:
    entries = {entry.name: entry for entry in section.methods}
    return {
        "data": section,
        "id": f"network-{number + 1}",
        "cases": [
            _case(case, f"case-{number + 1}-{place + 1}", section, entries, rules)
            for place, case in enumerate(section.cases)
        ],
        "metrics": _metrics(section, entries, glossary) if section.scores else [],
        "curves": _curves(section.scores, entries) if section.scores else [],
        "families": _families(section.methods, glossary),
        "audits": [entry for entry in section.methods if entry.audit],
    }


def _case(
    case: Case, identity: str, section: Section, entries: Mapping[str, MethodEntry], rules: _Rules
) -> dict[str, Any]:
    classes = len(case.probabilities)
    height, width = case.picture.shape[:2]
    properties = {
        "picture": f'url("{_picture(case.picture)}")',
        "ratio": f"{width / height:.4f}",
        # Small pictures are shown with their pixels: blurring them would hide what the network saw.
        "rendering": "pixelated" if max(height, width) < 64 else "auto",
    }
    if case.mask is not None:
        properties["outline"] = f'url("{_outline(case.mask)}")'
    order = np.argsort(-np.asarray(case.probabilities))[: min(5, classes)]
    return {
        "data": case,
        "id": identity,
        "style": rules.add(**properties),
        "picture": _picture(case.picture),
        "shade": None if case.mask is None else _shade(case.mask),
        "area": None if case.mask is None else float(np.mean(case.mask)),
        "top": [
            (_class_name(section, int(index)), float(case.probabilities[index])) for index in order
        ],
        "truth": None if case.truth is None else _class_name(section, case.truth),
        "right": case.truth is None or case.truth == int(order[0]),
        "explained": [
            _explained(explained, case, section, entries) for explained in case.explained
        ],
    }


def _explained(
    explained: Explained, case: Case, section: Section, entries: Mapping[str, MethodEntry]
) -> dict[str, Any]:
    if not 0 <= explained.target < len(case.probabilities):
        raise ValueError(
            f"target is {explained.target}; expected a class, 0 to {len(case.probabilities) - 1}"
        )
    maps = {}
    for name, heatmap in explained.heatmaps.items():
        if name not in entries:
            raise ValueError(unknown("method", name, entries))
        inside = None if case.mask is None else _inside(heatmap, case.mask)
        maps[name] = {
            "entry": entries[name],
            "image": _map(heatmap, signed=entries[name].signed),
            "place": _place(heatmap),
            "inside": inside,
            "note": explained.notes.get(name, ""),
        }
    return {
        "name": _class_name(section, explained.target),
        "probability": float(case.probabilities[explained.target]),
        "maps": maps,
        "signs": sorted({entries[name].signed for name in maps}),
    }


def _families(entries: Iterable[MethodEntry], glossary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Methods by family, in the order in which the families first appear."""
    families: dict[str, list[str]] = {}
    for entry in entries:
        if not entry.baseline:
            families.setdefault(entry.family, []).append(entry.name)
    return [
        {"title": glossary["families"].get(family, family), "methods": names}
        for family, names in families.items()
    ]


def _used_methods(sections: Sequence[Section], glossary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every method of the page once, with what the glossary says of it."""
    entries = {entry.name: entry for section in sections for entry in section.methods}
    return [
        {"entry": entry, "text": glossary["methods"].get(name, entry.summary)}
        for name, entry in entries.items()
    ]


def _metrics(
    section: Section, entries: Mapping[str, MethodEntry], glossary: Mapping[str, Any]
) -> list[dict[str, Any]]:
    scores = section.scores
    assert scores is not None
    metrics = []
    for name, values in scores.metrics.items():
        for method in values:
            if method not in entries:
                raise ValueError(unknown("method", method, entries))
        real = [
            interval.mean for method, interval in values.items() if not entries[method].baseline
        ]
        text = glossary["metrics"].get(name, {"title": name, "short": "", "long": ""})
        metrics.append(
            {"name": name, "text": text, "values": values, "best": max(real, default=math.nan)}
        )
    return metrics


# A chart is drawn in a box of this many SVG units, IoU upwards.
CHART = (100.0, 60.0)


def _curves(scores: Scores, entries: Mapping[str, MethodEntry]) -> list[dict[str, Any]]:
    top = max((float(np.max(curve)) for curve in scores.curves.values()), default=1.0) or 1.0
    x = np.asarray(scores.thresholds, float)
    across = (x - x.min()) / (np.ptp(x) or 1) * CHART[0]
    curves = []
    for name, curve in scores.curves.items():
        if name not in entries:
            raise ValueError(unknown("method", name, entries))
        up = CHART[1] * (1 - np.asarray(curve, float) / top)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))
        best = int(np.argmax(curve))
        curves.append(
            {
                "entry": entries[name],
                "points": points,
                "top": top,
                "best": float(curve[best]),
                "at": float(x[best]),
            }
        )
    return curves


def _class_name(section: Section, index: int) -> str:
    return section.class_names[index] if index < len(section.class_names) else f"class {index}"


def _inside(heatmap: np.ndarray, mask: np.ndarray) -> float | None:
    """The share of a map's positive values that lies in the mask; None where it has none."""
    positive = np.maximum(np.asarray(heatmap, np.float64), 0)
    if positive.shape != mask.shape or positive.sum() == 0:
        return None
    return float(positive[mask].sum() / positive.sum())


def _place(heatmap: np.ndarray) -> str:
    """Where a map is strongest, in words, for those who do not see it."""
    heatmap = np.asarray(heatmap)
    if not np.any(heatmap):
        return "zero everywhere"
    row, column = np.unravel_index(np.argmax(heatmap), heatmap.shape)
    words = (
        ("upper", "middle", "lower")[min(2, 3 * int(row) // heatmap.shape[0])],
        ("left", "centre", "right")[min(2, 3 * int(column) // heatmap.shape[1])],
    )
    return "strongest in the " + ("centre" if words == ("middle", "centre") else " ".join(words))


def _map(heatmap: np.ndarray, *, signed: bool) -> str:
    """A map as a transparent PNG of `SHADES` colours."""
    from PIL import Image

    values = plot.levels(heatmap, signed=signed)
    # An odd number of shades for a signed map: zero has its own, and is wholly transparent.
    shades = SHADES + 1 if signed else SHADES
    unit = (values + 1) / 2 if signed else values
    image = Image.fromarray(np.round(unit * (shades - 1)).astype(np.uint8), mode="P")
    image.putpalette(plot.palette(signed=signed, size=shades).tobytes())
    alpha = plot.opacity(np.linspace(-1 if signed else 0, 1, shades))
    return _encoded(
        image, "PNG", optimize=False, transparency=np.round(255 * alpha).astype(np.uint8).tobytes()
    )


def _picture(picture: np.ndarray) -> str:
    """A picture, reduced to `LARGEST_PICTURE`, as WebP; small ones without loss."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE), Image.Resampling.LANCZOS)
    return _encoded(image, "WEBP", quality=88, method=4, lossless=max(image.size) < 64)


def _shade(mask: np.ndarray) -> str:
    """Darkness outside the mask: laid over the picture, it leaves the evidence in the light."""
    from PIL import Image

    image = Image.fromarray(mask.astype(np.uint8), mode="P")
    image.putpalette([12, 12, 16, 0, 0, 0])
    return _encoded(image, "PNG", transparency=bytes([205, 0]))


def _outline(mask: np.ndarray) -> str:
    """The edge of the mask, white with a dark rim, so that it shows on everything."""
    from PIL import Image, ImageFilter

    factor = max(1, round(LARGEST_PICTURE / max(mask.shape)))
    size = (factor * mask.shape[1], factor * mask.shape[0])
    smooth = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
    solid = smooth.point([0] * 128 + [255] * 128)
    inner = np.asarray(solid) != np.asarray(solid.filter(ImageFilter.MaxFilter(5)))
    outer = np.asarray(solid.filter(ImageFilter.MinFilter(3))) != np.asarray(
        solid.filter(ImageFilter.MaxFilter(7))
    )
    image = Image.fromarray(np.where(inner, 2, outer).astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 0, 0, 0, 255, 255, 255])
    return _encoded(image, "PNG", optimize=True, transparency=bytes([0, 150, 255]))


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    return _encoded(Image.fromarray(pixels), "PNG")


def _encoded(image: Any, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(text: str) -> str:
    """Return our own style or script, not escaped: it must not end its element early."""
    if "</" in text:
        raise ValueError("a style or script of the report contains '</'")
    return text
