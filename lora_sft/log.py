"""Where words to the user go: stderr, always; stdout belongs to `--json` and chat.

Only the main process of a distributed run speaks; the others stay quiet unless they fail.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STDERR = 2


def is_main_process() -> bool:
    """Whether this process is global rank 0, read from the launcher's environment.

    What is no number is refused where the world is read, and may be shown by then.
    """
    rank = os.environ.get("RANK", "")
    return not rank.isdecimal() or int(rank) == 0


class _LastingWords(io.FileIO):
    """The raw end of stderr, which takes every write: no work is lost for want of a reader.

    A terminal that is closed answers EIO, a pipe whose reader left EPIPE: whatever is written
    from then on, by libraries and child processes too, goes to the null device. A log file on a
    full disk loses these words, and takes others once there is room.

    Unbuffered: a buffer that a signal's handler writes to in the middle of a write is a
    RuntimeError in Python, and what a buffer could not pass on fails again at exit (code 120).
    """

    def write(self, words: Any, /) -> int:
        rest = memoryview(words).cast("B")
        count = len(rest)
        try:
            while rest:  # a signal may cut a write short; None: a reader that is slow, never waited
                rest = rest[super().write(rest) or len(rest) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._give_up()
        return count

    def _give_up(self) -> None:
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)


def outlive_readers() -> None:
    """From here on nobody who stops reading stderr ends this process. For a program, not a test."""
    try:
        raw = _LastingWords(STDERR, "w", closefd=False)
    except OSError:  # started without one
        return
    encoding = sys.stderr.encoding
    sys.stderr = io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=True)


def make_console() -> Console:
    """A rich console on the present stderr (looked up late, so that tests can capture it)."""
    return _make_console(file=sys.stderr)


def make_result_console() -> Console:
    """A rich console on stdout, for the result that a command was asked for."""
    return _make_console()


def _make_console(**settings: Any) -> Console:
    from rich.console import Console  # 70 ms of import, not needed by `--help` or an error

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            """An error like any other; rich's own way is SystemExit(1), whoever is at work."""
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return PlainConsole(**settings, quiet=not is_main_process(), highlight=False)


def say(message: str, *, style: str | None = None) -> None:
    """Print one line to stderr from the main process. The text is never read as markup."""
    make_console().print(message, style=style, markup=False, soft_wrap=True)
