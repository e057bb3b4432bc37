"""Run a command in a process of its own and read what it cost, as the kernel counted it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import ROOT

# Nothing that is measured may ask a network or tell one anything.
QUIET_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}


@dataclass(frozen=True)
class Usage:
    """What a finished process cost, its children included."""

    exit_code: int
    cpu_seconds: float
    wall_seconds: float
    peak_rss_bytes: int
    stdout: str
    stderr: str

    @property
    def last_words(self) -> str:
        """The end of what it wrote, for a reason."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return " | ".join(line.strip() for line in lines[-3:])[-600:]


def run_measured(
    command: Sequence[object],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 600,
    folder: Path = ROOT,
) -> Usage:
    """Run a command to its end, or kill it (with all it started) at the time limit: code 124.

    CPU seconds are user + system of the process and every child it waited for; the peak is the
    largest resident set of any one of them (`wait4`, getrusage(2)).
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, **QUIET_ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )
        code, usage = _wait(process, started + timeout_seconds)
        wall = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        return Usage(
            exit_code=code,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            wall_seconds=wall,
            peak_rss_bytes=usage.ru_maxrss * 1024,
            stdout=out.read(),
            stderr=err.read(),
        )


def _wait(process: subprocess.Popen[bytes], deadline: float):  # type: ignore[no-untyped-def]
    killed = False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return (124 if killed else process.returncode), usage
        if time.perf_counter() > deadline and not killed:
            os.killpg(process.pid, 9)
            killed = True
        time.sleep(0.002)
