"""The contestants: training libraries that train the same model on the same documents.

Each trains a rank-16 LoRA adapter on all linear layers, so that all do the same work. All other
settings are the library's defaults or its best settings, as the contestant's name says.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from benchmarks.contestants.job import Job, Run
from benchmarks.record import Role


@dataclass(frozen=True)
class Contestant:
    """One training library with one set of settings.

    Attributes:
        module: The module of this package that builds the run. It is imported only when needed,
            because some libraries patch others.
        builder: The function of that module.
        tree: The set of packed wheels that it runs with (see tools/gpu/pack.py).
    """

    name: str
    role: Role
    module: str
    builder: str = "build"
    needs_cuda: bool = False
    tree: str = "wheels"

    def build(self, job: Job) -> Run:
        """Build this contestant's training run for a job."""
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
