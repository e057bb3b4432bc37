"""A damaged file is a user's problem, so every command says so in three lines.

Each file that a command reads is damaged in many ways. A command then ends with an exit code of
its own and an error of three lines, or it succeeds because it does not need the file. No command
may end with exit code 1, which means a defect of lora-sft, print a traceback, take all memory, or
hang.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path

import pytest

from tests.damaged_files import (
    CASES,
    WHOLE_FILE_DAMAGES,
    Damaged,
    damaged,
    list_shared_field_damages,
    list_whole_file_damages,
    make_project,
)

MOST_EXTRA_BYTES = 8 << 30  # of address space: a damaged size must not become memory
CHANGED_BY_COMMANDS = ("run", "unfinished")
FIELDS_IN_SAMPLE = 30


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Path]:
    """Return the project; its cache holds nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_SFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def limited_memory() -> Iterator[None]:
    """Let an allocation fail that a damaged size asks for, in place of the whole machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + MOST_EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(autouse=True)
def no_endless_server(monkeypatch) -> None:
    """`serve` ends when it would begin to answer requests."""
    monkeypatch.setattr("lora_sft.serve.listening.run_endpoint", lambda app, listener: None)


def find_fault(command, project: Path, case: Damaged) -> str:
    """Run a command with one damaged file, and return what is wrong with its end, if anything."""
    kept = project.with_name("kept")
    for folder in CHANGED_BY_COMMANDS:
        shutil.copytree(project / folder, kept / folder)
    try:
        with contextlib.chdir(project), damaged(project / case.file, case.damage):
            outcome = command(*CASES[case.command].arguments)
    finally:
        for made in ("out", "out.failed", *CHANGED_BY_COMMANDS):
            shutil.rmtree(project / made, ignore_errors=True)
        for folder in CHANGED_BY_COMMANDS:
            (kept / folder).rename(project / folder)
    last = outcome.stderr.strip().splitlines()[-3:]
    heads = [line.partition(":")[0] for line in last]
    is_error = 2 <= outcome.code <= 7 and heads == ["error", "where", "fix"]
    if outcome.code == 0 or (is_error and "Traceback" not in outcome.stderr):
        return ""
    return (
        f"{case.command}: {case.file}: {case.label}: exit {outcome.code}: {' | '.join(last)[:300]}"
    )


def check_all(command, project: Path, cases: Iterable[Damaged]) -> None:
    faults = [fault for case in cases if (fault := find_fault(command, project, case))]
    assert not faults, "\n".join(faults)


def test_a_damaged_file_gives_an_error_of_three_lines(command, project):
    """A sample: every second file of each command, with one damage after the other."""
    damages = cycle(WHOLE_FILE_DAMAGES.items())
    sample = [
        Damaged(name, file, *next(damages)) for name in CASES for file in CASES[name].files[::2]
    ]
    fields = [case for name in CASES for case in list_shared_field_damages(project, name)]
    sample += fields[:: len(fields) // FIELDS_IN_SAMPLE]
    assert len({case.command for case in sample}) == len(CASES)
    assert {case.label for case in sample} > WHOLE_FILE_DAMAGES.keys()
    check_all(command, project, sample)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_damage_of_a_file_gives_a_traceback(command, project, name):
    with contextlib.chdir(project):
        outcome = command(*CASES[name].arguments)
    assert outcome.code == 0, outcome.stderr
    shutil.rmtree(project / "out", ignore_errors=True)
    cases = [*list_whole_file_damages(name), *list_shared_field_damages(project, name)]
    assert len(cases) >= len(CASES[name].files) * len(WHOLE_FILE_DAMAGES) > 0
    check_all(command, project, cases)


@pytest.mark.skipif(os.geteuid() != 0, reason="every damage is tried")
def test_files_without_permission_are_not_tried_for_root():
    pytest.skip("NOT TESTED: files that the user may not read, because root may read every file")
