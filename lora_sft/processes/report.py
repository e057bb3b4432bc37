"""Leave the exit code and reason of a start where any launcher's user finds them: `status.json`.

Alone, a process writes its own. Among several, the first one to fail does: the others then fail
too, for want of it, and their reasons would hide the cause.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from lora_sft.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, LoraSftError, RecipeError
from lora_sft.file_names import CHECKPOINT_PREFIX, MANIFEST_FILE
from lora_sft.log import say
from lora_sft.processes.held_signals import signals_held
from lora_sft.processes.meeting import leave_after_main
from lora_sft.processes.stop_signal import Stopped, StopRequest
from lora_sft.processes.this_process import Processes
from lora_sft.processes.watch import FOLDER, STALL_SHARE, Watch
from lora_sft.run_directory import RunDirectory

SHARED_SECONDS = 10.0  # NFS keeps what it knows of a folder for a few seconds


class Report:
    """How this start ended, or will."""

    def __init__(self, run: RunDirectory, processes: Processes) -> None:
        self.run = run
        self.processes = processes
        self.watch: Watch | None = None

    def watch_over(self, collective_seconds: float) -> Watch | None:
        """Look at the other processes from here on; the process group is open.

        `collective_seconds`: how long a collective may take. Each start has a folder of its own,
        so that nothing that an earlier one left is taken for a sign of life.

        Raises: RecipeError where the processes do not see each other's files.
        """
        if not torch.distributed.is_initialized() or self.processes.world_size == 1:
            return None
        (name,) = broadcast_object_list([secrets.token_hex(8)])
        folder = self.run.path / FOLDER / name
        self._check_shared(folder)
        stall_seconds = STALL_SHARE * collective_seconds
        watch = Watch(folder, self.processes, stall_seconds, self._write)
        watch.start()
        self.watch = watch
        return watch

    def _check_shared(self, folder: Path) -> None:
        """Whether all processes see what the main one writes: checkpoints and signs of life."""
        token = folder / "shared"
        if self.processes.is_main:
            folder.mkdir(parents=True)
            token.touch()
        deadline = time.monotonic() + SHARED_SECONDS
        while not _is_listed(token) and time.monotonic() < deadline:
            time.sleep(0.1)
        seen = torch.tensor(int(_is_listed(token)), device=PartialState().device)
        torch.distributed.all_reduce(seen, op=torch.distributed.ReduceOp.MIN)
        if self.processes.is_main:
            token.unlink()
        if not seen.item():
            raise RecipeError(
                "output_dir is not shared by all machines",
                f"{self.run.path}  output_dir",
                "put it on a file system that all machines see",
            )

    def leave(self) -> None:
        """Wait for the main process's end, then stop watching the others."""
        leave_after_main(self.watch)
        self.stop_watching()

    def stop_watching(self) -> None:
        """Every process came to the end of the work they share."""
        if self.watch is not None:
            with signals_held():
                self.watch.stop()
            self.watch = None

    def fail(self, error: BaseException) -> BaseException:
        """Write down why the start failed; the error to show, which names the cause."""
        shown = self.watch.explain(error) if self.watch is not None else error
        code, reason = _describe(shown)
        if self.watch is not None:
            self.watch.end(code, reason)
            self.stop_watching()
        elif self.processes.is_main:
            self._write(code, reason)
        return shown

    def _write(self, exit_code: int, reason: str) -> None:
        """Raises nothing: the process leaves after it, and another word may be on its way."""
        try:
            self._try_to_write(exit_code, reason)
        except OSError:
            try:
                self._remove_unfinished()
                self._try_to_write(exit_code, reason)
            except OSError as error:
                say(f"{self.run.status} cannot be written: {error.strerror}")

    def _try_to_write(self, exit_code: int, reason: str) -> None:
        if self.run.is_finished:
            return  # its end stands until this start has cleared it: so far nothing was changed
        checkpoints = [
            each for each in self.run.list_checkpoints() if (each / MANIFEST_FILE).exists()
        ]
        step = int(checkpoints[-1].name.removeprefix(CHECKPOINT_PREFIX)) if checkpoints else 0
        self.run.write_status(exit_code, reason, step, state_saved=False)

    def _remove_unfinished(self) -> None:
        """Make room on a full disk: what was never sealed is of no use to anyone."""
        for folder in (*self.run.list_checkpoints(), self.run.checkpoints / "_probe"):
            if folder.exists() and not (folder / MANIFEST_FILE).exists():
                say(f"removed {folder}: it was not finished")
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def status_written(
    run: RunDirectory, processes: Processes, request: StopRequest
) -> Iterator[Report]:
    """Inside, whatever goes wrong is written down, and raised as what it was.

    A launcher sends SIGTERM to the rest as soon as one process fails; it is passed over then.
    """
    report = Report(run, processes)
    try:
        yield report
    except BaseException as error:
        request.finish()
        shown = report.fail(error)
        if shown is error:
            raise
        raise shown from error


def _is_listed(file: Path) -> bool:
    """Listing a folder asks an NFS server anew where looking for a name may not."""
    return file.parent.is_dir() and file.name in {each.name for each in file.parent.iterdir()}


def _describe(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LoraSftError):
        return error.exit_code, error.what
    if isinstance(error, Stopped):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted"
    return EXIT_UNEXPECTED, f"{type(error).__name__}: {error}"
