"""Let one process prepare the data while the others wait for a file lock.

Tokenising a large data set can take longer than a collective may take (`train.ddp_timeout`), so
the processes do not wait in a collective. The first process that takes the lock builds the corpus
and stores it in the cache. The others wait for the lock, then read the corpus from the cache.
Machines that share the cache folder also share the lock. If the building process dies, the kernel
releases the lock and the next process builds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_sft.log import say
from lora_sft.processes.output_lock import try_lock

POLL_SECONDS = 0.2
SAY_EVERY_SECONDS = 30.0


@contextmanager
def build_once(folder: Path, work: Any) -> Iterator[None]:
    """Let the first process run the block for `work`; the others wait until it has left the block.

    The first process fills the cache. So the block must read the cache before it builds.

    Args:
        folder: The folder of the lock file. If it cannot be written, no process waits.
        work: Plain data that identifies the work. Equal values share a lock.
    """
    name = hashlib.sha256(json.dumps(work, sort_keys=True, default=str).encode()).hexdigest()[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f".{name}.lock").open("a+", encoding="utf-8")
    except OSError:  # the cache cannot be written either, so waiting would be useless
        yield
        return
    with file:
        if not try_lock(file, fcntl.LOCK_EX):
            _wait_for_builder(file)
        yield


def _wait_for_builder(file: Any) -> None:
    """Wait until the building process releases the lock; say twice per minute that it waits.

    The lock is a shared one, so that all waiting processes can read the cache at the same time.
    """
    started = last_said = time.monotonic()
    while not try_lock(file, fcntl.LOCK_SH):
        time.sleep(POLL_SECONDS)
        if time.monotonic() - last_said > SAY_EVERY_SECONDS:
            last_said = time.monotonic()
            waited = last_said - started
            say(f"waiting for another process that prepares the data ({waited:.0f} s so far)")
