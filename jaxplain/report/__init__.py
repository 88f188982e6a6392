"""The report: one HTML file that needs nothing else. The only room that makes HTML.

`Report` is plain data (`content`), arrays and strings, so that anything that explains pictures can
fill one; `write_report` draws it (`page`, with `tables` and `drawings`). The template escapes every
string, whatever file or class it names, and the page forbids itself, by a content security policy,
any script but its own and any request at all.
"""

from jaxplain.report.content import (
    Case,
    Explained,
    Interval,
    MethodEntry,
    Report,
    Scores,
    Section,
    Whole,
)
from jaxplain.report.drawings import LARGEST_PICTURE
from jaxplain.report.page import read_glossary, render_report, write_report
from jaxplain.report.words import digits, duration, percent

__all__ = [
    "LARGEST_PICTURE",
    "Case",
    "Explained",
    "Interval",
    "MethodEntry",
    "Report",
    "Scores",
    "Section",
    "Whole",
    "digits",
    "duration",
    "percent",
    "read_glossary",
    "render_report",
    "write_report",
]
