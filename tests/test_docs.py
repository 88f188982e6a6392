"""The documents say what the package does: their code runs, their links lead somewhere."""

import ast
import collections
import inspect
import re
import subprocess
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

import jaxplain
from docs import write
from jaxplain.cli import compilation
from jaxplain.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings make."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in words}


def fenced(language: str) -> dict[Path, list[str]]:
    """The blocks in a language, of the pages that have any."""
    found = {page: FENCE.findall(page.read_text()) for page in PAGES}
    return {
        page: blocks
        for page, pairs in found.items()
        if (blocks := [code for named, code in pairs if named == language])
    }


EXAMPLES = fenced("python")
# What one process must not run: it would change its settings, or wait for other processes.
SKETCHES = fenced("py")


@pytest.mark.parametrize("page", EXAMPLES, ids=by_name)
def test_python_in_the_documents_gives_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for code in EXAMPLES[page]:
        tree = ast.parse(code)
        # Outside of all functions and branches, so that running the example checks it.
        claims = [node.test for node in tree.body if isinstance(node, ast.Assert)]
        assert claims, f"nothing says what comes of:\n{code}"
        for claim in claims:
            assert any(isinstance(node, ast.Name) for node in ast.walk(claim)), ast.unparse(claim)
        exec(compile(tree, by_name(page), "exec"), names)


@pytest.mark.parametrize("page", SKETCHES, ids=by_name)
def test_what_the_documents_only_sketch_imports_what_there_is(page):
    for code in SKETCHES[page]:
        tree = ast.parse(code)
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert tree.body
        exec(compile(tree, by_name(page), "exec"), {})


def test_no_python_in_the_documents_is_passed_over():
    opened = [re.findall(r"^ *```+ *(\S+)", page.read_text(), re.MULTILINE) for page in PAGES]
    told = collections.Counter(language for found in opened for language in found)
    assert set(told) <= {"python", "py", "sh", "yaml"}
    run, sketched = (
        {by_name(p): len(b) for p, b in found.items()} for found in (EXAMPLES, SKETCHES)
    )
    assert sum(run.values()) == told["python"]
    assert run.keys() >= {"README.md", "docs/concepts.md", "docs/scaling.md"}
    assert sketched == {"docs/performance.md": 1, "docs/scaling.md": 1}


def test_the_flags_that_the_documents_name_are_those_of_the_command_line():
    (code,) = SKETCHES[ROOT / "docs" / "performance.md"]
    (flags,) = [
        node.value
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Constant) and str(node.value).startswith("--")
    ]
    assert tuple(flags.split()) == compilation.FLAGS


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


def explained(module) -> dict[str, tuple[object, str]]:
    """The functions and classes of a module, and the methods of these: name -> (it, its class)."""
    names = getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    ]
    found = {}
    for name in names:
        thing = getattr(module, name)
        if inspect.isfunction(thing):
            found[name] = thing, ""
        elif inspect.isclass(thing):
            found[name] = thing, ""
            for inner, member in vars(thing).items():
                function = inspect.unwrap(getattr(member, "__func__", member))
                if inspect.isfunction(function) and not inner.startswith("_"):
                    found[f"{name}.{inner}"] = function, inspect.getdoc(thing) or ""
    return found


PUBLIC = explained(jaxplain)
MAKERS = {name: it for name, it in explained(jaxplain.rules).items() if name.islower()}


@pytest.mark.parametrize("name", PUBLIC | MAKERS)
def test_public_names_explain_themselves(name):
    thing, owner = (PUBLIC | MAKERS)[name]
    text = inspect.getdoc(thing)
    assert text, "no docstring"
    # A method may be shown at work in the example of its class.
    shown = "\n".join(
        line for line in owner.splitlines() if line.lstrip().startswith((">>>", "..."))
    )
    assert ">>>" in text or f".{name.rpartition('.')[2]}(" in shown, "no example"


@pytest.mark.parametrize("name", [n for n, (it, _) in PUBLIC.items() if inspect.isfunction(it)])
def test_public_functions_are_typed(name):
    signature = inspect.signature(PUBLIC[name][0])
    untyped = {p.name for p in signature.parameters.values() if p.annotation is p.empty}
    assert untyped <= {"self", "cls"}
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize("name", [n for n, (it, _) in PUBLIC.items() if inspect.isfunction(it)])
def test_public_functions_name_what_they_raise(name):
    function = inspect.unwrap(PUBLIC[name][0])
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None]
    raised = {ast.unparse(e.func) for e in calls if isinstance(e, ast.Call)}
    told = (inspect.getdoc(function) or "").partition("Raises:")[2]
    assert {error for error in raised if error not in told} == set()


def test_the_version_is_looked_up_when_asked_for_and_nothing_else_is_made_up():
    assert jaxplain.__version__ == metadata.version("jaxplain")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        jaxplain.nonsense  # noqa: B018


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_name_their_source(method):
    year = r"\b(19|20)\d\d\b"
    told = [inspect.getmodule(inspect.unwrap(method.function)).__doc__, method.function.__doc__]
    assert re.search(year, method.reference)
    assert any(re.search(year, text or "") for text in told), f"{method.name} cites nothing"
