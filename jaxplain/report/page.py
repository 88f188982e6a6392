"""Draws a report: what is said comes from `content` and the glossary, where it stands from HTML."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain import plot
from jaxplain.names import unknown
from jaxplain.outputs import replacing
from jaxplain.report import frame, tables
from jaxplain.report.content import Case, Explained, MethodEntry, Report, Section
from jaxplain.report.drawings import bar_uri, map_uri, outline_uri, picture_uri, shade_uri
from jaxplain.report.words import place


def write_report(path: Path | str, report: Report) -> Path:
    """Write the page; an older file at `path` is replaced whole or left as it is.

    Raises:
        ValueError: maps that are not finite (H, W), methods or classes that the section does not
            list.
        TypeError: a picture that is not uint8.
        OSError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> from jaxplain.report import Case, Explained, MethodEntry, Report, Section
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
    """Return the page as HTML.

    Raises:
        ValueError, TypeError: as `write_report`.
    """
    glossary = read_glossary()
    rules = _Rules()
    sections = [
        _section(section, number, rules, glossary) for number, section in enumerate(report.sections)
    ]
    cases = [case for section in report.sections for case in section.cases]
    return frame.render(
        "report.html.jinja",
        frame.text_of("report.css") + "\n".join(rules.lines),
        frame.text_of("page.js") + frame.text_of("report.js"),
        report=report,
        sections=sections,
        bars={signed: bar_uri(signed=signed) for signed in (False, True)},
        percentile=plot.PERCENTILE,
        evidence=any(case.mask is not None for case in cases),
        entered=any(case.entered for case in cases),
        used=_used_methods(report.sections, glossary),
    )


def read_glossary() -> dict[str, Any]:
    """Return what the page says in plain words of "methods", "metrics" and "families".

    Example:
        >>> read_glossary()["metrics"]["energy"]["title"]
        'Energy inside'
    """
    return tomllib.loads(frame.text_of("glossary.toml"))


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
    scores = section.scores
    return {
        "data": section,
        "id": f"network-{number + 1}",
        "cases": [
            _case(case, f"case-{number + 1}-{nth + 1}", section, entries, rules)
            for nth, case in enumerate(section.cases)
        ],
        "metrics": tables.metrics(scores, entries, glossary) if scores else [],
        "near_noise": tables.near_noise(scores, entries) if scores else None,
        "curves": tables.curves(scores, entries) if scores else [],
        "families": _families(section.methods, glossary),
        "audits": [entry for entry in section.methods if entry.audit],
    }


def _case(
    case: Case, identity: str, section: Section, entries: Mapping[str, MethodEntry], rules: _Rules
) -> dict[str, Any]:
    classes = len(case.probabilities)
    height, width = case.picture.shape[:2]
    picture = picture_uri(case.picture)
    properties = {
        "picture": f'url("{picture}")',
        "ratio": f"{width / height:.4f}",
        # Small pictures are shown with their pixels: blurring them would hide what the network saw.
        "rendering": "pixelated" if max(height, width) < 64 else "auto",
    }
    if case.mask is not None:
        properties["outline"] = f'url("{outline_uri(case.mask)}")'
    if case.truth is not None:
        _check_class("truth", case.truth, classes)
    order = np.argsort(-np.asarray(case.probabilities))[: min(5, classes)]
    return {
        "data": case,
        "id": identity,
        "style": rules.add(**properties),
        "picture": picture,
        "whole": None if case.whole is None else picture_uri(case.whole.picture),
        "shade": None if case.mask is None else shade_uri(case.mask),
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
    _check_class("target", explained.target, len(case.probabilities))
    maps = {}
    for name, heatmap in explained.heatmaps.items():
        if name not in entries:
            raise ValueError(unknown("method", name, entries))
        inside = None if case.mask is None else _inside(heatmap, case.mask)
        maps[name] = {
            "entry": entries[name],
            "image": map_uri(heatmap, signed=entries[name].signed),
            "place": place(heatmap),
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
    """Every method of the page once, with what the glossary says of it and how it was called.

    Networks may differ in the options that a method was called with: then each is told.
    """
    entries: dict[str, MethodEntry] = {}
    options: dict[str, dict[str, list[str]]] = {}
    for section in sections:
        for entry in section.methods:
            if not entry.baseline:
                entries.setdefault(entry.name, entry)
                titles = options.setdefault(entry.name, {}).setdefault(entry.options, [])
                titles.append(section.title)
    return [
        {
            "entry": entry,
            "text": glossary["methods"].get(name, entry.summary),
            "options": options[name],
        }
        for name, entry in entries.items()
    ]


def _check_class(what: str, index: int, classes: int) -> None:
    if not 0 <= index < classes:
        raise ValueError(f"{what} is {index}; expected a class, 0 to {classes - 1}")


def _class_name(section: Section, index: int) -> str:
    return section.class_names[index] if index < len(section.class_names) else f"class {index}"


def _inside(heatmap: np.ndarray, mask: np.ndarray) -> float | None:
    """The share of a map's positive values that lies in the mask; None where it has none."""
    positive = np.maximum(np.asarray(heatmap, np.float64), 0)
    if positive.shape != mask.shape or positive.sum() == 0:
        return None
    return float(positive[mask].sum() / positive.sum())
