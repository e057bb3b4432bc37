"""The first signal decides the exit code of a stopped run."""

from __future__ import annotations

import signal

import pytest

from lora_sft.processes.stop_signal import Stopped, StopRequest, exit_code_of


def test_later_signals_do_not_change_the_exit_code():
    request = StopRequest()
    with request.stepping():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
    assert exit_code_of(request.received) == 130


def test_a_ctrl_c_after_another_signal_ends_the_run_at_once():
    request = StopRequest()
    with request.stepping():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(signal.SIGINT)
    assert stopped.value.exit_code == 130
