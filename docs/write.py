"""Writes what the package knows better: its methods, its commands, and how the methods did.

The leaderboards are those in docs/leaderboard, which `jaxplain evaluate` wrote.

`make docs` runs it; a test fails when a document says something else.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from jaxplain.cli import app
from jaxplain.evaluation.leaderboard import Leaderboard
from jaxplain.methods import METHODS

ROOT = Path(__file__).parents[1]
START, END = "<!-- {}: written by make docs -->\n", "<!-- {}: end -->\n"


def row(*cells: str) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def methods() -> str:
    """The table of methods."""
    text = row("Name", "Method", "Sees", "Reference") + row("---", "---", "---", "---")
    for method in METHODS.values():
        sees = "the network" if method.gradient else "its predictions"
        text += row(f"`{method.name}`", method.title, sees, linked(method.reference))
    return text


def linked(reference: str) -> str:
    """A reference whose arXiv number or DOI can be followed."""
    reference = re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", reference)
    return re.sub(r"doi:(\S+)", r"[doi:\1](https://doi.org/\1)", reference)


def leaves(command: Any, path: tuple[str, ...] = ("jaxplain",)) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from leaves(child, (*path, name))
        else:
            yield " ".join((*path, name)), child


def commands() -> str:
    """A section a command: what it does, and a table of what it takes."""
    return "\n".join(section(*leaf) for leaf in leaves(typer.main.get_command(app)))


def section(name: str, command: Any) -> str:
    """The section of one command."""
    text = f"## `{name}`\n\n{plain(command.help or '')}\n\n"
    text += row("Takes", "Meaning", "Unless given") + row("---", "---", "---")
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        if parameter.param_type_name == "argument":
            takes = parameter.metavar or parameter.name.upper()
        elif parameter.is_flag:
            takes = parameter.opts[0]
        else:
            takes = f"{parameter.opts[0]} {parameter.name.upper()}"
        text += row(f"`{takes}`", plain(parameter.help or ""), default(parameter))
    return text


def default(parameter: Any) -> str:
    """What a parameter is unless given."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.required or parameter.default is None or getattr(parameter, "is_flag", False):
        return ""
    return f"`{parameter.default}`"


def plain(text: str) -> str:
    """Help text in Markdown: Rich's bold words are things to type."""
    return re.sub(r"\[/?bold\]", "`", text).strip()


def leaderboards() -> dict[str, str]:
    """The tables of the methods' scores: {mark in the README: table}."""
    return {
        f"leaderboard {kept.stem}": Leaderboard.from_json(
            kept.read_text(encoding="utf-8")
        ).to_markdown()
        for kept in sorted((ROOT / "docs" / "leaderboard").glob("*.json"))
    }


def written(page: Path, parts: dict[str, str]) -> str:
    """The text of a page with each part between the two marks of its name."""
    text = page.read_text(encoding="utf-8")
    for name, content in parts.items():
        start, end = START.format(name), END.format(name)
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page}: the marks {start.strip()} and {end.strip()} are missing")
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


def pages() -> dict[Path, str]:
    """What the documents should say: {file: text}."""
    readme, cli = ROOT / "README.md", ROOT / "docs" / "cli.md"
    return {
        readme: written(readme, {"methods": methods(), **leaderboards()}),
        cli: written(cli, {"commands": commands()}),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
