"""Run a command in a new process and read its time and memory from the kernel."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import ROOT

# For every measured process: no downloads, no usage reports, no progress bars.
OFFLINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}

POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Usage:
    """The cost and the output of a finished process.

    Attributes:
        exit_code: The exit code, or 124 if the process was killed at its time limit.
        cpu_seconds: User and system time, children included.
        peak_rss_bytes: The peak resident memory of the process itself.
    """

    exit_code: int
    cpu_seconds: float
    wall_seconds: float
    peak_rss_bytes: int
    stdout: str
    stderr: str

    @property
    def last_lines(self) -> str:
        """The last three lines of the process's output, to say why it failed."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return " | ".join(line.strip() for line in lines[-3:])[-600:]


def run_measured(
    command: Sequence[object],
    *,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 600,
    folder: Path = ROOT,
) -> Usage:
    """Run a command and return its cost. At the time limit kill it and its children (code 124).

    CPU seconds are the user and system time of the process and of all children that it waited for
    (`wait4`). The peak is read from /proc while the process runs. The peak of getrusage(2) is not
    used: it starts at the peak of the parent process.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, **OFFLINE_ENVIRONMENT, **(environment or {})},
            start_new_session=True,
        )
        code, usage, peak = _wait(process, started + timeout_seconds)
        wall = time.perf_counter() - started
        out.seek(0)
        err.seek(0)
        return Usage(
            exit_code=code,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            wall_seconds=wall,
            peak_rss_bytes=peak,
            stdout=out.read(),
            stderr=err.read(),
        )


def _wait(
    process: subprocess.Popen[bytes], deadline: float
) -> tuple[int, resource.struct_rusage, int]:
    killed, peak = False, 0
    while True:
        peak = max(peak, _read_peak_rss_bytes(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return (124 if killed else process.returncode), usage, peak
        if time.perf_counter() > deadline and not killed:
            os.killpg(process.pid, signal.SIGKILL)
            killed = True
        time.sleep(POLL_SECONDS)


def _read_peak_rss_bytes(pid: int) -> int:
    """Return the peak resident memory of a process, or 0 if the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    marks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 if marks else 0
