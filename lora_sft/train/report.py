"""Leave the exit code and reason of a start where any launcher's user finds them: `status.json`.

Alone, a process writes its own. Among several, the first one to fail does: the others then fail
too, for want of it, and their reasons would hide the cause.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed
from accelerate.utils import broadcast_object_list

from lora_sft.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, LoraSftError
from lora_sft.run_directory import CHECKPOINT_PREFIX, RunDirectory
from lora_sft.train.processes import Processes
from lora_sft.train.stop_signal import Stopped, StopRequest
from lora_sft.train.watch import FOLDER, STALL_SHARE, Watch


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
        """
        if not torch.distributed.is_initialized() or self.processes.world_size == 1:
            return None
        (name,) = broadcast_object_list([secrets.token_hex(8)])
        folder = self.run.path / FOLDER / name
        stall_seconds = STALL_SHARE * collective_seconds
        self.watch = Watch(folder, self.processes, stall_seconds, self._write)
        self.watch.start()
        return self.watch

    def stop_watching(self) -> None:
        """Every process came to the end of the work they share."""
        if self.watch is not None:
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
        checkpoints = self.run.list_checkpoints()
        step = int(checkpoints[-1].name.removeprefix(CHECKPOINT_PREFIX)) if checkpoints else 0
        self.run.write_status(exit_code, reason, step)


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


def _describe(error: BaseException) -> tuple[int, str]:
    if isinstance(error, LoraSftError):
        return error.exit_code, error.what
    if isinstance(error, Stopped):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted"
    return EXIT_UNEXPECTED, f"{type(error).__name__}: {error}"
