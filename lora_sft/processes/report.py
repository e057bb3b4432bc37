"""Write `status.json` if a run fails: the exit code and the reason, under every launcher.

In a run of several processes only the first process that fails writes it. The others then fail
too, because that process is missing, and their reasons would hide the cause.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from lora_sft.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, Fault, LoraSftError, RecipeError
from lora_sft.file_names import CHECKPOINT_PREFIX, MANIFEST_FILE
from lora_sft.log import say
from lora_sft.processes.held_signals import signals_held
from lora_sft.processes.meeting import leave_after_main
from lora_sft.processes.stop_signal import Stopped, StopRequest
from lora_sft.processes.this_process import Processes
from lora_sft.processes.watch import FOLDER, STALL_SHARE, Watch
from lora_sft.run_directory import RunDirectory
from lora_sft.written_files import remove_checkpoint

SHARED_SECONDS = 10.0  # longer than an NFS client caches the contents of a folder


class Report:
    """The watch over the other processes, and the record of why this start of the run failed."""

    def __init__(self, run: RunDirectory, processes: Processes) -> None:
        self.run = run
        self.processes = processes
        self.watch: Watch | None = None
        self._state_saved = False
        self._saved_step: int | None = None

    def start_watch(self, collective_seconds: float) -> Watch | None:
        """Start to watch the other processes; the process group must be open.

        Each start uses a new folder, because the heartbeats of an earlier start must not count.

        Args:
            collective_seconds: How long a collective may take.

        Returns: The watch, or None in a run of one process.

        Raises: RecipeError if the processes do not see each other's files.
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
        """Check that every process sees a file that rank 0 writes into the run directory.

        Otherwise the others would find neither its checkpoints nor its heartbeats.
        """
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
                "set output_dir to a folder on a file system that all machines share",
            )

    def note_saved(self, step: int) -> None:
        """Note that the work up to `step` is on disk, so that a later failure loses nothing."""
        self._state_saved, self._saved_step = True, step

    def leave(self) -> None:
        """Wait until rank 0 has finished its work, then stop the watch."""
        leave_after_main(self.watch)
        self.stop_watching()

    def stop_watching(self) -> None:
        """Stop the watch: from here on this process does not need the others."""
        if self.watch is not None:
            with signals_held():
                self.watch.stop()
            self.watch = None

    def fail(self, error: BaseException) -> BaseException:
        """Write why the start failed, and return the error to show, which names the cause."""
        shown = self.watch.explain(error) if self.watch is not None else error
        code, reason = _describe(shown)
        self._state_saved |= isinstance(shown, LoraSftError) and shown.state_saved
        if self.watch is not None:
            self.watch.end(code, reason)
            self.stop_watching()
        elif self.processes.is_main:
            self._write(code, reason)
        return shown

    def _write(self, exit_code: int, reason: str) -> None:
        """Write `status.json`; raise nothing, because the caller is already handling an error."""
        try:
            self._try_to_write(exit_code, reason)
        except OSError:
            try:
                self._remove_unfinished()
                self._try_to_write(exit_code, reason)
            except OSError as error:
                say(f"warning: cannot write {self.run.status}: {error.strerror}")

    def _try_to_write(self, exit_code: int, reason: str) -> None:
        if self.run.is_finished:
            return  # this start has changed nothing yet, so the run is still finished
        checkpoints = [
            each for each in self.run.list_checkpoints() if (each / MANIFEST_FILE).exists()
        ]
        step = int(checkpoints[-1].name.removeprefix(CHECKPOINT_PREFIX)) if checkpoints else 0
        if self._saved_step is not None:
            step = self._saved_step
        self.run.write_status(exit_code, reason, step, state_saved=self._state_saved)

    def _remove_unfinished(self) -> None:
        """Delete unfinished checkpoints to free space: they cannot be loaded."""
        for folder in (*self.run.list_checkpoints(), self.run.probe):
            if folder.exists() and not (folder / MANIFEST_FILE).exists():
                remove_checkpoint(folder)
                say(f"removed {folder}: this checkpoint was not finished")


@contextmanager
def status_written(
    run: RunDirectory, processes: Processes, request: StopRequest
) -> Iterator[Report]:
    """Write `status.json` if the block fails, and raise the error that names the cause.

    After the first error, signals are ignored: a launcher sends SIGTERM to the remaining processes
    as soon as one has failed.
    """
    report = Report(run, processes)
    try:
        yield report
    except BaseException as error:
        request.ignore_signals()
        shown = report.fail(error)
        if shown is error:
            raise
        raise shown from error


def _is_listed(file: Path) -> bool:
    """Return whether `file` exists; an NFS client could answer `exists()` from an old cache."""
    return file.parent.is_dir() and file.name in {each.name for each in file.parent.iterdir()}


def _describe(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LoraSftError):
        return error.exit_code, error.what
    if isinstance(error, Stopped):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted"
    return EXIT_UNEXPECTED, Fault(f"{type(error).__name__}: {error}").what
