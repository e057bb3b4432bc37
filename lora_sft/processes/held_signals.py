"""Delay signal handlers while a library holds a lock.

A handler can run between any two instructions of Python code, also inside `queue` and
`concurrent.futures`. If it raises an exception there, a lock may never be released. A thread that
needs the lock then waits for ever, and so does the code that joins this thread
(https://docs.python.org/3/library/signal.html#handlers-and-exceptions).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_held(meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Delay the signal handlers until the end of the block, then run those of received signals.

    Signals without a Python handler (default or ignored) are not delayed. Only the main thread
    runs handlers, so in other threads this does nothing.

    Args:
        meanwhile: Called as soon as a signal arrives. If the block may take long, it must make the
            block end soon. It must not take a lock.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        meanwhile()

    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in HELD if is_main}
    delayed = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in delayed:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in delayed.items():
            signal.signal(number, handler)
        for each in received:
            signal.raise_signal(each)
