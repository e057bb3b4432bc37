"""Show the progress of a merge: a bar with MB/s on a terminal, nothing in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_sft.log import is_main_process, make_console


@contextmanager
def byte_progress(title: str, total_bytes: int) -> Iterator[Callable[[int], object]]:
    """Yield a function that moves the progress bar by a number of bytes."""
    if not (sys.stderr.isatty() and is_main_process()):
        yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=make_console()) as progress:
        task = progress.add_task(title, total=total_bytes)
        yield lambda count: progress.advance(task, count)
