"""Compare two sets of results and print each lora-sft number that got better or worse.

    python -m benchmarks.compare HEAD       # committed results against the results on disk
    python -m benchmarks.compare OLD NEW    # two folders of results

A busy machine slows all contestants. So a change of a lora-sft number is divided by the change of a
peer or limit of the same subject, if both records have one. A change counts if it is larger than
the sum of the spreads of all numbers involved, and larger than a fixed minimum. The exit code is 1
if a number got worse.
"""

from __future__ import annotations

import argparse
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from benchmarks.record import RESULTS, ROOT, Case, Measurement, Record

# The smallest relative changes that count. On a shared machine the median of repeated timings moves
# by up to 5 % although the code is the same. Counts do not move.
TIME_FLOOR = 0.05
COUNT_FLOOR = 0.005
TIMED_UNITS = frozenset({"s", "CPU s", "tok/s", "tok/CPU s", "FLOP/s", "B/s", "B"})
IGNORED_QUANTITIES = frozenset({"wall_seconds"})  # depends mostly on other load of the machine


@dataclass(frozen=True)
class Change:
    """How one quantity of lora-sft changed between two records.

    Attributes:
        worse: The relative change. A positive number means that the quantity got worse.
        margin: The smallest relative change that counts.
        relative_to: The peer or limit whose change was divided out, or "".
    """

    measure: str
    subject: str
    contestant: str
    quantity: str
    worse: float
    margin: float
    relative_to: str

    @property
    def verdict(self) -> str:
        if self.worse > self.margin:
            return "WORSE"
        return "better" if self.worse < -self.margin else "same"

    def __str__(self) -> str:
        relative = f", relative to {self.relative_to}" if self.relative_to else ""
        return (
            f"{self.verdict}: {self.measure}: {self.subject}: {self.contestant}: {self.quantity} "
            f"{self.worse:+.1%} worse (margin {self.margin:.1%}{relative})"
        )


def compare_folders(old: Path, new: Path) -> Iterator[Change]:
    """Yield the change of each lora-sft quantity that both folders of results have."""
    for path in sorted(new.rglob("*.json")):
        before = old / path.relative_to(new)
        if before.exists():
            yield from compare_records(Record.read(before), Record.read(path))


def compare_records(old: Record, new: Record) -> Iterator[Change]:
    """Yield the change of each lora-sft quantity that both records measured."""
    for key, case in new.cases.items():
        before = old.cases.get(key)
        if case.role != "ours" or before is None:
            continue
        if before.status != "measured" or case.status != "measured":
            continue
        comparison = _find_comparison(old, new, case)
        for name, after in case.measurements.items():
            if name in before.measurements and name not in IGNORED_QUANTITIES:
                yield _compare(
                    new.measure, case, name, before.measurements[name], after, comparison
                )


def _find_comparison(old: Record, new: Record, ours: Case) -> tuple[Case, Case] | None:
    """Return a peer or limit of the same subject, from both records.

    Its change shows how much faster or slower the machine was.
    """
    for key, case in new.cases.items():
        if case.subject != ours.subject or case.role not in ("peer", "limit"):
            continue
        before = old.cases.get(key)
        if before is not None and before.status == case.status == "measured":
            return before, case
    return None


def _compare(
    measure: str,
    case: Case,
    name: str,
    before: Measurement,
    after: Measurement,
    comparison: tuple[Case, Case] | None,
) -> Change:
    change = after.median / before.median if before.median else 1.0
    margin = before.spread + after.spread
    timed = after.unit in TIMED_UNITS
    relative_to = ""
    if timed and comparison is not None and all(name in each.measurements for each in comparison):
        earlier, later = (each.measurements[name] for each in comparison)
        if earlier.median and later.median:
            change /= later.median / earlier.median
            margin += earlier.spread + later.spread
            relative_to = comparison[1].contestant
    worse = change - 1 if after.better == "lower" else 1 - change
    margin = max(margin, TIME_FLOOR if timed else COUNT_FLOOR)
    return Change(measure, case.subject, case.contestant, name, worse, margin, relative_to)


def _extract_results(revision: str, folder: Path) -> Path:
    """Extract the results of a git revision into `folder` and return their path."""
    inside = RESULTS.relative_to(ROOT).as_posix()
    archived = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, inside], capture_output=True
    )
    if archived.returncode:
        raise SystemExit(
            f"{revision} is neither a folder nor a git revision with {inside}: "
            f"{archived.stderr.decode().strip()}"
        )
    with tarfile.open(fileobj=BytesIO(archived.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / inside


def main() -> int:
    """Compare the results and print the changes. Return 1 if a quantity got worse, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="the old results: a folder, or a git revision")
    parser.add_argument(
        "new",
        type=Path,
        nargs="?",
        default=RESULTS,
        help="the folder with the new results (default: benchmarks/results)",
    )
    parser.add_argument("--all", action="store_true", help="also print unchanged quantities")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old = Path(given.old)
        if not old.is_dir():
            old = _extract_results(given.old, Path(folder))
        changes = list(compare_folders(old, given.new))
    for change in changes:
        if given.all or change.verdict != "same":
            print(change)
    worse = sum(change.verdict == "WORSE" for change in changes)
    print(f"{len(changes)} quantities compared, {worse} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    raise SystemExit(main())
