"""One process a machine prepares, the others wait for it without the process group.

Tokenising a large data set takes longer than a collective may (`train.ddp_timeout`), so nobody
waits in one: the first to take a lock builds and keeps the corpus, the others wait for the lock
and find it in the cache. Machines that share the cache share the lock; where the first process
dies, the kernel frees the lock and the next one builds.
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
def first_one_builds(folder: Path, work: Any) -> Iterator[None]:
    """Inside, this process is the first at `work` (plain data), or finds it done by another."""
    name = hashlib.sha256(json.dumps(work, sort_keys=True, default=str).encode()).hexdigest()[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f".{name}.lock").open("a+", encoding="utf-8")
    except OSError:  # nothing can be kept there, so nobody need wait for it
        yield
        return
    with file:
        if not try_lock(file, fcntl.LOCK_EX):
            _wait(file)
        yield


def _wait(file: Any) -> None:
    """Until the builder lets go; those who waited read together."""
    started = said = time.monotonic()
    while not try_lock(file, fcntl.LOCK_SH):
        time.sleep(POLL_SECONDS)
        if time.monotonic() - said > SAY_EVERY_SECONDS:
            said = time.monotonic()
            say(f"another process prepares the data; waited {said - started:.0f} s so far")
