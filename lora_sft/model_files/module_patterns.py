"""Check the regular expressions of an adapter's config before PEFT or a merge matches them.

A regular expression may need exponential time for one name, and `re` has no limit. An adapter of a
stranger could so stop every command that reads it. So its patterns are first matched with the same
names in a process of its own, which has limits on time and memory. A pattern of plain names needs
no trial.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_sft.errors import ModelError
from lora_sft.file_names import ADAPTER_CONFIG_FILE
from lora_sft.model_files import pattern_trial

# All patterns of one config together. Usual patterns need milliseconds for thousands of names.
TRIAL_CPU_SECONDS = 1
TRIAL_SECONDS = 60  # on a machine that runs many other programs
TRIAL_MEMORY_BYTES = 1 << 30
MOST_PATTERNS = 10_000  # PEFT compiles each of them again for each module
LONGEST_SHOWN_CHARACTERS = 80

PLAIN = re.compile(r"(?:[\w.|^$-]|\\\.)*")  # no group and no repetition: time grows with length

# Field -> PEFT's expression around a value (peft 0.21 `check_target_module_exists`,
# `get_pattern_key`), and whether it must match the whole name. A list of names in the first three
# fields is not matched as regular expressions.
WHOLE_NAME_FIELDS = ("target_modules", "exclude_modules", "feedforward_modules")
EXPRESSIONS = {
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
}


@dataclass(frozen=True)
class ModulePattern:
    """A pattern of an adapter's config: its field, its text, and the expression of PEFT."""

    field: str
    text: str
    expression: str
    is_whole_name: bool = False


@dataclass(frozen=True)
class PatternFault:
    """What is wrong with a pattern, and the field of the config that holds it."""

    field: str
    what: str
    fix: str = "write the names of the modules, without repeated groups such as (a+)+"


def is_plain(text: str) -> bool:
    """Return whether a pattern only lists names, so that no name can need much time."""
    return PLAIN.fullmatch(text) is not None


def list_patterns(config: Mapping[str, Any]) -> Iterator[ModulePattern]:
    """Yield every value of an adapter's config that PEFT matches as a regular expression."""
    for field in WHOLE_NAME_FIELDS:
        if isinstance(config.get(field), str):
            yield ModulePattern(field, config[field], config[field], is_whole_name=True)
    for field, around in EXPRESSIONS.items():
        value = config.get(field)
        texts = (value,) if isinstance(value, str) else value
        for text in texts if isinstance(texts, (tuple, list, Mapping)) else ():
            yield ModulePattern(field, str(text), around.replace("{}", str(text)))


def find_pattern_fault(config: Mapping[str, Any], names: Iterable[str]) -> PatternFault | None:
    """Return what is wrong with the first bad pattern of a config, or None.

    Args:
        config: PEFT's config of an adapter, as JSON or as in a recipe.
        names: The names of modules and parameters that the patterns will be matched with.
    """
    patterns = list(list_patterns(config))
    if len(patterns) > MOST_PATTERNS:
        what = f"the adapter's config has {len(patterns):,} patterns, more than {MOST_PATTERNS:,}"
        return PatternFault(patterns[-1].field, what, "set one pattern for many modules")
    risky = [each for each in patterns if not is_plain(each.text)]
    return _try_patterns(risky, list(names)) if risky else None


def check_saved_patterns(folder: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check the patterns of a saved adapter.

    Raises: ModelError that names the file and the field.
    """
    fault = find_pattern_fault(config, names)
    if fault is not None:
        where = f"{folder / ADAPTER_CONFIG_FILE}  {fault.field}"
        raise ModelError(fault.what, where, f"{fault.fix}; or use another adapter")


def _try_patterns(patterns: list[ModulePattern], names: list[str]) -> PatternFault | None:
    document = {
        "cpu_seconds": TRIAL_CPU_SECONDS,
        "memory_bytes": TRIAL_MEMORY_BYTES,
        "patterns": [(each.expression, each.is_whole_name) for each in patterns],
        "names": names,
    }
    lines = _run_trial(json.dumps(document)).splitlines() or ["0 "]
    if lines[-1] == "done":
        return None
    index, _, problem = lines[-1].partition(" ")
    bad = patterns[int(index)]
    shown = bad.text[:LONGEST_SHOWN_CHARACTERS]
    if problem:
        what = f'the pattern "{shown}" is not a regular expression: {problem}'
        return PatternFault(bad.field, what, "write a regular expression of Python")
    what = f'the pattern "{shown}" needs too much time to be matched with the names of modules'
    return PatternFault(bad.field, what)


def _run_trial(document: str) -> str:
    """Return what the trial printed until it ended or reached a limit."""
    command = (sys.executable, "-I", "-S", inspect.getfile(pattern_trial))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as trial:
        try:
            return trial.communicate(document, timeout=TRIAL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            trial.kill()
            return trial.communicate()[0]
