"""Kill a process at any system call of a save, with strace.

The forked process stops itself when the save begins. Then strace is attached to it, and the process
continues. strace first lists the system calls of one save; later it sends SIGKILL at one of them,
before the kernel executes it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.attacks.starts import POLL_SECONDS, Start

ATTACH_SECONDS = 20.0
# The system calls that change files. Calls of a name are counted, so `openat` includes reading.
NAMES = (
    "openat", "write", "pwrite64", "writev", "rename", "renameat", "renameat2", "unlink",
    "unlinkat", "mkdir", "rmdir", "ftruncate", "fsync", "fdatasync", "chmod", "fchmod",
)  # fmt: skip
END_MARK = "/nonexistent/end-of-the-save"
CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)")
PATH = re.compile(r'"[^"]*/(checkpoint-[^"]+)"')


class NotTraced(Exception):
    """strace could not be attached, or its output is not complete."""


@dataclass(frozen=True)
class SystemCall:
    """The `number`th call (from 1) of `name` since the beginning of the save."""

    name: str
    number: int
    text: str


def is_available(folder: Path) -> bool:
    """Return whether strace is installed and may trace a process of this user."""
    if shutil.which("strace") is None:
        return False
    tried = ["strace", "-o", str(folder / "strace-tried"), "true"]
    return subprocess.run(tried, capture_output=True).returncode == 0


def stop_at_save(step: int) -> None:
    """Make this process stop itself when it begins to save a step. A mark follows the save."""
    from lora_sft.train.trl.trainer import LoraTrainer

    save = LoraTrainer._save_checkpoint

    def stop_and_save(self: LoraTrainer, *arguments: Any) -> None:
        if self.state.global_step != step:
            return save(self, *arguments)
        os.kill(os.getpid(), signal.SIGSTOP)
        save(self, *arguments)
        return Path(END_MARK).unlink(missing_ok=True)

    LoraTrainer._save_checkpoint = stop_and_save


def trace(started: Start, trace_file: Path, *options: str) -> None:
    """Attach strace to a start that stops itself, and let the start continue.

    Raises: NotTraced if strace cannot be attached.
    """
    started.wait(lambda: _read_status(started.pid, "State").startswith("T"))
    if started.exit_code is not None:
        raise NotTraced(f"the start ended before the save: {started.read_log()[-500:]}")
    command = ["strace", "-qq", "-p", str(started.pid), "-o", str(trace_file), *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + ATTACH_SECONDS
    while _read_status(started.pid, "TracerPid") == "0":
        if tracer.poll() is not None or time.monotonic() > deadline:
            tracer.kill()
            started.kill()
            raise NotTraced(f"strace cannot trace the start: {tracer.communicate()[1]}")
        time.sleep(POLL_SECONDS)
    os.kill(started.pid, signal.SIGCONT)
    started.wait()
    tracer.communicate()


def inject(call: SystemCall) -> Sequence[str]:
    """Return strace's options that send SIGKILL at one call."""
    injected = f"inject={call.name}:signal=SIGKILL:when={call.number}"
    return ("-e", f"trace={call.name}", "-e", injected)


def list_calls(trace_file: Path) -> list[SystemCall]:
    """Return the calls of one save that change a file, in their order."""
    counted: Counter[str] = Counter()
    calls = []
    for line in trace_file.read_text(encoding="utf-8", errors="replace").splitlines():
        if END_MARK in line:
            return calls
        found = CALL.match(line)
        if found is None:
            continue
        name, rest = found.groups()
        counted[name] += 1
        if name != "openat" or re.search("O_WRONLY|O_RDWR", rest):
            path = PATH.search(rest)
            calls.append(SystemCall(name, counted[name], path[1] if path else ""))
    raise NotTraced(f"{trace_file} does not hold the end of the save")


def _read_status(pid: int, field: str) -> str:
    """Return a field of `/proc/PID/status`; empty if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith(field + ":")), ""
    )
