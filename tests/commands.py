"""Run the command line in this process (fast), in a new process, or with torchrun."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_SECONDS = 300
# The fields of `metrics.jsonl` that depend on the clock; equal runs have equal other fields.
CLOCK_FIELDS = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_tokens_per_second",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
)


@dataclass(frozen=True)
class Outcome:
    """The exit code of a command and its output."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The JSON document on stdout. Fails if stdout holds anything else."""
        return json.loads(self.stdout)


def run_command(capfd: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    from lora_sft.cli.app import run

    capfd.readouterr()
    code = run([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


def run_process(
    *command: object, timeout_seconds: float = TIMEOUT_SECONDS, **environment: str
) -> Outcome:
    """Run a command in a new process, with one OpenMP thread."""
    finished = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def run_lora_sft(*arguments: object, **environment: str) -> Outcome:
    return run_process(sys.executable, "-m", "lora_sft", *arguments, **environment)


def run_torchrun(processes: int, *arguments: object) -> Outcome:
    """Run `torchrun -m lora_sft ...` on this machine with this number of processes."""
    return run_process(
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        f"--master_port={find_free_port()}",
        "-m",
        "lora_sft",
        *arguments,
    )


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def read_metrics(run: Path, key: str) -> dict[int, float]:
    """Return the value of one metric per step, from the run's `metrics.jsonl`."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record[key] for record in records if key in record}


def read_timeless_metrics(run: Path) -> list[str]:
    """Return the lines of the run's `metrics.jsonl` without the fields that depend on the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        json.dumps({name: value for name, value in record.items() if name not in CLOCK_FIELDS})
        for record in records
    ]
