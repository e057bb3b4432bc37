"""Would going on from a checkpoint be the same run? What the recipe alone does not decide.

Equal recipes can still mean other rows (the files were edited), another step (other processes) or
other packing (another machine attends otherwise). The manifest says what they were.
"""

from __future__ import annotations

from typing import Any

from lora_sft.errors import ResumeMismatch
from lora_sft.plan.batch import BatchPlan
from lora_sft.run_directory import RunDirectory
from lora_sft.train.packing import Packing
from lora_sft.train.resume import StartingPoint


def check_same_rows(run: RunDirectory, start: StartingPoint, fingerprint: str) -> None:
    """Raises: ResumeMismatch where the data changed since the checkpoint was written."""
    before = _recorded(run, "data").get("fingerprint")
    if start.checkpoint is None or before in (None, fingerprint):
        return
    raise ResumeMismatch(
        f"the training rows are not those of the checkpoint ({before[:12]} then, "
        f"{fingerprint[:12]} now)",
        f"{start.checkpoint}  data.datasets",
        "put the data back, train anew into another output_dir, or add --overwrite",
    )


def check_same_batch(run: RunDirectory, start: StartingPoint, batch: BatchPlan) -> None:
    """Raises: ResumeMismatch where the accumulation stands in the recipe and the processes are
    others, so that a step would be of another size."""
    before = _recorded(run, "plan").get("global_batch_size")
    if start.checkpoint is None or before in (None, batch.global_batch_size):
        return
    raise ResumeMismatch(
        f"a step of the checkpoint had {before} rows, and on {batch.world_size} processes it would "
        f"have {batch.global_batch_size}",
        f"{start.checkpoint}  train.gradient_accumulation_steps",
        f"write train.global_batch_size: {before} in place of train.gradient_accumulation_steps",
    )


def check_same_packing(run: RunDirectory, start: StartingPoint, packing: Packing) -> None:
    """Raises: ResumeMismatch where `data.packing: auto` decides otherwise than it did before."""
    before = _recorded(run, "plan").get("packing") or {"on": False, "rows": len(packing.rows)}
    if start.checkpoint is None or (before["on"], before["rows"]) == packing.identity:
        return
    then, now = (
        f"{rows} {'packed' if is_on else 'single'} rows"
        for is_on, rows in ((before["on"], before["rows"]), packing.identity)
    )
    raise ResumeMismatch(
        f"the checkpoint was trained on {then}, and this start would train on {now}"
        + (f" ({packing.reason})" if packing.reason else ""),
        f"{start.checkpoint}  data.packing",
        "go on where the model attends as it did then, train anew into another output_dir, "
        "or add --overwrite",
    )


def _recorded(run: RunDirectory, section: str) -> dict[str, Any]:
    """A section of the manifest; empty where there is none."""
    recorded: dict[str, Any] = (run.read_json(run.manifest) or {}).get(section) or {}
    return recorded
