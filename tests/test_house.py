"""The structure of the package: no circular imports, small folders, short files.

import-linter checks the direction of imports between folders. These tests also check imports within
a folder. They include imports under `TYPE_CHECKING` and imports inside functions.
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
# Only files that hold one long table may be longer. They are listed here, relative to lora_sft/.
LONG_TABLES: frozenset[str] = frozenset()


def read_graph(package: Path) -> dict[str, set[str]]:
    """Return the modules that each module of a package imports, anywhere in its file."""
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
    """Return every imported name with its module: `from a import b` gives `a.b`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: use an absolute import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _find_module(imported: str, files: dict[str, Path]) -> str:
    """Return the module that an imported name means or belongs to."""
    while imported not in files:
        imported, _, last = imported.rpartition(".")
        assert imported, f"{last} is not a module of the package"
    return imported


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circular import, each before the one that it imports, or []."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))  # graphlib lists an imported module first
    return []


def test_no_modules_import_each_other_in_a_circle():
    graph = read_graph(PACKAGE)
    assert len(graph) > LEAST_MODULES
    circle = find_circle(graph)
    assert not circle, "these modules import each other in a circle: " + " -> ".join(circle)


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
def test_a_circle_is_found_for_every_form_of_import(tmp_path, import_of_b):
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


def test_no_folder_has_too_many_modules():
    paths = list(PACKAGE.rglob("*.py"))
    assert len(paths) > LEAST_MODULES
    counts = Counter(
        path.parent.relative_to(PACKAGE).as_posix() for path in paths if path.name != "__init__.py"
    )
    assert {folder: n for folder, n in counts.items() if n > MOST_MODULES_PER_FOLDER} == {}


def test_no_file_has_too_many_lines():
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lines) > LEAST_MODULES
    long = {path for path, number in lines.items() if number > MOST_LINES_PER_FILE}
    assert long == LONG_TABLES
