"""Wait for the other processes through files, outside of any collective.

Preparing data, loading a model, converting a checkpoint and merging may take one machine longer
than a collective may take (`train.ddp_timeout`, torchrun's five minutes at the end). While a
process waits here the watch still sees whether the others live.

Folders are listed: looking for a single name, NFS remembers for a while that it was not there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lora_sft.errors import DataError
from lora_sft.log import say
from lora_sft.train.watch import EndedElsewhere, Watch

POLL_SECONDS = 0.05  # at first; at last once a second, since many processes look at one folder
LAST_POLL_SECONDS = 1.0
SAY_EVERY_SECONDS = 60.0
FAREWELL_SECONDS = 10.0  # the main process's patience; its watch's is longer


def meet(watch: Watch | None, place: str, word: Any = None) -> dict[int, Any]:
    """Wait until every process has come to this place; what each of them says (JSON), by its rank.

    Raises: EndedElsewhere where another process ended the run.
    """
    if watch is None:
        return {0: word}
    _put_down(watch, place, word)
    files = {rank: f"{place}-{rank}.json" for rank in range(watch.processes.world_size)}

    def find_missing() -> list[int]:
        there = _list(watch)
        return [rank for rank, name in files.items() if name not in there]

    for missing in _wait_while(find_missing, watch):
        say(f"waiting for process {', '.join(map(str, missing))} ({place})")
    return {
        rank: json.loads((watch.folder / name).read_text(encoding="utf-8"))
        for rank, name in files.items()
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


def leave_after_main(watch: Watch | None) -> None:
    """The main process comes here once it has written how the run ended, its merge included; the
    others wait for it, and it waits until they have gone.

    A launcher takes processes that are done for a reason to end the rest: torchrun waits five
    minutes, and then stops a main process that still merges on another machine.

    Raises: EndedElsewhere where the main process ended the run before.
    """
    if watch is None:
        return
    if not watch.processes.is_main:
        for _ in _wait_while(lambda: [] if "done-0.json" in _list(watch) else [0], watch):
            pass
        return
    _put_down(watch, "done", None)
    signs = {f"beat-{rank}.json" for rank in range(1, watch.processes.world_size)}
    deadline = time.monotonic() + FAREWELL_SECONDS
    while signs & _list(watch) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _put_down(watch: Watch, place: str, word: Any) -> None:
    own = watch.folder / f"{place}-{watch.processes.process_rank}.json"
    staged = own.with_suffix(".staged")
    staged.write_text(json.dumps(word), encoding="utf-8")
    staged.replace(own)


def _list(watch: Watch) -> set[str]:
    return {path.name for path in watch.folder.iterdir()}


def _wait_while(find_missing: Callable[[], list[int]], watch: Watch) -> Iterator[list[int]]:
    """Yields the ranks that are missing, once a minute, until none is."""
    began = said = time.monotonic()
    while missing := find_missing():
        end = watch.find_end()
        if end is not None:
            raise EndedElsewhere(end, watch.folder)
        now = time.monotonic()
        time.sleep(min(LAST_POLL_SECONDS, POLL_SECONDS + (now - began) / 10))
        if now - said > SAY_EVERY_SECONDS:
            said = now
            yield missing
