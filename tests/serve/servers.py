"""Run `lora-sft serve` in a new process, with an empty home folder and without a network."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 120


@contextmanager
def serving(
    folder: Path, home: Path, *options: str, limits: Mapping[str, float] | None = None, **more: str
) -> Iterator[str]:
    """Run `lora-sft serve` on a free port and yield its address. It must end cleanly on SIGINT.

    Args:
        folder: The model to serve.
        home: The home folder of the server. It must stay empty. The log is beside it.
        options: Options of the command.
        limits: Constants to change before the server starts, such as `listening.STOP_SECONDS`.
        more: Environment variables.
    """
    server, log = start_server(folder, home, *options, limits=limits, **more)
    try:
        yield wait_for_address(server, log)
    finally:
        server.send_signal(signal.SIGINT)
        code = server.wait(timeout=30)
    assert code == 130, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert not [path for path in home.rglob("*") if path.is_file()], "it wrote to the home folder"


def start_server(
    folder: Path, home: Path, *options: str, limits: Mapping[str, float] | None = None, **more: str
) -> tuple[subprocess.Popen[bytes], Path]:
    """Return the process and its log. Arguments as in `serving`."""
    home.mkdir(exist_ok=True)
    settings = {"HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    changes = [f"lora_sft.serve.{name} = {value}" for name, value in (limits or {}).items()]
    modules = [f"import lora_sft.serve.{name.partition('.')[0]}" for name in limits or {}]
    program = [*modules, *changes, "from lora_sft.cli.app import main", "main()"]
    command = ["-c", "\n".join(program), "serve", str(folder), "--port", "0", *options]
    log = home.parent / f"{home.name}.log"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, *command], env={**kept, **settings}, stderr=stderr, stdout=stderr
        )
    return server, log


def wait_for_address(server: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        found = re.search(r"serving \S+ on (http://\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {log.read_text()}")
