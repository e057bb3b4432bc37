"""The contestants: each builds a training run of the same model on the same documents.

All train rank-16 LoRA on every linear layer, so that they do the same work; everything else is
what the contestant's name says (its defaults, or its best settings).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from benchmarks.contestants.job import Job, Run
from benchmarks.record import Role


@dataclass(frozen=True)
class Contestant:
    """A name, what it is to us, and where its builder is (imported only when it is its turn)."""

    name: str
    role: Role
    module: str
    builder: str = "build"
    needs_cuda: bool = False
    tree: str = "wheels"  # the packed libraries it runs with (tools/gpu/pack.py)

    def build(self, job: Job) -> Run:
        """Build its run of a job."""
        module = importlib.import_module(f"benchmarks.contestants.{self.module}")
        run: Run = getattr(module, self.builder)(job)
        return run


LORA_SFT = Contestant("lora-sft", "ours", "lora_sft_run")
TRL_DEFAULT = Contestant("TRL, its defaults", "peer", "trl_run", "build_default")
TRL_TUNED = Contestant("TRL, tuned", "peer", "trl_run", "build_tuned")
PLAIN_LOOP = Contestant("plain PEFT loop", "peer", "plain_loop")
UNSLOTH = Contestant(
    "unsloth, its defaults", "peer", "unsloth_run", needs_cuda=True, tree="unsloth"
)

CONTESTANTS = {each.name: each for each in (LORA_SFT, TRL_DEFAULT, TRL_TUNED, PLAIN_LOOP, UNSLOTH)}
