"""What every page has in common: one file, everything escaped, nothing loaded, nothing sent."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jaxplain.report.words import digits, duration, listed, percent

TEMPLATES = Path(__file__).parent / "templates"


def text_of(name: str) -> str:
    """Return a file that lies beside the templates.

    Example:
        >>> text_of("report.css").startswith(":root")
        True
    """
    return (TEMPLATES / name).read_text(encoding="utf-8")


def render(template: str, style: str, script: str, **content: Any) -> str:
    """Return a page as HTML; its policy admits this style, this script and pictures inside it.

    Args:
        template: its name; it gets `style`, `script`, `policy` and `content`.
        style: CSS.
        script: JavaScript.
        **content: what the template says; all of it is escaped there.

    Raises:
        ValueError: a style or a script that would end its element early.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "duration": duration,
        "digits": digits,
        "listed": listed,
    }
    return environment.get_template(template).render(
        style=_inert(style),
        script=_inert(script),
        policy=(
            f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
            f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
        ),
        **content,
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(text: str) -> str:
    """Return our own style or script, not escaped: it must not end its element early."""
    if "</" in text:
        raise ValueError("a style or script of the page contains '</'")
    return text
