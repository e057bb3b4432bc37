"""Check that the pages match the code: commands, links, file map, recipe reference, recipes.

Each test also asserts how many items it checked. A test that finds no items would always pass.
"""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lora_sft.cli.app import read_arguments
from lora_sft.cli.arguments import UsageError
from lora_sft.recipe import catalogue, read_recipe, recipe_json_schema
from lora_sft.recipe.library_fields import library_fields
from lora_sft.recipe.schema import TRAIN_DEFAULTS
from tests.recipe.recipes import SMALLEST, write

REPOSITORY = Path(__file__).parents[2]
PAGE_PATTERNS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/**/*.md",
    "recipes/*.md",
    "ds_configs/*.md",
)
SEPARATORS = frozenset(("|", "||", "&&", "&", ";"))
REDIRECT = re.compile(r"\d?>>?.*|<")
FENCE = re.compile(r"^\s*(```|~~~)\s*(\w*)")
TRANSCRIPT = "console"  # commands begin with "$ "; every other line is their output
LANGUAGES_WITHOUT_COMMANDS = frozenset(("yaml", "json", "jsonl", "python", "jinja", "toml", "text"))
TREE_LINES = str.maketrans(dict.fromkeys("│├└─", " "))
PATH_ENDS = ("/", ".py", ".yaml", ".yml", ".toml", ".md", ".txt", ".json", ".jsonl", ".jinja")

LEAST_COMMANDS = {"README.md": 5, "recipes/README.md": 5}
LEAST_LINKS = 10
LEAST_MAP_ENTRIES = 8
LEAST_RECIPES = 4
LEAST_SETTINGS_IN_REFERENCE = 60


@dataclass(frozen=True)
class Line:
    """A line of a page.

    Attributes:
        page: The path of the page in the repository.
        number: The number of the line, from 1.
        text: The line itself.
        language: The language of the fenced block around the line; None outside a block.
        heading: The last heading before the line.
    """

    page: str
    number: int
    text: str
    language: str | None
    heading: str

    def __str__(self) -> str:
        return f"{self.page}:{self.number}  {self.text.strip()}"


def list_pages() -> list[Path]:
    return sorted(path for pattern in PAGE_PATTERNS for path in REPOSITORY.glob(pattern))


def read_lines(path: Path) -> Iterator[Line]:
    language, heading = None, ""
    name = path.relative_to(REPOSITORY).as_posix()
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(text)
        if fence:
            language = fence[2].lower() if language is None else None
            continue
        if language is None and text.startswith("#"):
            heading = text.lstrip("# ")
        yield Line(name, number, text, language, heading)


def read_all_lines() -> Iterator[Line]:
    return (line for path in list_pages() for line in read_lines(path))


# --- commands -------------------------------------------------------------------------------------


def find_commands() -> list[tuple[Line, list[str]]]:
    """Return every `lora-sft` command in the fenced blocks, without the program's name."""
    found = []
    for line in _join_continued(read_all_lines()):
        if _may_hold_commands(line):
            found += [(line, words) for words in _split_commands(line.text)]
    return found


def _may_hold_commands(line: Line) -> bool:
    if line.language is None or line.language in LANGUAGES_WITHOUT_COMMANDS:
        return False
    return line.language != TRANSCRIPT or line.text.lstrip().startswith("$ ")


def _join_continued(lines: Iterator[Line]) -> Iterator[Line]:
    start: Line | None = None
    text = ""
    for line in lines:
        start, text = start or line, text + line.text
        if line.language is not None and text.endswith("\\"):
            text = text[:-1] + " "
            continue
        yield Line(start.page, start.number, text, start.language, start.heading)
        start, text = None, ""


def _split_commands(text: str) -> Iterator[list[str]]:
    if "lora-sft" not in text and "lora_sft" not in text:
        return
    try:
        words = shlex.split(text.strip().removeprefix("$ "), comments=True)
    except ValueError:  # an apostrophe in a line that is not a command
        return
    for part in _split_at(words, SEPARATORS):
        arguments = _find_arguments(part)
        if arguments is not None:
            redirect = (index for index, word in enumerate(arguments) if REDIRECT.fullmatch(word))
            yield arguments[: next(redirect, len(arguments))]


def _split_at(words: list[str], separators: frozenset[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in separators:
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _find_arguments(words: list[str]) -> list[str] | None:
    """Return the words after `lora-sft` or after `-m lora_sft`; None for other commands."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words and Path(words[0]).name == "lora-sft":
        return words[1:]
    for flag, name in itertools.pairwise(words):
        if flag in ("-m", "--module") and name == "lora_sft":
            return words[words.index(name) + 1 :]
    return None


def _find_usage_error(arguments: list[str]) -> str | None:
    try:
        read_arguments(arguments)
    except UsageError as error:
        return str(error)
    except SystemExit as end:  # --help, --version
        return f"exit code {end.code}" if end.code else None
    return None


def test_every_command_in_the_pages_is_valid():
    commands = find_commands()
    invalid = {
        str(line): error
        for line, words in commands
        if (error := _find_usage_error(words)) is not None
    }
    assert not invalid
    for page, least in LEAST_COMMANDS.items():
        seen = sum(line.page == page for line, _ in commands)
        assert seen >= least, f"{page}: {seen} commands"


def test_every_override_in_the_pages_is_a_field_of_the_recipe():
    overrides = [
        (line, word.partition("=")[0].split("."))
        for line, words in find_commands()
        for word in words
        if re.match(r"[a-z_]+(\.\w+)*=", word)
    ]
    fields = _list_fields_by_section()
    unknown = [
        str(line)
        for line, (section, *rest) in overrides
        if section not in fields or (rest and rest[0] not in fields[section])
    ]
    assert not unknown
    assert len(overrides) >= 3


def _list_fields_by_section() -> dict[str, set[str]]:
    found = {}
    for name, described in recipe_json_schema()["properties"].items():
        alternatives = [described, *described.get("anyOf", [])]
        found[name] = {key for each in alternatives for key in each.get("properties", {})}
    return found


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("$ lora-sft show my.yaml --json | jq .recipe", [["show", "my.yaml", "--json"]]),
        ("lora-sft show a.yaml > out.txt  # keep it", [["show", "a.yaml"]]),
        ("pip install x && lora-sft recipes", [["recipes"]]),
        ("HF_HUB_OFFLINE=1 .venv/bin/lora-sft quickstart <dir>", [["quickstart", "<dir>"]]),
        ("accelerate launch -m lora_sft train my.yaml", [["train", "my.yaml"]]),
        ("deepspeed --module lora_sft train my.yaml", [["train", "my.yaml"]]),
        ("pip install 'lora-sft[qlora]'", []),
        ("python tools/write_recipe_reference.py", []),
    ],
)
def test_commands_are_found_in_shell_lines(text, commands):
    assert list(_split_commands(text)) == commands


def test_an_invalid_command_is_found():
    assert _find_usage_error(["trian", "my.yaml"])
    assert _find_usage_error(["show", "my.yaml", "--jsno"])


# --- links ----------------------------------------------------------------------------------------


def test_the_target_of_every_relative_link_exists():
    links = [
        (line, target)
        for line in read_all_lines()
        if line.language is None
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", line.text)
        if not re.match(r"[a-z]+:", target)
    ]
    broken = [str(line) for line, target in links if not _target_exists(line.page, target)]
    assert not broken
    assert len(links) >= LEAST_LINKS


def _target_exists(page: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
    if not file.exists():
        return False
    return not anchor or file.suffix != ".md" or anchor in _list_anchors(file)


def _list_anchors(file: Path) -> set[str]:
    headings = {line.heading for line in read_lines(file)}
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- the map of files -----------------------------------------------------------------------------


def test_every_path_in_the_map_of_files_exists():
    lines = [
        line
        for line in read_lines(REPOSITORY / "README.md")
        if line.language is not None
        and re.search(r"\b(map|layout)\b", line.heading, re.IGNORECASE)
        and "run" not in line.heading.lower().split()
    ]
    paths = list(_list_map_paths([line.text for line in lines]))
    assert not [path for path in paths if not _path_exists(path)]
    assert len(paths) >= LEAST_MAP_ENTRIES


def _list_map_paths(lines: list[str]) -> Iterator[str]:
    """Yield the path at the start of each line of a file map, below the folders above it."""
    folders: list[tuple[int, str]] = []
    for text in (line.translate(TREE_LINES) for line in lines):
        word = next(iter(text.split()), "")
        if not word.endswith(PATH_ENDS):
            continue
        indent = len(text) - len(text.lstrip())
        folders = [folder for folder in folders if folder[0] < indent]
        path = "".join(name for _, name in folders) + word
        if word.endswith("/"):
            folders.append((indent, word))
        yield path


def _path_exists(path: str) -> bool:
    pattern = re.sub(r"<\w+>", "*", path).rstrip("/")
    if pattern in ("", ".", "lora-sft"):
        return True
    return any(REPOSITORY.glob(pattern))


def test_the_paths_of_a_map_include_their_folders():
    lines = ["lora_sft/", "  recipe/   read and checked", "    schema.py", "  and prose", "tests/"]
    assert list(_list_map_paths(lines)) == [
        "lora_sft/",
        "lora_sft/recipe/",
        "lora_sft/recipe/schema.py",
        "tests/",
    ]
    drawn = ["recipes/", "├── <model>/<method>.yaml", "└── quickstart.yaml"]
    assert list(_list_map_paths(drawn))[1:] == [
        "recipes/<model>/<method>.yaml",
        "recipes/quickstart.yaml",
    ]
    assert _path_exists("lora_sft/recipe/schema.py")
    assert not _path_exists("lora_sft/recipe/shcema.py")


# --- the recipe reference -------------------------------------------------------------------------


def test_the_recipe_reference_and_the_table_of_recipes_are_up_to_date():
    finished = subprocess.run(
        [sys.executable, "tools/write_recipe_reference.py", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    text = (REPOSITORY / "recipes" / "REFERENCE.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| `", text, re.MULTILINE)) >= LEAST_SETTINGS_IN_REFERENCE


def test_the_reference_lists_every_argument_that_the_run_sets(tmp_path, monkeypatch):
    """Training arguments differ from the defaults of SFTConfig only in the listed names."""
    from trl import SFTConfig

    from lora_sft.plan.batch import make_batch_plan
    from lora_sft.run_directory import RunDirectory
    from lora_sft.train.trl.sft_arguments import make_sft_config

    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    tool = importlib.import_module("write_recipe_reference")
    recipe = read_recipe(write(tmp_path, SMALLEST), ["model.dtype=float32"])
    ours = make_sft_config(recipe, make_batch_plan(recipe, 1), RunDirectory(tmp_path / "run"))
    defaults = SFTConfig(output_dir=str(tmp_path), use_cpu=ours.use_cpu)
    names = library_fields("SFTConfig")
    differing = {name for name in names if getattr(ours, name) != getattr(defaults, name)}
    listed = {*TRAIN_DEFAULTS, *tool.RUN_DECIDES, *tool.TRAIN_OWNED_ELSEWHERE, "disable_tqdm"}
    assert differing <= listed
    assert len(differing) >= 8
    assert set(tool.RUN_DECIDES) <= set(names)


# --- the shipped recipes --------------------------------------------------------------------------


def test_every_shipped_recipe_is_valid_and_has_a_title_and_hardware(command):
    recipes = catalogue.list_recipes()
    for shipped in recipes:
        shown = command("show", shipped.path, "--json")
        assert shown.code == 0, shown.stderr
        assert shown.json["recipe"]["model"]["model_name_or_path"] == shipped.model
        assert shipped.title, f"{shipped.name} lacks the comment `# title: ...`"
        assert shipped.hardware, f"{shipped.name} lacks the comment `# hardware: ...`"
    assert len(recipes) >= LEAST_RECIPES


def test_a_copy_of_a_shipped_recipe_equals_the_recipe(tmp_path, monkeypatch):
    """A relative path in a recipe would mean another file in the folder of the copy."""
    monkeypatch.chdir(tmp_path)
    recipes = catalogue.list_recipes()
    for index, shipped in enumerate(recipes):
        copied = catalogue.copy_recipe(shipped.name, tmp_path / f"{index}.yaml")
        assert read_recipe(copied) == read_recipe(shipped.path), shipped.name
    assert len(recipes) >= LEAST_RECIPES
