"""A record: what was measured, on which machine, with which versions and which commit.

One JSON file a measure and device. Cases are added to it one by one, so that a run that is cut
short keeps what it has, and a later run goes on with what is missing. Every sample is kept;
medians and spreads are made when a record is read.
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

# What decides a number: a result is of the same source where these files are the same.
SOURCE_FOLDERS = ("lora_sft", "benchmarks")
# Written beside the wheels that travel to a host without git (see tools/gpu/pack.py).
PACKED_COMMIT = ROOT / ".gpu_pack" / "commit.json"

LIBRARIES = (
    "accelerate", "bitsandbytes", "datasets", "deepspeed", "liger-kernel", "peft", "tokenizers",
    "torch", "transformers", "triton", "trl", "unsloth",
)  # fmt: skip

Status = Literal["measured", "skipped", "failed", "void"]
# "reference": not a contestant; what a gate compares with
Role = Literal["ours", "peer", "limit", "reference"]


@dataclass(frozen=True)
class Measurement:
    """One number, measured once or several times."""

    unit: str
    samples: tuple[float, ...]
    better: Literal["lower", "higher"] = "lower"

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the range of the samples, as a share of the median (0 for a single sample)."""
        if len(self.samples) < 2 or not self.median:
            return 0.0
        return (max(self.samples) - min(self.samples)) / 2 / abs(self.median)

    def joined(self, other: Measurement) -> Measurement:
        """The samples of both."""
        return replace(self, samples=(*self.samples, *other.samples))


@dataclass(frozen=True)
class Case:
    """One contestant doing one thing.

    `subject` is the thing (a command, a model with a data set), `contestant` who did it, `role`
    what that is to us. `reason` says why there is no number (skipped, failed) or why the numbers
    do not count (void: a validity gate refused them). `facts` is whatever else explains them.
    """

    subject: str
    contestant: str
    role: Role
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    status: Status = "measured"
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""  # key into the record's environments; set when added

    @property
    def key(self) -> tuple[str, str]:
        return (self.subject, self.contestant)

    @property
    def num_samples(self) -> int:
        return max((len(each.samples) for each in self.measurements.values()), default=0)

    def joined(self, other: Case) -> Case:
        """This case with the samples of a repetition of it; the newest facts stay."""
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
    """Where and with what a case was measured. Two equal keys: numbers that may be compared."""

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
    """The cases of one measure on one device, kept on disk after every change."""

    def __init__(self, path: Path, measure: str) -> None:
        self.path = path
        self.measure = measure
        self.environments: dict[str, Environment] = {}
        self.cases: dict[tuple[str, str], Case] = {}

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record that was written before.

        Raises: OSError, ValueError or KeyError where there is none that can be read.
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
        """Add a case, or a repetition of one; one from another environment is replaced."""
        case = replace(case, environment=environment.key)
        before = self.cases.get(case.key)
        if before is not None and before.environment == case.environment:
            case = before.joined(case)
        self.put(case, environment)
        return case

    def put(self, case: Case, environment: Environment) -> None:
        """Set a case, whatever was there."""
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
    """The record of a measure on a device in `folder`, going on from the one in `start_from`."""
    path = folder / device / f"{measure}.json"
    for known in (path, start_from / device / f"{measure}.json"):
        if known.exists():
            record = Record.read(known)
            record.path = path
            return record
    return Record(path, measure)


def read_environment() -> Environment:
    """This machine, these libraries and this source, now."""
    source = hash_source()
    return Environment(
        commit=find_commit(source),
        source=source,
        date=datetime.now(UTC).date().isoformat(),
        machine=read_machine(),
        versions=read_library_versions(),
    )


def hash_source(root: Path = ROOT) -> str:
    """SHA-256 over the Python files that decide a number, with their names."""
    digest = hashlib.sha256()
    for folder in SOURCE_FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_commit(source: str) -> str:
    """The commit of this source; `+` behind it where the files differ from the commit's."""
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
    """Processor, memory, system, and the GPU with its driver where there is one."""
    machine: dict[str, Any] = {
        "cpu": _read_cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": None,
    }
    gpu = _ask_nvidia_smi("name,driver_version,memory.total")
    if gpu:
        name, driver, memory = (part.strip() for part in gpu.split(","))
        machine |= {"gpu": name, "driver": driver, "gpu_memory": memory}
    return machine


def name_device(machine: Mapping[str, Any]) -> str:
    """A folder name for results that may be compared: the GPU, else the CPU's cores."""
    name = machine["gpu"] or f"cpu {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")


def read_library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on, read without importing any of it."""
    versions = {"python": sys.version.split()[0]}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _ask_nvidia_smi(fields: str) -> str:
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


if __name__ == "__main__":  # asked by tools/gpu/run.py for each set of libraries
    print(json.dumps(asdict(read_environment())))
