"""The shape of the package: no circle of imports, small folders, short files.

import-linter checks the direction between rooms. These tests look within the rooms too, and count
the imports that never run or run late: those of `TYPE_CHECKING` and those inside functions.
"""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lora_sft

PACKAGE = Path(lora_sft.__file__).parent
LEAST_MODULES = 200
MOST_MODULES_PER_FOLDER = 21
MOST_LINES_PER_FILE = 400
# Declared tables alone may be longer, each named here: a path below lora_sft/.
LONG_TABLES: frozenset[str] = frozenset()


def read_graph(package: Path) -> dict[str, set[str]]:
    """Return the modules that each module of a package imports, wherever the import stands."""
    files = {_name_module(path, package): path for path in sorted(package.rglob("*.py"))}
    return {
        name: {
            _find_module(imported, files)
            for imported in _list_imports(ast.parse(path.read_text(encoding="utf-8")))
            if imported.partition(".")[0] == package.name
        }
        for name, path in files.items()
    }


def _name_module(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _list_imports(tree: ast.Module) -> list[str]:
    """Return every imported name with its module: `from a import b` is `a.b`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports here are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _find_module(imported: str, files: dict[str, Path]) -> str:
    """Return the module that an imported name is or stands in."""
    while imported not in files:
        imported, _, last = imported.rpartition(".")
        assert imported, f"{last}: no module of the package"
    return imported


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle of imports, in the order of importing; [] without one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # graphlib lists what is imported first
    return []


def test_no_module_imports_itself_by_way_of_others():
    graph = read_graph(PACKAGE)
    assert len(graph) > LEAST_MODULES
    circle = find_circle(graph)
    assert not circle, "these modules import each other: " + " -> ".join(circle)


@pytest.mark.parametrize(
    "import_of_b",
    [
        "import house.b",
        "from house import b",
        "from house.b import B",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.b import B",
        "def late():\n    from house.b import B",
    ],
)
def test_a_circle_is_found_wherever_its_imports_stand(tmp_path, import_of_b):
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(import_of_b)
    (package / "b.py").write_text("from house.c import C")
    (package / "c.py").write_text("import json\nfrom house.a import A")
    circle = find_circle(read_graph(package))
    assert circle[0] == circle[-1]
    steps = {*itertools.pairwise(circle)}
    assert steps == {("house.a", "house.b"), ("house.b", "house.c"), ("house.c", "house.a")}
    (package / "a.py").write_text("import json")
    assert find_circle(read_graph(package)) == []


def test_a_folder_holds_what_one_sentence_describes():
    paths = list(PACKAGE.rglob("*.py"))
    assert len(paths) > LEAST_MODULES
    counts = Counter(
        path.parent.relative_to(PACKAGE).as_posix() for path in paths if path.name != "__init__.py"
    )
    assert {folder: n for folder, n in counts.items() if n > MOST_MODULES_PER_FOLDER} == {}


def test_a_file_is_short_enough_to_be_read_at_once():
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lines) > LEAST_MODULES
    long = {path for path, number in lines.items() if number > MOST_LINES_PER_FILE}
    assert long == LONG_TABLES
