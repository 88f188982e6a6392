"""The documents say what the package does: their code runs, their links lead somewhere."""

import inspect
import re
import subprocess
from pathlib import Path

import pytest

import jaxplain
from docs import write
from jaxplain.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PUBLIC = [(name, getattr(jaxplain, name)) for name in jaxplain.__all__]


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


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "cli.md"], ids=by_name)
def test_the_generated_parts_are_as_the_package_says(page):
    assert page.read_text() == write.pages()[page], "run: make docs"


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
    year = r"\b(19|20)\d\d\b"
    told = [inspect.getmodule(inspect.unwrap(method.function)).__doc__, method.function.__doc__]
    assert re.search(year, method.reference)
    assert any(re.search(year, text or "") for text in told), f"{method.name} cites nothing"
