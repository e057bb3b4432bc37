"""Run the README's tour, command after command, and compare what they print with the page.

Words and counts must be equal. Losses and other measured numbers may differ a little between
processors, and times always differ: see `are_alike`. A line `...` of the page stands for any number
of lines, and `...` within a line stands for any text.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "README.md"
HEADING = "## The tour"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HOME = "/home/me"  # stands for the folder of the tour on the page
NUMBER = re.compile(r"\d+(?:,\d{3})+|\d+(?:\.\d+)?(?:e[+-]?\d+)?")
RELATIVE_TOLERANCE = 0.05  # losses of 69 steps, on another processor or another build of torch
ROUNDING = 1e-3  # below it a number is rounding noise: a KL, a largest difference of logits
PERCENT_POINTS = 7.0  # two of 32 answers
NOISE = "Failed to load CPU gemm"  # bitsandbytes, where it is installed, at its import
SECONDS = re.compile(r"\b\d+(\.\d+)? s\b")
NUM_COMMANDS = 9


@dataclass(frozen=True)
class Step:
    """One command of the tour and the lines that the page shows below it."""

    command: str
    shown: tuple[str, ...]


def read_tour() -> tuple[dict[str, str], list[Step]]:
    """Return the files that the tour writes, and its commands in order."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index(HEADING) :].split("\n## ")[0]
    files: dict[str, str] = {}
    steps: list[Step] = []
    for language, body in BLOCK.findall(section):
        name = re.match(r"# (\S+\.\w+)\n", body)
        if language in ("python", "yaml") and name:
            files[name[1]] = body
        elif language == "console":
            steps += read_steps(body)
    return files, steps


def read_steps(transcript: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
        command, *shown = part.rstrip("\n").split("\n")
        yield Step(command, tuple(shown))


def run_step(step: Step, folder: Path) -> list[str]:
    """Return the lines that a command prints, on both streams, as a person sees them."""
    program, *words = shlex.split(step.command, comments=True)
    start = {"lora-sft": ["-m", "lora_sft"], "python": []}[program]
    finished = subprocess.run(
        [sys.executable, *start, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    lines = finished.stdout.replace(str(folder), HOME).splitlines()
    return [line for line in lines if not line.startswith(NOISE)]


def are_alike(shown: str, printed: str) -> bool:
    """Return whether a printed line is the page's, but for times and measured numbers."""
    shown, printed = (SECONDS.sub("N s", line.rstrip()) for line in (shown, printed))
    if "..." in shown:
        head, tail = shown.split("...")[0].strip(), shown.split("...")[-1].strip()
        shown, printed = head + tail, printed[: len(head)] + printed[len(printed) - len(tail) :]
    if NUMBER.sub("#", shown) != NUMBER.sub("#", printed):
        return False
    pairs = zip(NUMBER.finditer(shown), NUMBER.finditer(printed), strict=True)
    return all(
        is_near(old[0], new[0], is_percent=shown[old.end() :].lstrip().startswith("%"))
        for old, new in pairs
    )


def is_near(shown: str, printed: str, *, is_percent: bool) -> bool:
    if shown.replace(",", "").isdigit():
        return shown == printed
    old, new = float(shown), float(printed)
    if is_percent:
        return abs(old - new) <= PERCENT_POINTS
    return max(old, new) < ROUNDING or abs(old - new) <= RELATIVE_TOLERANCE * old


def find_difference(shown: tuple[str, ...], printed: list[str]) -> str:
    """Return the first line of the page that was not printed where it should be, or nothing."""
    position = 0
    may_skip = False
    for line in shown:
        if line == "...":
            may_skip = True
            continue
        while position < len(printed) and may_skip and not are_alike(line, printed[position]):
            position += 1
        if position == len(printed) or not are_alike(line, printed[position]):
            return line
        position, may_skip = position + 1, False
    return (
        "" if may_skip or position == len(printed) else f"after the last line: {printed[position]}"
    )


@pytest.mark.first
def test_the_tour_prints_what_the_page_shows(tmp_path):
    files, steps = read_tour()
    assert set(files) == {"make_tickets.py", "my.yaml", "bad.yaml"}
    assert len(steps) == NUM_COMMANDS
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for step in steps:
        printed = [line for line in run_step(step, tmp_path) if line]
        shown = tuple(line for line in step.shown if line)
        difference = find_difference(shown, printed)
        output = "\n".join(printed)
        assert not difference, f"$ {step.command}\nnot printed: {difference}\n\n{output}"


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("loss 0.1478", "loss 0.1490", True),
        ("loss 0.1478", "loss 0.2478", False),
        ("read 368", "read 367", False),
        ("mean KL of 2.53e-12 nats", "mean KL of 9.1e-11 nats", True),
        ("mean KL of 2.53e-12 nats", "mean KL of 0.2 nats", False),
        ("4.5 MB written in 0.1 s", "4.5 MB written in 12.9 s", True),
        ("exact_match 3.1 %", "exact_match 6.2 %", True),
        ("exact_match 3.1 %", "exact_match 50.0 %", False),
        ("a line that goes on ...", "a line that goes on and on", True),
        ("a line ... its end", "a line with much text up to its end", True),
        ("a line ... its end", "a line with much text and another end", False),
        ("done", "not done", False),
    ],
)
def test_the_comparison_sees_what_matters(shown, printed, expected):
    assert are_alike(shown, printed) is expected
    assert (find_difference((shown,), [printed]) == "") is expected
