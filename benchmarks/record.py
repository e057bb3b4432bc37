"""Keep the results of one measure on one device, with the machine, the versions and the commit.

A record is one JSON file per measure and device. It is written after every case, so an interrupted
run loses nothing, and a later run continues with the missing cases. A record holds every sample.
Medians and spreads are computed when it is read.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# The folders whose code affects the numbers. Two results have the same source if these files are
# equal.
SOURCE_FOLDERS = ("lora_sft", "benchmarks")
# The commit, for a host without git. tools/gpu/pack.py writes it beside the packed wheels.
PACKED_COMMIT = ROOT / ".gpu_pack" / "commit.json"

LIBRARIES = (
    "accelerate", "bitsandbytes", "datasets", "deepspeed", "liger-kernel", "peft", "tokenizers",
    "torch", "transformers", "triton", "trl", "unsloth",
)  # fmt: skip

Status = Literal["measured", "skipped", "failed", "void"]
# A "peer" is another library. A "limit" is the best that is possible. A "reference" is not a
# contestant: a gate compares contestants with it.
Role = Literal["ours", "peer", "limit", "reference"]


@dataclass(frozen=True)
class Measurement:
    """The samples of one quantity."""

    unit: str
    samples: tuple[float, ...]
    better: Literal["lower", "higher"] = "lower"

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the range of the samples divided by the median, or 0 for a single sample."""
        if len(self.samples) < 2 or not self.median:
            return 0.0
        return (max(self.samples) - min(self.samples)) / 2 / abs(self.median)

    def joined(self, other: Measurement) -> Measurement:
        """Return a measurement with the samples of both."""
        return replace(self, samples=(*self.samples, *other.samples))


@dataclass(frozen=True)
class Case:
    """The result of one contestant for one subject.

    Attributes:
        subject: The work that was measured: a command, or a model with a data set.
        status: "measured", "skipped", "failed", or "void" if a gate refused the numbers.
        reason: Why the case has no numbers, or why they do not count.
        facts: Other information that explains the numbers.
        environment: The key of the case's environment in the record. The record sets it.
    """

    subject: str
    contestant: str
    role: Role
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    status: Status = "measured"
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return (self.subject, self.contestant)

    @property
    def num_samples(self) -> int:
        return max((len(each.samples) for each in self.measurements.values()), default=0)

    def joined(self, other: Case) -> Case:
        """Return this case with the samples of a later repetition, and the repetition's facts.

        If only one of the two was measured, return that one.
        """
        if "measured" not in (self.status, other.status):
            return other
        if other.status != "measured":
            return self
        if self.status != "measured":
            return other
        both = {
            name: self.measurements[name].joined(each) if name in self.measurements else each
            for name, each in other.measurements.items()
        }
        return replace(other, measurements=both)


@dataclass(frozen=True)
class Environment:
    """The machine, the library versions and the source code with which a case was measured.

    Numbers may be mixed only if the keys of their environments are equal.
    """

    commit: str
    source: str
    date: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def key(self) -> str:
        decides = json.dumps([self.source, self.machine, self.versions], sort_keys=True)
        return hashlib.sha256(decides.encode()).hexdigest()[:12]


class Record:
    """The cases of one measure on one device. Every change is written to disk."""

    def __init__(self, path: Path, measure: str) -> None:
        self.path = path
        self.measure = measure
        self.environments: dict[str, Environment] = {}
        self.cases: dict[tuple[str, str], Case] = {}

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record from disk.

        Raises: OSError, ValueError or KeyError if the file is missing or is not a record.
        """
        document = json.loads(path.read_text())
        record = cls(path, document["measure"])
        record.environments = {
            key: Environment(**fields) for key, fields in document["environments"].items()
        }
        for fields in document["cases"]:
            measurements = {
                name: Measurement(each["unit"], tuple(each["samples"]), each["better"])
                for name, each in fields.pop("measurements").items()
            }
            case = Case(**fields, measurements=measurements)
            record.cases[case.key] = case
        return record

    def add(self, case: Case, environment: Environment) -> Case:
        """Add a case and return it, with the samples of an earlier repetition.

        An earlier case from another environment is replaced.
        """
        case = replace(case, environment=environment.key)
        before = self.cases.get(case.key)
        if before is not None and before.environment == case.environment:
            case = before.joined(case)
        self.put(case, environment)
        return case

    def put(self, case: Case, environment: Environment) -> None:
        """Add a case. An earlier case with the same key is replaced."""
        self.cases[case.key] = replace(case, environment=environment.key)
        self.environments[environment.key] = environment
        self._write()

    def _write(self) -> None:
        used = {case.environment for case in self.cases.values()}
        self.environments = {k: each for k, each in self.environments.items() if k in used}
        document = {
            "measure": self.measure,
            "environments": {k: asdict(each) for k, each in sorted(self.environments.items())},
            "cases": [asdict(case) for case in self.cases.values()],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(document, indent=1, default=str) + "\n")
        unfinished.replace(self.path)


def open_record(folder: Path, measure: str, device: str, *, start_from: Path = RESULTS) -> Record:
    """Open the record of a measure on a device in `folder`.

    If `folder` has no such record, start with the cases of the record in `start_from`.
    """
    path = folder / device / f"{measure}.json"
    for known in (path, start_from / device / f"{measure}.json"):
        if known.exists():
            record = Record.read(known)
            record.path = path
            return record
    return Record(path, measure)


def read_environment() -> Environment:
    """Return the current environment: machine, library versions, source code, commit and date."""
    source = hash_source()
    return Environment(
        commit=find_commit(source),
        source=source,
        date=datetime.now(UTC).date().isoformat(),
        machine=read_machine(),
        versions=read_library_versions(),
    )


def hash_source(root: Path = ROOT) -> str:
    """Return a SHA-256 over the names and contents of the Python files in `SOURCE_FOLDERS`."""
    digest = hashlib.sha256()
    for folder in SOURCE_FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_commit(source: str) -> str:
    """Return the commit of this source. A "+" is added if the files differ from that commit.

    Args:
        source: The hash of the source, as `hash_source` returns it.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if head.returncode == 0:
            dirty = subprocess.run(
                [*git, "status", "--porcelain", "--", *SOURCE_FOLDERS, ":!benchmarks/results"],
                capture_output=True,
                text=True,
            )
            return head.stdout.strip()[:12] + ("+" if dirty.stdout.strip() else "")
    except OSError:  # no git on this host
        pass
    if PACKED_COMMIT.exists():
        packed = json.loads(PACKED_COMMIT.read_text())
        return str(packed["commit"]) + ("" if packed["source"] == source else "+")
    return "unknown"


def read_machine() -> dict[str, Any]:
    """Return the processor, the memory, the system, and the GPU with its driver (or None)."""
    machine: dict[str, Any] = {
        "cpu": _read_cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": None,
    }
    gpu = _query_nvidia_smi("name,driver_version,memory.total")
    if gpu:
        name, driver, memory = (part.strip() for part in gpu.split(","))
        machine |= {"gpu": name, "driver": driver, "gpu_memory": memory}
    return machine


def name_device(machine: Mapping[str, Any]) -> str:
    """Return the folder name for a machine's results: the GPU's name, else the number of cores."""
    name = machine["gpu"] or f"cpu {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")


def read_library_versions() -> dict[str, str]:
    """Return the versions of Python and of `LIBRARIES`, without importing the libraries."""
    versions = {"python": sys.version.split()[0]}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _query_nvidia_smi(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 else ""


def _read_cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


if __name__ == "__main__":  # tools/gpu/run.py runs this with each set of libraries
    print(json.dumps(asdict(read_environment())))
