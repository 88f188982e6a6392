"""The documents say what the package does: their code runs, their links lead somewhere."""

import inspect
import re
import subprocess
from pathlib import Path

import pytest
import typer

import jaxplain
from docs import methods
from jaxplain import cli
from jaxplain.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PUBLIC = [(name, getattr(jaxplain, name)) for name in jaxplain.__all__]
COMMANDS = typer.main.get_command(cli.app).commands


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings make."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in words}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_python_in_the_documents_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            exec(compile(code, by_name(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_the_make_targets_that_the_documents_name_exist(page):
    database = subprocess.run(["make", "-pnq"], cwd=ROOT, capture_output=True, text=True).stdout
    targets = set(re.findall(r"^([a-z][a-z-]*):", database, re.MULTILINE))
    text = page.read_text()
    commands = "\n".join(code for language, code in FENCE.findall(text) if language == "sh")
    named = re.findall(r"`make ([a-z-]+)", FENCE.sub("", text))
    named += re.findall(r"^make ([a-z-]+)", commands, re.MULTILINE)
    assert set(named) <= targets


def test_the_readme_lists_the_methods_there_are():
    readme = methods.README.read_text()
    assert readme == methods.written(readme), "run: .venv/bin/python docs/methods.py"


def leaves(commands: dict, path: tuple[str, ...] = ()) -> dict[str, set[str]]:
    """Every command with its long options: {"data build": {"--out", ...}}."""
    found = {}
    for name, command in commands.items():
        if hasattr(command, "commands"):
            found |= leaves(command.commands, (*path, name))
        else:
            options = {opt for parameter in command.params for opt in parameter.opts}
            found[" ".join((*path, name))] = {o for o in options if o.startswith("--")} - {"--help"}
    return found


def test_the_command_line_page_names_every_command_and_option():
    text = (ROOT / "docs" / "cli.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    told = {}
    for section in sections:
        heading, _, body = section.partition("\n")
        if match := re.fullmatch(r"`jaxplain ([a-z -]+)`", heading.strip()):
            told[match[1]] = set(re.findall(r"^\| `(--[a-z-]+)", body, re.MULTILINE))
    assert told == leaves(COMMANDS)


@pytest.mark.parametrize(("name", "thing"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_public_names_explain_themselves(name, thing):
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        return
    assert inspect.getdoc(thing), f"{name} has no docstring"
    if inspect.isfunction(thing):
        assert ">>>" in inspect.getdoc(thing), f"{name} has no example"
        signature = inspect.signature(thing)
        untyped = {p.name for p in signature.parameters.values() if p.annotation is p.empty}
        assert untyped == set()
        assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_name_their_source(method):
    module = inspect.getmodule(inspect.unwrap(method.function))
    year = r"\b(19|20)\d\d\b"
    assert re.search(year, method.reference)
    assert re.search(year, module.__doc__ or ""), f"{module.__name__} cites nothing"
