"""The house rules about who may import whom, read from the source."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxplain"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A room is a module or a folder directly in the package. It may import the rooms of lower floors
# and itself; the list begins with the lowest.
FLOORS = [
    {"adapters", "black_box", "names", "outputs"},
    {"checkpoints", "preprocessing", "scores", "sharding"},
    {"model"},
    {"data", "models", "solvers", "superpixels"},
    {"trace"},
    {"methods"},
    {"training"},
    {"evaluation"},
    {"plot"},
    {"report"},
    {"cli"},
]
# `model.layers()` reads like the others, but the code behind it is the trace engine's.
UPWARD = {("model.py", "jaxplain.trace.layers.layers")}
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Each is imported in one place: a file or a room. That is where to mend what it breaks.
ONLY_IN = {
    "jax.extend": "trace/jaxpr.py",
    "matplotlib": "plot.py",
    "jinja2": "report",
    "typer": "cli",
}

# Each costs more than all of jaxplain, so it is imported by what uses it.
HEAVY = {
    "PIL",
    "array_record",
    "cv2",
    "grain",
    "jinja2",
    "matplotlib",
    "optax",
    "orbax",
    "pooch",
    "rich",
    "safetensors",
    "skimage",
    "sklearn",
    "tensorflow_datasets",
    "typer",
}


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_a_floor_and_every_floor_its_rooms():
    assert {room(path) for path in SOURCES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    here = room(path)
    if here == "__init__":
        return
    names = {name for name in imported(path) if within(name, "jaxplain")}
    names -= {name for file, name in UPWARD if file == path.name}
    rooms = {name.split(".")[1] for name in names} - {here}
    assert {other for other in rooms if FLOOR[other] >= FLOOR[here]} == set()


def test_solvers_know_nothing_of_images():
    names = set().union(*(imported(path) for path in (PACKAGE / "solvers").rglob("*.py")))
    assert {
        n for n in names if within(n, "jaxplain") and not within(n, "jaxplain.solvers")
    } == set()


@pytest.mark.parametrize(("module", "place"), ONLY_IN.items(), ids=ONLY_IN)
def test_some_libraries_are_touched_in_one_place_only(module, place):
    users = {path for path in SOURCES if any(within(name, module) for name in imported(path))}
    places = {path for path in users if path.relative_to(PACKAGE).is_relative_to(place)}
    assert users == places
    assert users


def test_nothing_private_to_jax_is_used():
    assert {p for p in SOURCES if any(within(name, "jax._src") for name in imported(p))} == set()


def test_every_imported_library_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [e for extra in project["optional-dependencies"].values() for e in extra]
    declared = {
        canonical(re.split(r"[<>=!~ \[;]", entry)[0])
        for entry in [*project["dependencies"], *optional]
    }
    distributions = metadata.packages_distributions()
    tops = {name.split(".")[0] for path in SOURCES for name in imported(path)}
    tops -= sys.stdlib_module_names | {"jaxplain"}
    # What an extra brings need not be here; its module is then named like its distribution.
    assert {t for t in tops - set(distributions) if canonical(t) not in declared} == set()
    used = {canonical(name) for top in tops & set(distributions) for name in distributions[top]}
    assert used - declared == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_importing_jaxplain_loads_nothing_heavy():
    script = "import sys, jaxplain; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    # What Flax itself loads is paid for already.
    script = "import sys, jax, flax.linen; print(*sys.modules)"
    free = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert "jaxplain" in loaded
    assert HEAVY & ({name.split(".")[0] for name in loaded} - set(free)) == set()


@pytest.mark.parametrize("name", ["models", "solvers"])
def test_the_top_level_links_lead_into_the_package(name):
    assert (ROOT / name).is_symlink()
    assert (ROOT / name).resolve() == PACKAGE / name
