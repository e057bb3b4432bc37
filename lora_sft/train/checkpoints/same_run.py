"""Would going on from a checkpoint be the same run? What the recipe alone does not decide.

Equal recipes can still mean other rows (the files were edited), another base (a branch moved on),
another step (other processes) or other packing (another machine attends otherwise). The manifest of
the checkpoint's run says what they were, and the checkpoint which base it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lora_sft.errors import ResumeMismatch
from lora_sft.file_names import ORIGIN_FILE
from lora_sft.plan.batch import BatchPlan
from lora_sft.train.checkpoints.resume import StartingPoint
from lora_sft.train.packing import Packing


def check_same_rows(start: StartingPoint, fingerprint: str) -> None:
    """Raises: ResumeMismatch where the data changed since the checkpoint was written."""
    before = start.get_recorded("data").get("fingerprint")
    if start.checkpoint is None or before in (None, fingerprint):
        return
    raise ResumeMismatch(
        f"the training rows are not those of the checkpoint ({before[:12]} then, "
        f"{fingerprint[:12]} now)",
        f"{start.checkpoint}  data.datasets",
        "put the data back, train anew into another output_dir, or add --overwrite",
    )


def check_same_base(start: StartingPoint, fingerprint: Mapping[str, Any] | None) -> None:
    """Raises: ResumeMismatch where other weights lie now where the recipe's base was.

    Going on would also vouch for them: the adapter would be said to belong to the base of now.
    """
    before = _read_base_fingerprint(start)
    if before is None or before["sha256"] == (fingerprint or {}).get("sha256"):
        return
    now = fingerprint["sha256"][:12] if fingerprint else "no safetensors"
    raise ResumeMismatch(
        f"the base is not the one of the checkpoint ({before['sha256'][:12]} then, {now} now)",
        f"{start.checkpoint}  model.model_name_or_path",
        "put the base back (without model.revision a hub model is what its main branch is), train "
        "anew into another output_dir, or add --overwrite",
    )


def _read_base_fingerprint(start: StartingPoint) -> dict[str, Any] | None:
    """What the checkpoint says of its base; None where it could not be read then, or no start."""
    if start.checkpoint is None or not (start.checkpoint / ORIGIN_FILE).exists():
        return None
    origin = json.loads((start.checkpoint / ORIGIN_FILE).read_text(encoding="utf-8"))
    recorded: dict[str, Any] | None = origin.get("base_fingerprint")
    return recorded


def check_same_batch(start: StartingPoint, batch: BatchPlan) -> None:
    """Raises: ResumeMismatch where the accumulation stands in the recipe and the processes are
    others, so that a step would be of another size."""
    before = start.get_recorded("plan").get("global_batch_size")
    if start.checkpoint is None or before in (None, batch.global_batch_size):
        return
    raise ResumeMismatch(
        f"a step of the checkpoint had {before} rows, and on {batch.world_size} processes it would "
        f"have {batch.global_batch_size}",
        f"{start.checkpoint}  train.gradient_accumulation_steps",
        f"write train.global_batch_size: {before} in place of train.gradient_accumulation_steps",
    )


def check_same_packing(start: StartingPoint, packing: Packing) -> None:
    """Raises: ResumeMismatch where `data.packing: auto` decides otherwise than it did before."""
    before = start.get_recorded("plan").get("packing") or {"on": False, "rows": len(packing.rows)}
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
