"""Wait for the other processes with files instead of collectives.

Preparing data, loading a model, converting a checkpoint and merging may take longer than a
collective may take (`train.ddp_timeout`), or than torchrun's five minutes at the end. While a
process waits here, its watch still notices if another process dies.

A waiting process lists the whole folder, because an NFS client caches for a while that a single
file does not exist.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_sft.errors import DataError
from lora_sft.log import say
from lora_sft.processes.watch import EndedElsewhere, Watch

# The pause between two checks grows, because many processes may list the same folder.
POLL_SECONDS = 0.05
LAST_POLL_SECONDS = 1.0
SAY_EVERY_SECONDS = 60.0
LEAVE_SECONDS = 10.0  # how long rank 0 waits for the others at the end


def meet(watch: Watch | None, point: str, message: Any = None) -> dict[int, Any]:
    """Wait until every process has reached `point`, and return the message of each rank.

    Args:
        watch: The watch of this process; None in a run of one process.
        point: The name of this point in the run.
        message: JSON data for the other processes.

    Raises: EndedElsewhere if another process ended the run.
    """
    if watch is None:
        return {0: message}
    _write_message(watch, point, message)
    ranks = range(watch.processes.world_size)
    _wait_for(watch, point, ranks)
    return {
        rank: json.loads(_find_file(watch, point, rank).read_text(encoding="utf-8"))
        for rank in ranks
    }


def check_same_data(watch: Watch | None, fingerprints: Mapping[str, str]) -> None:
    """Wait until every process has read its data, and check that all have the same rows.

    Each machine may have its own files or its own cache. With different rows the processes would
    train on overlapping shares, and a row that is held out on one machine could be trained on
    another.

    Args:
        watch: The watch of this process; None in a run of one process.
        fingerprints: The fingerprint of each split on this process.

    Raises: DataError if a split differs between two processes.
    """
    by_rank = meet(watch, "data", dict(fingerprints))
    for split, fingerprint in fingerprints.items():
        others = [rank for rank, found in by_rank.items() if found.get(split) != fingerprint]
        if others:
            here = watch.processes.process_rank if watch is not None else 0
            raise DataError(
                f"the {split} rows of process {others[0]} differ from those of process {here}",
                f"data, on the machine of process {others[0]}",
                "give every machine the same files, or one shared folder. If the files are the "
                "same, the chat template may show the date of another day: write "
                "data.template_date, or delete the cache (~/.cache/lora-sft) on each machine",
            )


def leave_after_main(watch: Watch | None) -> None:
    """Keep the other processes alive until rank 0 has finished its work; rank 0 leaves last.

    Rank 0 calls this after it has merged and written how the run ended. Without it the other
    processes would end earlier. torchrun would then wait five minutes, and stop rank 0 even if it
    is still merging on another machine.

    Raises: EndedElsewhere if rank 0 ended the run with an error.
    """
    if watch is None:
        return
    if not watch.processes.is_main:
        _wait_for(watch, "done", [0])
        return
    _write_message(watch, "done", None)
    deadline = time.monotonic() + LEAVE_SECONDS
    while _list_ranks(watch, "beat") - {0} and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _write_message(watch: Watch, point: str, message: Any) -> None:
    own = _find_file(watch, point, watch.processes.process_rank)
    staged = own.with_suffix(".staged")
    staged.write_text(json.dumps(message), encoding="utf-8")
    staged.replace(own)


def _wait_for(watch: Watch, point: str, ranks: Iterable[int]) -> None:
    """Wait until each of `ranks` has written its message; name the missing ones once per minute."""
    began = last_said = time.monotonic()
    while missing := set(ranks) - _list_ranks(watch, point):
        end = watch.find_end()
        if end is not None:
            raise EndedElsewhere(end, watch.folder)
        now = time.monotonic()
        if now - last_said > SAY_EVERY_SECONDS:
            last_said = now
            say(f"waiting for process {', '.join(map(str, sorted(missing)))} ({point})")
        time.sleep(min(LAST_POLL_SECONDS, POLL_SECONDS + (now - began) / 10))


def _find_file(watch: Watch, point: str, rank: int) -> Path:
    return watch.folder / f"{point}-{rank}.json"


def _list_ranks(watch: Watch, point: str) -> set[int]:
    """Return the ranks that have a file for `point`: a message, or a heartbeat for `beat`."""
    names = {path.name for path in watch.folder.iterdir()}
    ranks = range(watch.processes.world_size)
    return {rank for rank in ranks if _find_file(watch, point, rank).name in names}
