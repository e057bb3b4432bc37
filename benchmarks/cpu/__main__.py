"""Run the CPU benchmarks and write their records: `python -m benchmarks.cpu [MEASURE ...]`.

The contestants of a measure take turns, so that a busy machine slows all of them. CPU time is the
main quantity, because wall time depends on the machine's other load. Each measure has one JSON file
in a folder of `benchmarks/results/`, or of the folder given with `--out`.
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
    template_budget,
)
from benchmarks.record import RESULTS, Record, name_device, read_environment

MEASURES = {
    each.MEASURE: each
    for each in (
        start_up,
        data_preparation,
        data_stages,
        template_budget,
        packing,
        merge,
        step_overhead,
        step_traffic,
    )
}
# These take ten minutes or more. They run only if they are named on the command line.
ON_REQUEST = {each.MEASURE: each for each in (data_scale, merge_large)}


def main() -> int:
    """Run the measures named on the command line, or else those of `make bench`.

    Returns: 1 if a case failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "measures",
        nargs="*",
        help=f"measures to run: {', '.join(MEASURES)} (all of these by default); "
        f"{', '.join(ON_REQUEST)} (ten minutes or more)",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for the records (%(default)s)"
    )
    parser.add_argument("--toy", action="store_true", help="use tiny inputs, to test the harness")
    given = parser.parse_args()
    known = {**MEASURES, **ON_REQUEST}
    unknown = sorted(set(given.measures) - set(known))
    if unknown:
        parser.error(f"unknown measure {', '.join(unknown)}; the measures are {', '.join(known)}")
    failed = 0
    for name in given.measures or MEASURES:
        failed += run_measure(name, known[name], given.out, given.toy)
    return 1 if failed else 0


def run_measure(name: str, measure: ModuleType, out: Path, toy: bool) -> int:
    """Run one measure, write its record and print its cases. Return how many cases failed."""
    environment = read_environment()
    device = name_device(environment.machine)
    record = Record(out / device / f"{name}.json", name)
    started = time.monotonic()
    for case in measure.measure(toy):
        record.put(case, environment)
        numbers = ", ".join(f"{key} {each.median:.4g}" for key, each in case.measurements.items())
        result = case.reason or numbers
        print(f"{name}: {case.subject}: {case.contestant}: {case.status} {result}", flush=True)
    print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return sum(case.status == "failed" for case in record.cases.values())


if __name__ == "__main__":
    raise SystemExit(main())
