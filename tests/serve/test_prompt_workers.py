"""Threads that make prompts: their time, their number, and the end of the process."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="THE SERVER IS NOT TESTED: install the extra `serve`")

from fastapi import HTTPException

from lora_sft.serve import prompt_workers
from lora_sft.serve.prompt_workers import MAX_PROMPTS_AT_ONCE, PromptWorkers
from tests.commands import run_process


def test_a_worker_returns_the_result_and_raises_the_error():
    async def run() -> None:
        workers = PromptWorkers()
        assert await workers.run(int, "11", base=2) == 3
        with pytest.raises(ValueError, match="invalid literal"):
            await workers.run(int, "x")

    asyncio.run(run())


def test_a_prompt_that_takes_too_long_is_refused_and_then_waiting_prompts_too(monkeypatch):
    monkeypatch.setattr(prompt_workers, "PROMPT_SECONDS", 0.3)
    release = threading.Event()

    async def run() -> None:
        workers = PromptWorkers()
        waits = [workers.run(release.wait) for _ in range(MAX_PROMPTS_AT_ONCE)]
        slow = await asyncio.gather(*waits, return_exceptions=True)
        assert [error.status_code for error in slow] == [400] * MAX_PROMPTS_AT_ONCE
        with pytest.raises(HTTPException, match="busy") as refused:
            await workers.run(int, "3")
        assert refused.value.status_code == 503
        release.set()
        await asyncio.sleep(0.1)
        assert await workers.run(int, "3") == 3

    asyncio.run(run())


def test_a_prompt_whose_client_left_is_not_made():
    release, made = threading.Event(), []

    async def run() -> None:
        workers = PromptWorkers()
        first = [asyncio.create_task(workers.run(release.wait)) for _ in range(MAX_PROMPTS_AT_ONCE)]
        left = asyncio.create_task(workers.run(made.append, 1))
        await asyncio.sleep(0.1)
        left.cancel()
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*first)
        await workers.run(int, "3")

    asyncio.run(run())
    assert not made


def test_a_process_ends_while_a_prompt_is_made():
    program = (
        "import asyncio, time\n"
        "from lora_sft.serve.prompt_workers import PromptWorkers\n"
        "async def run():\n"
        "    asyncio.create_task(PromptWorkers().run(time.sleep, 60))\n"
        "    await asyncio.sleep(0.1)\n"
        "asyncio.run(run())\n"
    )
    begun = time.monotonic()
    outcome = run_process(sys.executable, "-c", program)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert time.monotonic() - begun < 30
