"""Decide how an attacked run ended: "equal", "refused" or "lost".

- equal: the last start succeeded. The adapter and `metrics.jsonl`, without its fields of time and
  rate, are those of a run without a fault. The start continued from the newest intact checkpoint.
- refused: the last start ended with an error of three lines and an exit code for a recipe or for
  training. It deleted and changed nothing. The command in the error's `fix:` line gives the
  adapter of a run without a fault.
- lost: anything else.

The judge shares no code with the product: it hashes the files of checkpoints itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.attacks.starts import Start

REFUSALS = (2, 6)  # the exit codes for a recipe and for training
CLOCK_FIELDS = re.compile(r"_runtime$|_per_second$")
ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
# A refused start may write these.
OF_A_START = re.compile(r"\.lock$|status\.json$|processes(/|$)")
FINISHED = "this run is finished"
ERROR = re.compile(r"^error: (.*)\nwhere: (.*)\nfix:   (.*)$", re.MULTILINE)
RESUME_OPTION = re.compile(r"--resume (\S+?)(?=[;,]|\s|$)")


@dataclass(frozen=True)
class Outcome:
    """How an attacked run ended, and why."""

    word: Literal["equal", "refused", "lost"]
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """What a finished run leaves: the adapter's files, and the records of `metrics.jsonl`."""

    adapter: tuple[bytes, ...]
    records: tuple[str, ...]

    @classmethod
    def read(cls, run: Path) -> Result:
        """Read the result of a run.

        Raises: OSError or ValueError if a file is missing or damaged.
        """
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        timeless = (
            {name: value for name, value in record.items() if not CLOCK_FIELDS.search(name)}
            for record in records
        )
        adapter = tuple((run / name).read_bytes() for name in ADAPTER)
        return cls(adapter, tuple(map(json.dumps, timeless)))

    def compare(self, other: Result) -> str:
        """Return what differs; empty if the results are equal."""
        if self.adapter != other.adapter:
            return "the adapter differs"
        return "" if self.records == other.records else "metrics.jsonl differs"


def find_intact(run: Path) -> Path | None:
    """Return the newest checkpoint whose files all have the hashes in its manifest, or None."""
    checkpoints = (run / "checkpoints").glob("checkpoint-*")
    newest_first = sorted(checkpoints, key=lambda each: -int(each.name.rpartition("-")[2]))
    return next(filter(_is_intact, newest_first), None)


def _is_intact(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        return all(hash_file(checkpoint / name) == files[name]["sha256"] for name in files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_files(run: Path) -> Mapping[str, str]:
    """Return the hash of every file that a refused start must not change."""
    paths = (path for path in run.rglob("*") if path.is_file())
    files = {path.relative_to(run).as_posix(): path for path in paths}
    return {name: hash_file(path) for name, path in files.items() if not OF_A_START.search(name)}


def judge(
    run: Path, reference: Result, start: Callable[..., Start], *, may_refuse: bool
) -> Outcome:
    """Start an attacked run again until it is finished or refused, and return its outcome.

    Args:
        run: The output directory.
        reference: The result of a run without a fault.
        start: Starts the command again, with more options.
        may_refuse: Whether a refusal is a right answer to this attack.
    """
    intact, before = find_intact(run), hash_files(run)
    again = start()
    exit_code, log = again.wait(), again.read_log()
    if exit_code == 0:
        return _judge_end(run, reference, log, intact)
    if exit_code not in REFUSALS or "Traceback" in log:
        return Outcome("lost", f"exit code {exit_code}: {log.strip()[-400:]}")
    after = hash_files(run)
    changed = sorted(name for name in before if before[name] != after.get(name))
    if changed:
        return Outcome("lost", f"the refused start changed or deleted {changed[0]}")
    errors = ERROR.findall(log)
    if not errors:
        return Outcome("lost", f"exit code {exit_code} without an error of three lines")
    what, _, fix = errors[-1]
    if not may_refuse:
        return Outcome("lost", f"refused, although the run can be continued: {what}")
    return _follow_fix(run, reference, start, what, fix)


def _judge_end(run: Path, reference: Result, log: str, intact: Path | None) -> Outcome:
    try:
        difference = Result.read(run).compare(reference)
    except (OSError, ValueError) as error:
        difference = f"the result cannot be read: {error}"
    if difference:
        return Outcome("lost", f"exit code 0, but {difference}")
    continued = intact is None or f"continuing from {intact}\n" in log or FINISHED in log
    if not continued:
        return Outcome("lost", f"the start did not continue from {intact.name if intact else ''}")
    return Outcome("equal")


def _follow_fix(
    run: Path, reference: Result, start: Callable[..., Start], what: str, fix: str
) -> Outcome:
    """Start with the option that the error names. The result must equal the reference."""
    resume = RESUME_OPTION.search(fix)
    options = ("--resume", resume[1]) if resume else ("--overwrite",)
    if options[0] not in fix:
        return Outcome("lost", f"the fix names no option: {fix}")
    fixed = start(*options)
    exit_code = fixed.wait()
    end = _judge_end(run, reference, fixed.read_log(), None)
    if exit_code != 0 or end.word != "equal":
        tail = fixed.read_log().strip()[-300:]
        return Outcome("lost", f"{' '.join(options)} failed ({exit_code}, {end.reason}): {tail}")
    return Outcome("refused", f"{what}; {options[0]} then worked")
