"""A signal that arrives while a library holds a lock is handled after the lock is released."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest

from lora_sft.data.corpus import parallel_batches
from lora_sft.processes.held_signals import HELD, signals_held


class Stop(BaseException):
    """The exception that the test's handler raises."""


@pytest.fixture
def handler():
    """Install a handler that raises `Stop` for each signal that can be delayed."""

    def stop(number, frame):
        raise Stop(number)

    before = {number: signal.signal(number, stop) for number in HELD}
    yield stop
    for number, each in before.items():
        signal.signal(number, each)


@pytest.mark.parametrize("number", HELD)
def test_a_signal_is_handled_at_the_end_of_the_block(handler, number):
    done = []

    def hold():
        with signals_held():
            signal.raise_signal(number)
            done.append("the rest")

    with pytest.raises(Stop, match=str(int(number))):
        hold()
    assert done == ["the rest"]
    assert signal.getsignal(number) is handler


def test_the_handlers_are_restored_after_an_error(handler):
    with pytest.raises(KeyError), signals_held():
        raise KeyError
    assert all(signal.getsignal(number) is handler for number in HELD)


def test_default_and_ignored_signals_are_not_delayed(handler):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with signals_held():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN


def test_in_another_thread_nothing_is_delayed(handler):
    failures = []

    def hold():
        try:
            with signals_held():
                pass
        except ValueError as error:  # only the main thread may set handlers
            failures.append(error)

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert not failures


def test_a_signal_while_rows_are_sent_to_workers_leaves_no_lock_taken(handler, monkeypatch):
    submitted = []

    class Interrupted(ProcessPoolExecutor):
        def submit(self, *arguments, **named):
            signal.raise_signal(signal.SIGTERM)
            submitted.append(super().submit(*arguments, **named))
            return submitted[-1]

    monkeypatch.setattr(parallel_batches, "ProcessPoolExecutor", Interrupted)
    monkeypatch.setattr(parallel_batches, "count_processes", lambda: 2)
    taken = []
    with pytest.raises(Stop):
        taken.extend(result for _, result in parallel_batches.map_batches(abs, range(-20, 0)))
    assert len(submitted) == 1
    assert submitted[0].cancelled() or submitted[0].done()
