"""What the pages say is there: commands, links, the map of files, the reference, the shelf.

A page is right on the day it is written; these tests keep it so. Each says how many things it
looked at, because a guard that finds nothing to check passes for ever.
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
PAGES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "recipes/*.md", "ds_configs/*.md")
SEPARATORS = frozenset(("|", "||", "&&", "&", ";"))
REDIRECT = re.compile(r"\d?>>?.*|<")
FENCE = re.compile(r"^\s*(```|~~~)\s*(\w*)")
TRANSCRIPT = "console"  # its commands begin with "$ ", all else is what they print
NOT_COMMANDS = frozenset(("yaml", "json", "jsonl", "python", "jinja", "toml", "text"))
TREE_LINES = str.maketrans(dict.fromkeys("│├└─", " "))
PATH_ENDS = ("/", ".py", ".yaml", ".yml", ".toml", ".md", ".txt", ".json", ".jsonl", ".jinja")

LEAST_COMMANDS = {"README.md": 5, "recipes/README.md": 5}
LEAST_LINKS = 10
LEAST_MAP_ENTRIES = 8
LEAST_RECIPES = 4
LEAST_SETTINGS_IN_REFERENCE = 60


@dataclass(frozen=True)
class Line:
    """A line of a page: where, its text, and the language of the fenced block around it."""

    page: str
    number: int
    text: str
    language: str | None
    heading: str

    def __str__(self) -> str:
        return f"{self.page}:{self.number}  {self.text.strip()}"


def pages() -> list[Path]:
    return sorted(path for pattern in PAGES for path in REPOSITORY.glob(pattern))


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


def all_lines() -> Iterator[Line]:
    return (line for path in pages() for line in read_lines(path))


# --- commands -------------------------------------------------------------------------------------


def find_commands() -> list[tuple[Line, list[str]]]:
    """Every `lora-sft` command line in a fenced block, as the words after the program's name."""
    found = []
    for line in _join_continued(all_lines()):
        if _may_hold_commands(line):
            found += [(line, words) for words in _commands_in(line.text)]
    return found


def _may_hold_commands(line: Line) -> bool:
    if line.language is None or line.language in NOT_COMMANDS:
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


def _commands_in(text: str) -> Iterator[list[str]]:
    if "lora-sft" not in text and "lora_sft" not in text:
        return
    try:
        words = shlex.split(text.strip().removeprefix("$ "), comments=True)
    except ValueError:  # an apostrophe in a line that is no command
        return
    for part in _split_at(words, SEPARATORS):
        arguments = _after_program(part)
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


def _after_program(words: list[str]) -> list[str] | None:
    """What follows `lora-sft` at the start, or `-m lora_sft` after a launcher."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words and Path(words[0]).name == "lora-sft":
        return words[1:]
    for flag, name in itertools.pairwise(words):
        if flag in ("-m", "--module") and name == "lora_sft":
            return words[words.index(name) + 1 :]
    return None


def _refusal_of(arguments: list[str]) -> str | None:
    try:
        read_arguments(arguments)
    except UsageError as error:
        return str(error)
    except SystemExit as end:  # --help, --version
        return f"exit code {end.code}" if end.code else None
    return None


def test_every_command_in_the_pages_is_understood():
    commands = find_commands()
    refused = {
        str(line): refusal
        for line, words in commands
        if (refusal := _refusal_of(words)) is not None
    }
    assert not refused
    for page, least in LEAST_COMMANDS.items():
        seen = sum(line.page == page for line, _ in commands)
        assert seen >= least, f"{page}: {seen} commands"


def test_every_override_in_the_pages_names_a_setting():
    overrides = [
        (line, word.partition("=")[0].split("."))
        for line, words in find_commands()
        for word in words
        if re.match(r"[a-z_]+(\.\w+)*=", word)
    ]
    settings = _settings_by_section()
    unknown = [
        str(line)
        for line, (section, *rest) in overrides
        if section not in settings or (rest and rest[0] not in settings[section])
    ]
    assert not unknown
    assert len(overrides) >= 3


def _settings_by_section() -> dict[str, set[str]]:
    found = {}
    for name, described in recipe_json_schema()["properties"].items():
        alternatives = [described, *described.get("anyOf", [])]
        found[name] = {key for one in alternatives for key in one.get("properties", {})}
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
    assert list(_commands_in(text)) == commands


def test_a_command_that_does_not_exist_is_noticed():
    assert _refusal_of(["trian", "my.yaml"])
    assert _refusal_of(["show", "my.yaml", "--jsno"])


# --- links ----------------------------------------------------------------------------------------


def test_every_relative_link_leads_somewhere():
    links = [
        (line, target)
        for line in all_lines()
        if line.language is None
        for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", line.text)
        if not re.match(r"[a-z]+:", target)
    ]
    broken = [str(line) for line, target in links if not _leads_somewhere(line.page, target)]
    assert not broken
    assert len(links) >= LEAST_LINKS


def _leads_somewhere(page: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
    if not file.exists():
        return False
    return not anchor or file.suffix != ".md" or anchor in _anchors_of(file)


def _anchors_of(file: Path) -> set[str]:
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
    paths = list(_paths_in_map([line.text for line in lines]))
    assert not [path for path in paths if not _exists(path)]
    assert len(paths) >= LEAST_MAP_ENTRIES


def _paths_in_map(lines: list[str]) -> Iterator[str]:
    """The first word of each line that is a path, below the folders that it is indented under."""
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


def _exists(path: str) -> bool:
    pattern = re.sub(r"<\w+>", "*", path).rstrip("/")
    if pattern in ("", ".", "lora-sft"):
        return True
    return any(REPOSITORY.glob(pattern))


def test_a_map_is_read_with_its_folders():
    lines = ["lora_sft/", "  recipe/   read and checked", "    schema.py", "  and prose", "tests/"]
    assert list(_paths_in_map(lines)) == [
        "lora_sft/",
        "lora_sft/recipe/",
        "lora_sft/recipe/schema.py",
        "tests/",
    ]
    drawn = ["recipes/", "├── <model>/<method>.yaml", "└── quickstart.yaml"]
    assert list(_paths_in_map(drawn))[1:] == [
        "recipes/<model>/<method>.yaml",
        "recipes/quickstart.yaml",
    ]
    assert _exists("lora_sft/recipe/schema.py")
    assert not _exists("lora_sft/recipe/shcema.py")


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


def test_the_reference_has_all_that_the_run_decides(tmp_path, monkeypatch):
    """The run's arguments differ from a bare SFTConfig only where the reference says so."""
    from trl import SFTConfig

    from lora_sft.plan.batch import make_batch_plan
    from lora_sft.run_directory import RunDirectory
    from lora_sft.train.trl.sft_arguments import make_sft_config

    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    tool = importlib.import_module("write_recipe_reference")
    recipe = read_recipe(write(tmp_path, SMALLEST), ["model.dtype=float32"])
    ours = make_sft_config(recipe, make_batch_plan(recipe, 1), RunDirectory(tmp_path / "run"))
    bare = SFTConfig(output_dir=str(tmp_path), use_cpu=ours.use_cpu)
    names = library_fields("SFTConfig")
    differing = {name for name in names if getattr(ours, name) != getattr(bare, name)}
    said = {*TRAIN_DEFAULTS, *tool.RUN_DECIDES, *tool.TRAIN_OWNED_ELSEWHERE, "disable_tqdm"}
    assert differing <= said
    assert len(differing) >= 8
    assert set(tool.RUN_DECIDES) <= set(names)


# --- the shelf ------------------------------------------------------------------------------------


def test_every_shipped_recipe_shows_and_describes_itself(command):
    shelf = catalogue.list_recipes()
    for shipped in shelf:
        shown = command("show", shipped.path, "--json")
        assert shown.code == 0, shown.stderr
        assert shown.json["recipe"]["model"]["model_name_or_path"] == shipped.model
        assert shipped.title, f"{shipped.name} lacks the comment `# title: ...`"
        assert shipped.hardware, f"{shipped.name} lacks the comment `# hardware: ...`"
    assert len(shelf) >= LEAST_RECIPES


def test_a_copy_of_every_shipped_recipe_asks_for_the_same_run(tmp_path, monkeypatch):
    """A relative path would lead elsewhere, or nowhere, from another folder."""
    monkeypatch.chdir(tmp_path)
    shelf = catalogue.list_recipes()
    for index, shipped in enumerate(shelf):
        copied = catalogue.copy_recipe(shipped.name, tmp_path / f"{index}.yaml")
        assert read_recipe(copied) == read_recipe(shipped.path), shipped.name
    assert len(shelf) >= LEAST_RECIPES
