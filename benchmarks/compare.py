"""Compare two records and flag what got worse beyond the spread.

    python -m benchmarks.compare HEAD                  # committed results, then the ones on disk
    python -m benchmarks.compare OLD NEW               # two folders of results

A change of ours is judged relative to the change of a peer or limit of the same subject, where
there is one: a busy machine slows both. It counts when it is larger than the spreads of all the
numbers involved together, and than a floor. Exit 1 where something got worse.
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

# Medians of repeated timings on a shared machine move by this much of themselves with nothing
# changed; counts do not move at all.
TIME_FLOOR = 0.05
COUNT_FLOOR = 0.005
TIMED_UNITS = frozenset({"s", "CPU s", "tok/s", "tok/CPU s", "FLOP/s", "B/s", "B"})
NOT_JUDGED = frozenset({"wall_seconds"})  # says more of the machine's other guests than of us


@dataclass(frozen=True)
class Change:
    """One quantity of ours in both records; `worse` > 0 means that it got worse by that share."""

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
        beside = f", beside {self.relative_to}" if self.relative_to else ""
        return (
            f"{self.verdict}: {self.measure}: {self.subject}: {self.contestant}: {self.quantity} "
            f"{self.worse:+.1%} worse (margin {self.margin:.1%}{beside})"
        )


def compare_folders(old: Path, new: Path) -> Iterator[Change]:
    """Every quantity of ours that both folders of results have."""
    for path in sorted(new.rglob("*.json")):
        before = old / path.relative_to(new)
        if before.exists():
            yield from compare_records(Record.read(before), Record.read(path))


def compare_records(old: Record, new: Record) -> Iterator[Change]:
    """Every quantity of ours that both records have measured."""
    for key, case in new.cases.items():
        before = old.cases.get(key)
        if case.role != "ours" or before is None:
            continue
        if before.status != "measured" or case.status != "measured":
            continue
        witness = _find_witness(old, new, case)
        for name, after in case.measurements.items():
            if name in before.measurements and name not in NOT_JUDGED:
                yield _compare(new.measure, case, name, before.measurements[name], after, witness)


def _find_witness(old: Record, new: Record, ours: Case) -> tuple[Case, Case] | None:
    """A peer or limit of the same subject in both records: what the machine did to it."""
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
    witness: tuple[Case, Case] | None,
) -> Change:
    change = after.median / before.median if before.median else 1.0
    margin = before.spread + after.spread
    timed = after.unit in TIMED_UNITS
    relative_to = ""
    if timed and witness is not None and all(name in each.measurements for each in witness):
        earlier, later = (each.measurements[name] for each in witness)
        if earlier.median and later.median:
            change /= later.median / earlier.median
            margin += earlier.spread + later.spread
            relative_to = witness[1].contestant
    worse = change - 1 if after.better == "lower" else 1 - change
    margin = max(margin, TIME_FLOOR if timed else COUNT_FLOOR)
    return Change(measure, case.subject, case.contestant, name, worse, margin, relative_to)


def _extract_results(revision: str, folder: Path) -> Path:
    """The committed results of a git revision."""
    inside = RESULTS.relative_to(ROOT).as_posix()
    archived = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, inside], capture_output=True
    )
    if archived.returncode:
        raise SystemExit(f"no results at {revision}: {archived.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(archived.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / inside


def main() -> int:
    """Compare and print; 1 where something got worse."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="a folder of results, or a git revision")
    parser.add_argument("new", type=Path, nargs="?", default=RESULTS, help="a folder of results")
    parser.add_argument("--all", action="store_true", help="show what stayed the same too")
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
