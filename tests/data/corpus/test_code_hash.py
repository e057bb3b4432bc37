"""A change in any file that decides a corpus changes the key; a change in the preview does not."""

import ast
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_sft
from lora_sft.data.corpus import cache
from lora_sft.data.corpus.code_hash import hash_deciding_code, list_deciding_files

PACKAGE = Path(lora_sft.__file__).parent
DECIDING_ROOMS = ("rows", "examples", "templates", "labels", "corpus")
PACKING = "data/corpus/packing.py"

# Modules outside `lora_sft.data` that code for a corpus imports, and why they decide no token.
EXEMPT = {
    "lora_sft.errors": "an error ends the preparation; it never drops a row",
    "lora_sft.folder_links": "it refuses a file; it never drops a row",
    "lora_sft.file_names": "the names of files are not a part of a corpus",
    "lora_sft.cache_folder": "the place of the cache is not a part of a corpus",
    "lora_sft.log": "it writes messages for the user",
    "lora_sft.shown_text": "it writes names of sources and details of drops for the user",
    "lora_sft.processes.held_signals": "it delays signals while worker processes run",
}


def list_code(folder: str) -> list[str]:
    """Return every file of a folder of `lora_sft` as "data/...", without compiled files."""
    files = (PACKAGE / folder).rglob("*")
    found = [file.relative_to(PACKAGE) for file in files if file.is_file()]
    return sorted(path.as_posix() for path in found if "__pycache__" not in path.parts)


def list_loose_modules() -> list[str]:
    return sorted(file.relative_to(PACKAGE).as_posix() for file in (PACKAGE / "data").glob("*.py"))


DECIDING = [
    *list_loose_modules(),
    *(path for room in DECIDING_ROOMS for path in list_code(f"data/{room}") if path != PACKING),
]
NOT_DECIDING = [*list_code("data/preview"), PACKING]


@pytest.fixture(scope="module")
def shared_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy") / "lora_sft"
    compiled = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE / "data", copy / "data", ignore=compiled)
    return copy


@pytest.fixture
def package(shared_copy: Path) -> Iterator[Path]:
    """Yield a copy of the package's data folder, and restore it after the test."""
    before = {file: file.read_bytes() for file in shared_copy.rglob("*") if file.is_file()}
    yield shared_copy
    for file in shared_copy.rglob("*"):
        if file.is_file() and file not in before:
            file.unlink()
    for file, content in before.items():
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)


def test_the_two_lists_of_this_file_cover_the_whole_data_folder():
    assert sorted([*DECIDING, *NOT_DECIDING]) == list_code("data")
    assert {Path(path).suffix for path in DECIDING} == {".py", ".jinja"}
    assert len(DECIDING) >= 55
    assert len(NOT_DECIDING) >= 5
    sizes = Counter(Path(path).parts[1] for path in DECIDING)
    smallest = {"rows": 10, "examples": 7, "templates": 6, "labels": 14, "corpus": 13}
    assert all(sizes[room] >= number for room, number in smallest.items()), sizes


@pytest.mark.parametrize("path", DECIDING)
def test_a_change_to_a_file_that_decides_a_corpus_changes_the_hash(package, path):
    before = hash_deciding_code(package)
    with (package / path).open("ab") as file:
        file.write(b"\n")
    assert hash_deciding_code(package) != before


@pytest.mark.parametrize("path", NOT_DECIDING)
def test_a_change_to_a_file_that_works_on_a_finished_corpus_keeps_the_hash(package, path):
    before = hash_deciding_code(package)
    with (package / path).open("ab") as file:
        file.write(b"\n")
    assert hash_deciding_code(package) == before


def test_two_files_that_swap_their_contents_change_the_hash(package):
    before = hash_deciding_code(package)
    one, other = package / "data/labels/chat_label_rule.py", package / "data/labels/text_pairs.py"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert hash_deciding_code(package) != before


def test_a_file_that_moves_changes_the_hash(package):
    before = hash_deciding_code(package)
    (package / "data/drops.py").rename(package / "data/rows/drops.py")
    assert hash_deciding_code(package) != before


def test_a_new_file_in_a_new_room_changes_the_hash(package):
    before = hash_deciding_code(package)
    (package / "data/new_room").mkdir()
    (package / "data/new_room/rule.py").write_text("")
    assert hash_deciding_code(package) != before


def test_another_folder_other_file_dates_and_compiled_files_keep_the_hash(package, tmp_path):
    before = hash_deciding_code(package)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(package, elsewhere, copy_function=shutil.copyfile)  # with other dates
    (elsewhere / "data/rows/__pycache__").mkdir()
    (elsewhere / "data/rows/__pycache__/json_array.cpython-312.pyc").write_bytes(b"compiled")
    assert hash_deciding_code(elsewhere) == before


def test_a_changed_label_rule_prepares_the_corpus_again_but_a_changed_page_does_not(
    package, command, write_recipe, monkeypatch, tmp_path
):
    monkeypatch.setenv("LORA_SFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "PACKAGE", package)

    def prepare(recipe: Path) -> bool:
        outcome = command("prepare", recipe, "--json")
        assert outcome.code == 0, outcome.stderr
        return outcome.json["hit"]

    recipe = write_recipe()
    assert prepare(recipe) is False
    assert prepare(recipe) is True
    with (package / "data/preview/page.py").open("ab") as file:
        file.write(b"# another page\n")
    assert prepare(recipe) is True
    with (package / "data/labels/chat_label_rule.py").open("ab") as file:
        file.write(b"# another rule\n")
    assert prepare(recipe) is False


# --- the imports of the code that makes a corpus -------------------------------------------------


def find_file(module: str) -> Path | None:
    """Return the file of a module of this package, or None if the name is not a module."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def walk_without_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node, also inside functions, except blocks under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from walk_without_type_checking(other)
        else:
            yield from walk_without_type_checking(child)


def list_imports(module: str) -> set[str]:
    """Return the modules of this package that a module imports, also inside functions."""
    file = find_file(module)
    assert file is not None, module
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in walk_without_type_checking(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            parts = [*above, node.module] if node.level else [node.module]
            start = ".".join(part for part in parts if part)
            found |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    ours = {name for name in found if name == "lora_sft" or name.startswith("lora_sft.")}
    return {name for name in ours if find_file(name) is not None}


def with_packages(module: str) -> set[str]:
    """Return a module and its parent packages, because Python imports these first."""
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(2, len(parts) + 1)}


def follow_imports(start: str) -> tuple[set[str], set[str]]:
    """Return the modules of `lora_sft.data` that `start` needs, and the others they import."""
    inside: set[str] = set()
    outside: set[str] = set()
    waiting = with_packages(start)
    while waiting:
        module = waiting.pop()
        inside.add(module)
        for imported in list_imports(module) - {"lora_sft"}:
            if imported == "lora_sft.data" or imported.startswith("lora_sft.data."):
                waiting |= with_packages(imported) - inside
            else:
                outside.add(imported)
    return inside, outside - {name.rpartition(".")[0] for name in outside}


def test_every_module_that_makes_a_corpus_is_in_the_hash():
    inside, _ = follow_imports("lora_sft.data.corpus.building")
    assert len(inside) >= 48
    covered = set(list_deciding_files(PACKAGE).values())
    files = {module: find_file(module) for module in inside}
    assert {module for module, file in files.items() if file not in covered} == set()


def test_no_module_outside_the_data_folder_decides_a_corpus():
    _, outside = follow_imports("lora_sft.data.corpus.building")
    assert outside >= {"lora_sft.errors", "lora_sft.processes.held_signals"}  # the search works
    unknown = outside - EXEMPT.keys()
    assert not unknown, f"{unknown}: cover them in code_hash, or give a reason in EXEMPT"


def test_the_template_that_is_read_from_disk_is_in_the_hash():
    from lora_sft.data.templates.tokenizer import PLAIN_TEMPLATE_FILE

    assert PLAIN_TEMPLATE_FILE in list_deciding_files(PACKAGE).values()
