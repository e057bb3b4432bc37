"""The stage clock adds every CPU second to one stage: that of the code which used it."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.cpu.stages import OTHER, StageClock

SPIN_CPU_SECONDS = 0.3  # 30 ticks of a slow system clock (10 ms)


def spin() -> None:
    end = time.process_time() + SPIN_CPU_SECONDS
    while time.process_time() < end:
        pass


def test_the_stages_add_up_to_the_cpu_time_of_the_block() -> None:
    began = time.process_time()
    with StageClock({Path(__file__).name: "spin"}) as clock:
        spin()
    cost = time.process_time() - began
    assert set(clock.cpu_seconds) == {"spin"}
    assert SPIN_CPU_SECONDS <= clock.cpu_seconds["spin"] <= cost
    assert clock.shares == {"spin": 1.0}


def test_code_in_a_file_without_a_stage_counts_as_other() -> None:
    with StageClock({"elsewhere.py": "read"}) as clock:
        spin()
    assert clock.shares == {OTHER: 1.0}
