"""Wait for the other processes through files, outside of any collective.

Preparing data, loading a model, converting a checkpoint and merging may take one machine longer
than a collective may take (`train.ddp_timeout`, torchrun's five minutes at the end). While a
process waits here the watch still sees whether the others live.

Folders are listed: looking for a single name, NFS remembers for a while that it was not there.
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
    ranks = range(watch.processes.world_size)
    _wait_for(watch, place, ranks)
    return {
        rank: json.loads(_name(watch, place, rank).read_text(encoding="utf-8")) for rank in ranks
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
        _wait_for(watch, "done", [0])
        return
    _put_down(watch, "done", None)
    deadline = time.monotonic() + FAREWELL_SECONDS
    while _list_ranks(watch, "beat") - {0} and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _put_down(watch: Watch, place: str, word: Any) -> None:
    own = _name(watch, place, watch.processes.process_rank)
    staged = own.with_suffix(".staged")
    staged.write_text(json.dumps(word), encoding="utf-8")
    staged.replace(own)


def _wait_for(watch: Watch, place: str, ranks: Iterable[int]) -> None:
    """Until each of `ranks` has put down its word; says once a minute who has not."""
    began = said = time.monotonic()
    while missing := set(ranks) - _list_ranks(watch, place):
        end = watch.find_end()
        if end is not None:
            raise EndedElsewhere(end, watch.folder)
        now = time.monotonic()
        if now - said > SAY_EVERY_SECONDS:
            said = now
            say(f"waiting for process {', '.join(map(str, sorted(missing)))} ({place})")
        time.sleep(min(LAST_POLL_SECONDS, POLL_SECONDS + (now - began) / 10))


def _name(watch: Watch, place: str, rank: int) -> Path:
    return watch.folder / f"{place}-{rank}.json"


def _list_ranks(watch: Watch, place: str) -> set[int]:
    """Who has put down a word at this place, or gives signs of life (`beat`)."""
    there = {path.name for path in watch.folder.iterdir()}
    ranks = range(watch.processes.world_size)
    return {rank for rank in ranks if _name(watch, place, rank).name in there}
