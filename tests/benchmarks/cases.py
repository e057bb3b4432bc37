"""Make small records and cases for the tests of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.record import Case, Environment, Measurement, Record, Role


def make_case(
    contestant: str, role: Role, seconds: tuple[float, ...], subject: str = "a thing"
) -> Case:
    return Case(subject, contestant, role, {"cpu_seconds": Measurement("CPU s", seconds)})


def make_environment(**fields: Any) -> Environment:
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 24, "gpu": None}
    given = {"commit": "abc", "source": "s", "date": "2026-01-01", "machine": machine, **fields}
    return Environment(**{"versions": {"torch": "2"}, **given})


def make_record(folder: Path, *cases: Case, measure: str = "start_up") -> Record:
    record = Record(folder / "cpu-2-cores" / f"{measure}.json", measure)
    for case in cases:
        record.put(case, make_environment())
    return record
