"""The clock on a block's stages: every CPU second is booked once, on the code that spent it."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.cpu.stages import OTHER, StageClock

SPIN_CPU_SECONDS = 0.3  # thirty of the slowest clock's ticks


def spin() -> None:
    end = time.process_time() + SPIN_CPU_SECONDS
    while time.process_time() < end:
        pass


def test_the_stages_add_up_to_what_the_block_cost() -> None:
    began = time.process_time()
    with StageClock({Path(__file__).name: "spin"}) as clock:
        spin()
    cost = time.process_time() - began
    assert set(clock.cpu_seconds) == {"spin"}
    assert SPIN_CPU_SECONDS <= clock.cpu_seconds["spin"] <= cost
    assert clock.shares == {"spin": 1.0}


def test_code_of_no_known_file_is_other() -> None:
    with StageClock({"elsewhere.py": "read"}) as clock:
        spin()
    assert clock.shares == {OTHER: 1.0}
