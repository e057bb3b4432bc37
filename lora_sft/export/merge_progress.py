"""How far a merge is: a bar with MB/s for a person at a terminal, silence for a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_sft.log import is_main_process, make_console


@contextmanager
def byte_progress(title: str, total_bytes: int) -> Iterator[Callable[[int], object]]:
    """Yields what is to be called with every number of bytes that are done."""
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
