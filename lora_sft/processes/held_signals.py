"""Keep a signal's handler from raising where a library holds a lock.

A handler runs between any two lines of Python, those of `queue` and `concurrent.futures` too. What
it raises there leaves a lock behind, and a thread that wants it waits for ever, and with it whoever
waits for the thread (https://docs.python.org/3/library/signal.html#handlers-and-exceptions).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def signals_held(meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Inside, a signal that has a handler waits; it is handled at the end, as it would have been.

    For short waits, or with `meanwhile`, called when one comes, which makes them short; it must
    take no lock either. Handlers run on the main thread; elsewhere nothing is held.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        meanwhile()

    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in HELD if is_main}
    raising = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in raising:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in raising.items():
            signal.signal(number, handler)
        for received in came:
            signal.raise_signal(received)
