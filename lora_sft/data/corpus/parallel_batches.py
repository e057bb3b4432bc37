"""Work on batches of rows on all cores, with the results in the batches' order.

The first batches are worked on here: most data sets are done before other processes have started.
The others are forked, which costs no import and no copy of tokenizer and template (on Linux;
elsewhere everything is done here). What waits to be taken is bounded, so that memory does not
grow with the number of rows.
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
BATCHES_DONE_HERE = 8
BATCHES_WAITING = 2  # a process, so that none waits for work
PROCESS_BYTES = 2**30  # what a process and its waiting batches take at most
ORPHAN_CHECK_SECONDS = 1.0
TOKENIZERS_SWITCH = "TOKENIZERS_PARALLELISM"

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def map_batches(
    work: Callable[[Batch], Result], batches: Iterable[Batch]
) -> Iterator[tuple[Batch, Result]]:
    """Every batch with its result, in order.

    Raises: what `work` raises; CapabilityError where one of the other processes was killed.
    """
    waiting = iter(batches)
    with _collector_kept_off():
        for batch in islice(waiting, BATCHES_DONE_HERE):
            yield batch, work(batch)
        num_processes = count_processes()
        if num_processes > 1:
            yield from _map_in_processes(work, waiting, num_processes)
        else:
            yield from ((batch, work(batch)) for batch in waiting)


def count_processes() -> int:
    """One a core that this process may use, and a GiB of free memory; `LORA_SFT_PROCESSES` wins."""
    if sys.platform != "linux":  # elsewhere a forked process must not use system libraries
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
        num_processes, multiprocessing.get_context("fork"), _settle, (work, os.getpid())
    )
    started: deque[tuple[Batch, Future[bytes]]] = deque()
    try:
        with signals_held(), _tokenizers_told():
            started.append((first, pool.submit(_work_on, first)))  # starts all processes
        for batch in batches:
            with signals_held():
                started.append((batch, pool.submit(_work_on, batch)))
            if len(started) >= num_processes * BATCHES_WAITING:
                yield _take(started)
        while started:
            yield _take(started)
    except BrokenProcessPool as error:
        raise CapabilityError(
            "a process that prepares rows was killed, most likely for lack of memory",
            f"{num_processes} processes",
            f"use fewer: set the environment variable {VARIABLE}=1",
        ) from error
    finally:
        with signals_held():
            pool.shutdown(cancel_futures=True)


def _take(started: deque[tuple[Any, Future[bytes]]]) -> tuple[Any, Any]:
    """The oldest batch; its result was kept as bytes, a third of the size of its objects."""
    batch, future = started.popleft()
    with signals_held():
        result = future.result()
    return batch, pickle.loads(result)  # noqa: S301 (our own, from our own process)


@contextmanager
def _collector_kept_off() -> Iterator[None]:
    """Keep the garbage collector from walking through the libraries again and again: a tenth of
    the time, and in a forked process a copy of every page that it touches."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _tokenizers_told() -> Iterator[None]:
    """Keep tokenizers from a warning at the fork: its threads are not there in the new process,
    and `_settle` says so to it."""
    is_set = TOKENIZERS_SWITCH in os.environ
    os.environ.setdefault(TOKENIZERS_SWITCH, "true")
    try:
        yield
    finally:
        if not is_set:
            del os.environ[TOKENIZERS_SWITCH]


# --- in a forked process ---------------------------------------------------------------------

_work: Callable[[Any], Any] | None = None


def _settle(work: Callable[[Any], Any], parent: int) -> None:
    """Begin: Ctrl-C is the parent's to hear, and without a parent there is nobody to work for."""
    global _work
    _work = work
    os.environ[TOKENIZERS_SWITCH] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)


def _work_on(batch: Any) -> bytes:
    assert _work is not None, "the process has settled"
    return pickle.dumps(_work(batch), pickle.HIGHEST_PROTOCOL)
