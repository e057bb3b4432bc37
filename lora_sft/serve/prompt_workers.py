"""Run the preparation of prompts on threads of its own, each for a limited time.

A chat template is a program. On the event loop, it would stop every other request, and also
`/health` and the signals. The threads are daemons: the process does not wait for them at its end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from fastapi import HTTPException

MAX_PROMPTS_AT_ONCE = 4
PROMPT_SECONDS = 20

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class PromptWorkers:
    """A few threads that take jobs from one queue.

    Python cannot end a thread. A job that exceeds its time keeps its thread until it ends.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        for _ in range(MAX_PROMPTS_AT_ONCE):
            threading.Thread(target=self._work, daemon=True).start()

    async def run(
        self,
        function: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Return the result of the function, or raise its error.

        Raises: HTTPException (400) if the function takes too long, so that clients do not repeat
            the request. HTTPException (503) if no thread became free for it.
        """
        job: Future[Result] = Future()
        self._jobs.put((job, partial(function, *arguments, **named)))
        try:
            async with asyncio.timeout(PROMPT_SECONDS):
                return await asyncio.wrap_future(job)
        except TimeoutError as error:
            if job.cancelled():
                raise HTTPException(503, "the server is busy with other prompts") from error
            message = f"the prompt was not ready after {PROMPT_SECONDS} seconds; send a shorter one"
            raise HTTPException(400, message) from error

    def _work(self) -> None:
        while True:
            _run_job(*self._jobs.get())


def _run_job(job: Future[Any], call: Callable[[], Any]) -> None:
    if not job.set_running_or_notify_cancel():
        return  # the client has left, or its time is over
    try:
        result = call()
    except BaseException as error:
        job.set_exception(error)
    else:
        job.set_result(result)
