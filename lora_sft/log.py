"""Where words to the user go: stderr, always; stdout belongs to `--json` and chat.

Only the main process of a distributed run speaks; the others stay quiet unless they fail.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def is_main_process() -> bool:
    """Whether this process is global rank 0, read from the launcher's environment."""
    return int(os.environ.get("RANK", "0")) == 0


def make_console() -> Console:
    """A rich console on the present stderr (looked up late, so that tests can capture it)."""
    from rich.console import Console  # 70 ms of import, not needed by `--help` or an error

    return Console(file=sys.stderr, quiet=not is_main_process(), highlight=False)


def make_result_console() -> Console:
    """A rich console on stdout, for the result that a command was asked for."""
    from rich.console import Console

    return Console(quiet=not is_main_process(), highlight=False)


def say(message: str, *, style: str | None = None) -> None:
    """Print one line to stderr from the main process. The text is never read as markup."""
    make_console().print(message, style=style, markup=False, soft_wrap=True)
