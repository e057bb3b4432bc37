"""Work on batches of rows on all cores, and return the results in the order of the batches.

The main process works on the first batches itself: most data sets are finished before worker
processes could start. Worker processes are forked, which needs no imports and no copies of
tokenizer and template. They exist only on Linux; on other systems the main process does all the
work. The number of waiting results is limited, so memory does not grow with the number of rows.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import psutil

from lora_sft.errors import CapabilityError
from lora_sft.processes.held_signals import signals_held

VARIABLE = "LORA_SFT_PROCESSES"
BATCHES_DONE_HERE = 8  # by the main process, before it starts worker processes
BATCHES_WAITING = 2  # per worker process, so that it never waits for work
PROCESS_BYTES = 2**30  # upper limit for one worker process and its waiting batches
ORPHAN_CHECK_SECONDS = 1.0
TOKENIZERS_SWITCH = "TOKENIZERS_PARALLELISM"

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def map_batches(
    work: Callable[[Batch], Result], batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Result]]:
    """Yield every batch with its result, in order.

    Raises: The errors of `work`, and CapabilityError if a worker process was killed.
    """
    waiting = iter(batches)
    with _frozen_garbage_collector():
        for batch in islice(waiting, BATCHES_DONE_HERE):
            yield batch, work(batch)
        num_processes = count_processes()
        if num_processes > 1:
            yield from _map_in_processes(work, waiting, num_processes)
        else:
            yield from ((batch, work(batch)) for batch in waiting)


def count_processes() -> int:
    """Return the number of worker processes.

    It is one per usable core, and at most one per GiB of free memory. The environment variable
    `LORA_SFT_PROCESSES` overrides it.
    """
    if sys.platform != "linux":  # on other systems, a forked process must not use system libraries
        return 1
    asked = os.environ.get(VARIABLE, "")
    if asked.isdecimal():
        return max(1, int(asked))
    affordable = psutil.virtual_memory().available // PROCESS_BYTES
    return max(1, min(len(os.sched_getaffinity(0)), affordable))


def _map_in_processes(
    work: Callable[[Batch], Result], batches: Iterator[Batch], num_processes: int
) -> Iterator[tuple[Batch, Result]]:
    first = next(batches, None)
    if first is None:
        return
    pool = ProcessPoolExecutor(
        num_processes, multiprocessing.get_context("fork"), _start_worker, (work, os.getpid())
    )
    started: deque[tuple[Batch, Future[bytes]]] = deque()
    try:
        with signals_held(), _no_tokenizers_warning():
            started.append((first, pool.submit(_work_on, first)))  # this starts all processes
        for batch in batches:
            with signals_held():
                started.append((batch, pool.submit(_work_on, batch)))
            if len(started) >= num_processes * BATCHES_WAITING:
                yield _take_oldest(started)
        while started:
            yield _take_oldest(started)
    except BrokenProcessPool as error:
        raise CapabilityError(
            "a process that prepares rows was killed, probably because memory ran out",
            f"{num_processes} processes",
            f"use fewer processes: set the environment variable {VARIABLE}=1",
        ) from error
    finally:
        with signals_held():
            pool.shutdown(cancel_futures=True)


def _take_oldest(started: deque[tuple[Any, Future[bytes]]]) -> tuple[Any, Any]:
    """Return the oldest batch and its result.

    Results wait as bytes, which take a third of the memory of their objects.
    """
    batch, future = started.popleft()
    with signals_held():
        result = future.result()
    return batch, pickle.loads(result)  # noqa: S301 (our own worker process wrote it)


@contextmanager
def _frozen_garbage_collector() -> Iterator[None]:
    """Keep the garbage collector from scanning the objects of the libraries again and again.

    These scans would take a tenth of the time. In a forked process they would also copy each memory
    page that they touch.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _no_tokenizers_warning() -> Iterator[None]:
    """Keep the tokenizers library from printing a warning at the fork.

    It warns because its threads do not exist in the new process. `_start_worker` switches them off.
    """
    is_set = TOKENIZERS_SWITCH in os.environ
    os.environ.setdefault(TOKENIZERS_SWITCH, "true")
    try:
        yield
    finally:
        if not is_set:
            del os.environ[TOKENIZERS_SWITCH]


# --- in a worker process ---------------------------------------------------------------------

_work: Callable[[Any], Any] | None = None


def _start_worker(work: Callable[[Any], Any], parent: int) -> None:
    """Prepare a worker process. It leaves Ctrl-C to its parent, and exits if its parent dies."""
    global _work
    _work = work
    os.environ[TOKENIZERS_SWITCH] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)


def _work_on(batch: Any) -> bytes:
    assert _work is not None, "`_start_worker` has run"
    return pickle.dumps(_work(batch), pickle.HIGHEST_PROTOCOL)
