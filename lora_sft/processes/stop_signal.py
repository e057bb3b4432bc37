"""Handle SIGTERM, SIGUSR1 and Ctrl-C in every phase of a run.

- In the training loop, a signal is noted. The trainer saves its state at the end of the step and
  stops.
- Before and after the loop, everything that can be saved is already on disk. The run ends at once.
- After the exit code has been written, signals are ignored. A launcher may still send them to
  processes that are about to end, and they must not change the exit code.

This file imports nothing heavy, so that the handlers are installed before torch is imported.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

from lora_sft.errors import EXIT_INTERRUPTED, EXIT_RESUME_ME
from lora_sft.log import say

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(BaseException):
    """A signal ended the run outside the training loop.

    It derives from BaseException, so that a library's `except Exception` does not catch it.
    """

    def __init__(self, received: signal.Signals) -> None:
        self.received = received
        super().__init__(f"stopped by {received.name}")

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.received)


def exit_code_of(received: signal.Signals | None) -> int:
    """Return the exit code of a stopped run: 130 after Ctrl-C, 75 after any other signal.

    75 tells a scheduler to start the same command again.
    """
    return EXIT_INTERRUPTED if received == signal.SIGINT else EXIT_RESUME_ME


class StopRequest:
    """Note whether a signal asked the run to stop, and decide what the next signal does.

    Attributes:
        ends_process: Whether the process ends after the run; the program sets it. Then signals stay
            ignored after the run: closing the libraries takes a while, and a second signal must
            not change the exit code.
        received: The first signal, or None. Later signals do not change the exit code.
    """

    ends_process: ClassVar[bool] = False

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_stepping = False
        self._is_over = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals inside the block.

        A second block inside the first does nothing, and neither does one outside the main thread.
        """
        is_main = threading.current_thread() is threading.main_thread()
        mine = is_main and signal.getsignal(signal.SIGTERM) != self._receive
        before = {number: signal.signal(number, self._receive) for number in CAUGHT if mine}
        try:
            yield self
        finally:
            if self.ends_process and mine:
                self.ignore_signals()
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.ends_process else handler)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Only note signals inside the block: the caller checks `received` after each step.

        Raises: Stopped if a signal arrived earlier but its exception was lost. Python only prints
            an exception that is raised while an object is deleted.
        """
        if self.received is not None:
            raise Stopped(self.received)
        with self.listening():
            self._is_stepping = True
            try:
                yield
            finally:
                self._is_stepping = False

    def ignore_signals(self) -> None:
        """Ignore all signals from now on: the exit code of the run has been written."""
        self._is_over = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._is_over:
            return
        received = signal.Signals(number)
        is_second = self.received is not None and received == signal.SIGINT
        self.received = self.received or received
        if not self._is_stepping or is_second:
            raise Stopped(received)
        say(f"{received.name} received: the run saves its state after this step and stops")
