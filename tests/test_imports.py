"""Imports run one way: between the rooms of the core, between the rooms of the data, and among the files of each room, without a circle.

Imports under TYPE_CHECKING count, and so do those within functions: a reader follows them all.
"""
from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core" / "twinview"
ROOMS = [  # a room imports from rooms further up in this list; rooms that share a line know nothing of each other
    {"terminal"},
    {"errors", "version", "files", "progress", "seeds", "scores"},
    {"machine", "paths"},
    {"faults"},
    {"branch", "published"},
    {"values", "recipe"},
    {"saved"},
    {"hooks", "ops"},
    {"assembly"},
    {"by_view", "heads", "modes", "sample_store"},
    {"data", "model"},
    {"engine"},
    {"planning", "analysis"},
    {"api", "testing"},
    {"scaffold", "pytest_plugin"},
    {"cli"},
]
DATA = [{"rng", "threads", "formats"}, {"store"}, {"remote", "writing"}, {"scenes"}, {"dataset"}, {"loading", "prepare"}]
FACE = {"__init__", "__main__"}  # the package's own names, imported when first asked for


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module under a source root."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules(ROOT / "core") | modules(ROOT / "plugins")


def imports(path: Path) -> set[str]:
    """The modules of this repository that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: imports are absolute"
            full = {f"{node.module}.{a.name}" for a in node.names}
            found |= full & MODULES.keys() | ({node.module} & MODULES.keys() if full - MODULES.keys() else set())
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names} & MODULES.keys()
    return found


def room(module: str, depth: int = 1) -> str:
    return (module.split(".") + ["__init__"] * depth)[depth]


def back_up(rooms: list[set[str]], own: str, others: set[str]) -> set[str]:
    """Those of `others` that do not lie further up."""
    line = {name: place for place, names in enumerate(rooms) for name in names}
    return {other for other in others - {own} - FACE if line[other] >= line[own]}


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "twinview"])
def test_imports_of_the_core_run_one_way(module: str) -> None:
    found = imports(MODULES[module])
    assert not [m for m in found if m.startswith("twinview_")], "the core imports no plugin"
    if (own := room(module)) not in FACE:
        assert not back_up(ROOMS, own, {room(m) for m in found})
        assert "twinview" not in found, "the package's face imports from every room"
    if own == "data" and (inner := room(module, 2)) not in FACE:
        assert not back_up(DATA, inner, {room(m, 2) for m in found if room(m) == "data"})


def test_no_files_of_the_core_import_in_a_circle() -> None:
    """A package's own file, `__init__`, offers names of its files and stands for them."""
    graph = {name: imports(path) for name, path in MODULES.items() if name.startswith("twinview.")}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as e:
        pytest.fail(f"a circle: {' -> '.join(e.args[1])}")


def test_the_rooms_are_those_on_the_list_and_few() -> None:
    top = {room(name) for name in MODULES if name.startswith("twinview.")} - FACE
    assert top == set().union(*ROOMS)
    inner = {room(name, 2) for name in MODULES if name.startswith("twinview.data.")}
    assert inner == set().union(*DATA) and len(inner) <= 10


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("twinview_")])
def test_plugins_import_the_seams_alone(module: str) -> None:
    for other in imports(MODULES[module]):
        if other.startswith("twinview_"):
            assert other.split(".")[0] == module.split(".")[0], "a plugin imports no other"
        else:
            assert other == "twinview" or room(other) in ("hooks", "values", "branch", "ops", "errors"), other


def test_files_stay_small() -> None:
    long = {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
