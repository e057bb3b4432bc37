"""Start `lora-sft train` again and again: fork a process that has already imported the libraries.

A fork runs the same `main` as the program and needs about one second; the program needs eight. With
two processes, the launcher is torchrun's own (`elastic_launch`), and its workers are forks too. A
command with `is_program` starts the real program instead, or `lora-sft launch`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 300.0  # no start may take longer, on a busy machine too
POLL_SECONDS = 0.02

Hook = Callable[[], None]  # called in a forked process before `main`


class Stuck(Exception):
    """A start did not end within `START_SECONDS`."""


@dataclass(frozen=True)
class Command:
    """The command line of a start.

    Attributes:
        recipe: The recipe file.
        output: The output directory.
        cache: The folder of prepared data.
        processes: The number of training processes: 1 or 2.
        is_program: Whether to start the program, and not a fork.
    """

    recipe: Path
    output: Path
    cache: Path
    processes: int = 1
    is_program: bool = False

    def make_arguments(self, *options: str) -> list[str]:
        """Return the arguments of `lora-sft`."""
        launched = self.is_program and self.processes > 1
        head = ["launch", str(self.recipe), "--gpus", str(self.processes)]
        command = head if launched else ["train", str(self.recipe)]
        return [*command, f"output_dir={self.output}", *options]


class Start:
    """A running or ended start, in a process group of its own."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.began = time.monotonic()
        self.exit_code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the start runs. A signal N gives -N."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.exit_code = os.waitstatus_to_exitcode(status) if pid else None
        return self.exit_code

    def wait(self, condition: Callable[[], bool] = lambda: False) -> int | None:
        """Wait until the start has ended or `condition` is true, and return the exit code.

        Raises: Stuck if neither happens in time.
        """
        while self.poll() is None and not condition():
            if time.monotonic() - self.began > START_SECONDS:
                self.kill()
                raise Stuck(f"the start did not end within {START_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        return self.exit_code

    def wait_seconds(self, seconds: float) -> None:
        """Wait until this many seconds after the beginning of the start, or until it has ended."""
        self.wait(lambda: time.monotonic() - self.began >= seconds)

    def kill(self) -> None:
        """Send SIGKILL to all processes of the start."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def find_rank(self, rank: int) -> int | None:
        """Return the process id of a rank under a launcher; None if it does not run yet."""
        noted = _name_pid_file(self.log, str(rank))
        if noted.exists():
            return int(noted.read_text() or 0) or None
        try:
            workers = psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:  # the launcher has just ended
            return None
        return next((each.pid for each in workers if _read_rank(each) == str(rank)), None)

    def read_log(self) -> str:
        """Return all output of the start."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def _name_pid_file(log: Path, rank: str) -> Path:
    return log.with_suffix(f".rank{rank}")


def _read_rank(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


def import_libraries() -> None:
    """Import everything that a start needs, so that the forks do not."""
    import torch.distributed.launcher.api  # noqa: F401

    import lora_sft.cli.app
    import lora_sft.pipeline  # noqa: F401


def start(command: Command, log: Path, *options: str, hook: Hook | None = None) -> Start:
    """Start a command; its output goes to the file `log`.

    Args:
        command: The command.
        log: The file for all output.
        options: More arguments for the command.
        hook: Called in each forked training process before it runs.
    """
    pid = os.fork()
    if pid:
        return Start(pid, log)
    exit_code = 1
    try:
        os.setsid()
        _redirect_output(log)
        os.environ["LORA_SFT_CACHE"] = str(command.cache)
        exit_code = _run(command, command.make_arguments(*options), log, hook)
    except BaseException:  # this fork must not run the code of its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _redirect_output(log: Path) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in (1, 2):
        os.dup2(target, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def _run(command: Command, arguments: list[str], log: Path, hook: Hook | None) -> int:
    if command.is_program:
        os.execv(sys.executable, [sys.executable, "-m", "lora_sft", *arguments])
    if command.processes > 1:
        return _run_workers(command.processes, arguments, log, hook)
    return _run_main(arguments, hook)


def _run_main(arguments: list[str], hook: Hook | None) -> int:
    from lora_sft.cli.app import main

    if hook is not None:
        hook()
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _run_workers(processes: int, arguments: list[str], log: Path, hook: Hook | None) -> int:
    """Run the command in forked workers of torchrun, and return torchrun's exit code."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        start_method="fork",
        max_restarts=0,
    )
    try:
        elastic_launch(config, _run_worker)(arguments, log, hook)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run_worker(arguments: list[str], log: Path, hook: Hook | None) -> None:
    _name_pid_file(log, os.environ["RANK"]).write_text(str(os.getpid()))
    exit_code = _run_main(arguments, hook)
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code:
        os._exit(exit_code)
