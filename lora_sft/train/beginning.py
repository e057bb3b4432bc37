"""Prepare the run directory for the first step, after all checks have passed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_sft.log import say
from lora_sft.processes.meeting import meet
from lora_sft.processes.this_process import Processes
from lora_sft.processes.watch import Watch
from lora_sft.train import zero
from lora_sft.train.checkpoints.conditions import list_other_conditions
from lora_sft.train.checkpoints.resume import StartingPoint
from lora_sft.train.checkpoints.signing import identify_key, prepare_key, warn_of_other_keys
from lora_sft.train.training_job import TrainingJob
from lora_sft.written_files import remove_run


def begin_run(
    job: TrainingJob,
    start: StartingPoint,
    manifest: Mapping[str, Any],
    watch: Watch | None,
    processes: Processes,
) -> None:
    """Remove the old run if the user asked for it, convert the checkpoint, write the manifest.

    Only rank 0 does this. Before it, all processes wait until each has read the old run. After it,
    they wait again, so that no process reads the old files.

    The manifest is written first: it marks the other files as those of a run.

    Continuing a DeepSpeed run needs the user's key. So rank 0 makes it if there is none, and the
    other processes check that they have the same one.
    """
    needs_key = job.arguments.deepspeed is not None and job.arguments.save_strategy != "no"
    if needs_key and processes.is_main:
        prepare_key()
    meet(watch, "model")
    if processes.is_main:
        if start.discard:
            remove_run(job.run)
        job.run.clear_status()
        if start.checkpoint is not None and start.needs_conversion(processes.world_size):
            say(f"converting {start.checkpoint.name}: another number of processes wrote it")
            zero.convert_to_universal(start.checkpoint)
    keys = meet(watch, "start", identify_key() if needs_key else None)
    if needs_key:
        warn_of_other_keys(keys)
    if start.checkpoint is not None:
        say(f"continuing from {start.checkpoint}")
        others = list_other_conditions(start.recorded, manifest)
        if others:
            say(f"this start differs from the one before (rounding may too): {', '.join(others)}")
    if processes.is_main:
        job.run.write_manifest({"id": start.run_id, **manifest})
        job.run.write_recipe(job.recipe.resolved_text())
