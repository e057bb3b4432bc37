"""What SIGTERM, SIGUSR1 and Ctrl-C mean, from the first line of a run to its last.

While the trainer steps, a signal is noted and honoured at the next step boundary, with the state
saved. Before and after there is nothing to save that is not on disk already: the run ends at
once. Once the outcome is written, signals are passed over; a launcher sends them to whoever is
still closing down, and where the process ends with the run nothing changes its exit code after.

Imports nothing heavy: the handlers are in place before torch is found on disk.
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
    """A signal ended the run outside the training loop. No library may swallow it."""

    def __init__(self, received: signal.Signals) -> None:
        self.received = received
        super().__init__(f"stopped by {received.name}")

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.received)


def exit_code_of(received: signal.Signals | None) -> int:
    """130 after Ctrl-C, 75 ("resume me") after any other signal."""
    return EXIT_INTERRUPTED if received == signal.SIGINT else EXIT_RESUME_ME


class StopRequest:
    """Whether the run was asked to stop, and what a signal does at this moment.

    `ends_process`: the program sets it where it leaves after the run. Closing the libraries takes
    a while, and the handlers from before would let a second signal choose the exit code.
    """

    ends_process: ClassVar[bool] = False

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._is_stepping = False
        self._is_over = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals; again inside, or outside the main thread, nothing changes."""
        is_main = threading.current_thread() is threading.main_thread()
        mine = is_main and signal.getsignal(signal.SIGTERM) != self._receive
        before = {number: signal.signal(number, self._receive) for number in CAUGHT if mine}
        try:
            yield self
        finally:
            if self.ends_process and mine:
                self.finish()
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self.ends_process else handler)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside, the caller looks at `received` after each step.

        Raises: Stopped where a signal came before and was lost (an exception raised while an
        object is deleted is only printed).
        """
        if self.received is not None:
            raise Stopped(self.received)
        with self.listening():
            self._is_stepping = True
            try:
                yield
            finally:
                self._is_stepping = False

    def finish(self) -> None:
        """The outcome is written: nothing that comes now changes it."""
        self._is_over = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._is_over:
            return
        is_second = self.received is not None and number == signal.SIGINT
        self.received = signal.Signals(number)
        if not self._is_stepping or is_second:
            raise Stopped(self.received)
        say(f"{self.received.name}: saving at the end of this step, then stopping")
