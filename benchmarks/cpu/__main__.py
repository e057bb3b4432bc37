"""Run the CPU benchmarks and file them: `python -m benchmarks.cpu [MEASURE ...]`.

Each measure runs its contestants in turn, in processes of their own, so that a busy machine is
unfair to all alike; what is recorded is CPU time first, because wall time depends on who else is
there. One JSON a measure, written under `benchmarks/results/` unless `--out` says otherwise.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import ModuleType

from benchmarks.cpu import (
    data_preparation,
    data_scale,
    data_stages,
    merge,
    merge_large,
    packing,
    start_up,
    step_overhead,
    step_traffic,
)
from benchmarks.record import RESULTS, Record, name_device, read_environment

MEASURES = {
    each.MEASURE: each
    for each in (
        start_up,
        data_preparation,
        data_stages,
        packing,
        merge,
        step_overhead,
        step_traffic,
    )
}
ON_REQUEST = {each.MEASURE: each for each in (data_scale, merge_large)}  # ten minutes and more


def main() -> int:
    """Run the measures that are named, or all that `make bench` runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measures", nargs="*", help=", ".join([*MEASURES, *ON_REQUEST]))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--toy", action="store_true", help="tiny inputs, to try the harness")
    given = parser.parse_args()
    known = {**MEASURES, **ON_REQUEST}
    unknown = sorted(set(given.measures) - set(known))
    if unknown:
        parser.error(f"no measure {', '.join(unknown)}; there are {', '.join(known)}")
    failed = 0
    for name in given.measures or MEASURES:
        failed += run_measure(name, known[name], given.out, given.toy)
    return 1 if failed else 0


def run_measure(name: str, measure: ModuleType, out: Path, toy: bool) -> int:
    """Measure, file under the device's name, print; the number of cases that failed."""
    environment = read_environment()
    device = name_device(environment.machine)
    record = Record(out / device / f"{name}.json", name)
    started = time.monotonic()
    for case in measure.measure(toy):
        record.put(case, environment)
        numbers = ", ".join(f"{key} {each.median:.4g}" for key, each in case.measurements.items())
        told = case.reason or numbers
        print(f"{name}: {case.subject}: {case.contestant}: {case.status} {told}", flush=True)
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return sum(case.status == "failed" for case in record.cases.values())


if __name__ == "__main__":
    raise SystemExit(main())
