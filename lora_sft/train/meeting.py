"""Wait for the other processes through files, outside of any collective.

Preparing data, loading a model, converting a checkpoint and merging may take one machine longer
than a collective may take (`train.ddp_timeout`, torchrun's five minutes at the end). While a
process waits here the watch still sees whether the others live.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_sft.errors import DataError, TrainingError
from lora_sft.log import say
from lora_sft.train.watch import Watch

POLL_SECONDS = 0.1
SAY_EVERY_SECONDS = 60.0


def meet(watch: Watch | None, place: str, word: Any = None) -> dict[int, Any]:
    """Wait until every process has come to this place; what each of them says (JSON), by its rank.

    Raises: TrainingError where another process ended the run.
    """
    if watch is None:
        return {0: word}
    own = watch.folder / f"{place}-{watch.processes.process_rank}.json"
    staged = own.with_suffix(".staged")
    staged.write_text(json.dumps(word), encoding="utf-8")
    staged.replace(own)
    names = {rank: f"{place}-{rank}.json" for rank in range(watch.processes.world_size)}

    def find_missing() -> list[int]:
        there = {each.name for each in watch.folder.iterdir()}  # NFS forgets slowly what was not
        return [rank for rank, name in names.items() if name not in there]

    for missing in _wait_while(find_missing, watch):
        say(f"waiting for process {', '.join(map(str, missing))} ({place})")
    return {
        rank: json.loads((watch.folder / name).read_text(encoding="utf-8"))
        for rank, name in names.items()
    }


def check_same_data(watch: Watch | None, fingerprints: Mapping[str, str]) -> None:
    """Wait until every process has its rows. `fingerprints`: one for each split.

    Raises: DataError where they are not the same rows: machines that each have files or a cache of
    their own would train on other shares than they think, and rows of one's validation split.
    """
    words = meet(watch, "data", dict(fingerprints))
    for split, fingerprint in fingerprints.items():
        others = [rank for rank, word in words.items() if word.get(split) != fingerprint]
        if others:
            here = watch.processes.process_rank if watch is not None else 0
            raise DataError(
                f"process {others[0]} has other {split} rows than process {here}",
                f"data, on the machine of process {others[0]}",
                "give every machine the same files (or one shared folder), or clear the cache of "
                "the one that prepared them on another day",
            )


def wait_for_main(watch: Watch | None, has_ended: Callable[[], bool]) -> None:
    """Wait until the main process has written how the run ended, its merge included.

    A launcher takes processes that are done for a reason to end the rest: torchrun waits five
    minutes, and then stops a main process that still merges on another machine.

    Raises: TrainingError where another process ended the run.
    """
    if watch is None or watch.processes.is_main:
        return
    for _ in _wait_while(lambda: [] if has_ended() else [0], watch):
        pass


def _wait_while(find_missing: Callable[[], list[int]], watch: Watch) -> Iterator[list[int]]:
    """Yields the ranks that are missing, once a minute, until none is."""
    said = time.monotonic()
    while missing := find_missing():
        end = watch.find_end()
        if end is not None:
            raise TrainingError(
                f"process {end.process_rank} ended the run: {end.reason}",
                str(watch.folder),
                "see what that process printed",
            )
        time.sleep(POLL_SECONDS)
        if time.monotonic() - said > SAY_EVERY_SECONDS:
            said = time.monotonic()
            yield missing
