"""Write what a run begins with, once everything that can be wrong is known to be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_sft.log import say
from lora_sft.processes.meeting import meet
from lora_sft.processes.this_process import Processes
from lora_sft.processes.watch import Watch
from lora_sft.run_directory import write_json, write_text_atomically
from lora_sft.train import zero
from lora_sft.train.checkpoints.resume import StartingPoint, remove_run
from lora_sft.train.training_job import TrainingJob


def begin_run(
    job: TrainingJob,
    start: StartingPoint,
    manifest: Mapping[str, Any],
    watch: Watch | None,
    processes: Processes,
) -> None:
    """Clear what the user gave up, convert a checkpoint of other processes, write the manifest.

    All processes meet before and after: before it every process has looked at the old run, and
    after it none of them finds the old run.
    """
    meet(watch, "model")
    if processes.is_main:
        if start.discard:
            remove_run(job.run)
        job.run.clear_status()
        if start.checkpoint is not None and start.needs_conversion(processes.world_size):
            say(f"{start.checkpoint.name} was written by another number of processes: converting")
            zero.convert_to_universal(start.checkpoint)
    meet(watch, "start")
    if start.checkpoint is not None:
        say(f"going on from {start.checkpoint}")
    if processes.is_main:
        write_text_atomically(job.run.recipe, job.recipe.resolved_text())
        write_json(job.run.manifest, {"id": start.run_id, **manifest})
