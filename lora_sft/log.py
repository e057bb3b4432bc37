"""Print messages for the user on stderr. Stdout is only for the results of commands.

In a distributed run only rank 0 prints. The other processes print only their errors.

Messages and results hold text from recipes, files and models. A terminal would obey the control
characters in it, so they are printed as escapes. Messages show no password of an address.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lora_sft.shown_text import escape_controls, escape_unprintable, hide_secrets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

STDERR = 2


def is_main_process() -> bool:
    """Return whether this process is global rank 0, from the launcher's environment.

    A rank that is not an integer counts as 0 here. `check_world` refuses it, but the log may be
    used before that check.
    """
    rank = os.environ.get("RANK", "")
    return not rank.isdecimal() or int(rank) == 0


class _FailsafeStderr(io.FileIO):
    """The file behind stderr. Its writes never fail, so a run survives the loss of its terminal.

    A closed terminal gives EIO, and a closed pipe gives EPIPE. All later output then goes to the
    null device, that of libraries and child processes too. If a log file is on a full disk, the
    message is lost, but later messages are written once there is space.

    The file has no buffer, for two reasons. If a signal handler writes while a buffered write is
    running, Python raises RuntimeError. And text that stays in a buffer fails again at exit, with
    exit code 120.
    """

    def write(self, data: Any, /) -> int:
        rest = memoryview(data).cast("B")
        count = len(rest)
        try:
            while rest:  # a signal may cut a write short
                # `write` returns None if a non-blocking pipe is full. The rest is then dropped.
                rest = rest[super().write(rest) or len(rest) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._redirect_to_null_device()
        return count

    def _redirect_to_null_device(self) -> None:
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


def ignore_stderr_failures() -> None:
    """Replace `sys.stderr` for the rest of this process by a stream whose writes never fail."""
    try:
        raw = _FailsafeStderr(STDERR, "w", closefd=False)
    except OSError:  # the process was started without stderr
        return
    encoding = sys.stderr.encoding
    sys.stderr = io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=True)


def make_console() -> Console:
    """Return a rich console on the current `sys.stderr`, which tests may have replaced."""
    return _make_console(file=sys.stderr)


def make_result_console() -> Console:
    """Return a rich console on stdout, for the result of a command."""
    return _make_console()


def _make_console(**settings: Any) -> Console:
    from rich.console import Console  # takes 70 ms, and `--help` and errors do not need it

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            """Raise BrokenPipeError. rich itself would end the process with exit code 1."""
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

        def render(self, *arguments: Any, **options: Any) -> Iterator[Segment]:
            """Yield the segments, with escapes for the control characters of the texts.

            The control codes of rich itself are in segments of their own.
            """
            for segment in super().render(*arguments, **options):
                is_text = segment.control is None
                yield segment._replace(text=escape_controls(segment.text)) if is_text else segment

    return PlainConsole(**settings, quiet=not is_main_process(), highlight=False)


def say(message: str, *, style: str | None = None) -> None:
    """Print one line on stderr if this process is rank 0. The text is not parsed as markup."""
    line = escape_unprintable(hide_secrets(message))
    make_console().print(line, style=style, markup=False, soft_wrap=True)


def print_result(text: str, end: str = "\n") -> None:
    """Print a text on stdout, as a part of the result of a command."""
    print(escape_controls(text), end=end, flush=True)


def format_traceback() -> str:
    """Return the traceback of the current exception. Its message may repeat a URL."""
    return escape_controls(hide_secrets(traceback.format_exc()))
