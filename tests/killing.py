"""Kill a training run, as `kill -9` does, at an exact moment."""

from __future__ import annotations

import os
import signal

from transformers.trainer_callback import CallbackHandler


def run_until_killed(event: str, step: int, *arguments: object) -> None:
    """Run `lora-sft` in a forked process that kills itself at an event of the trainer.

    Args:
        event: A method of `TrainerCallback`, such as `on_step_begin`.
        step: The optimizer step at which the event counts.
        arguments: The command line.
    """
    child = os.fork()
    if child == 0:
        try:
            _kill_at(event, step)
            from lora_sft.cli.app import run

            run([str(argument) for argument in arguments])
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"the run ended before step {step}"
    assert os.WTERMSIG(status) == signal.SIGKILL


def _kill_at(event: str, step: int) -> None:
    call = getattr(CallbackHandler, event)

    def call_or_die(self, args, state, control, *rest, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(self, args, state, control, *rest, **kwargs)

    setattr(CallbackHandler, event, call_or_die)
