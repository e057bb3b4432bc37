"""Check that a start which continues from a checkpoint is the same run.

Two starts of one recipe can still differ. A data file was edited, or the base model's branch on the
hub has changed. Another world size gives another batch, and another attention gives other packing.
The checkpoint and the manifest of its run record the old values.

To add a check, add a field to `RunIdentity` and an entry to `SAMENESS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lora_sft.errors import ResumeMismatch
from lora_sft.file_names import ORIGIN_FILE
from lora_sft.train.checkpoints.resume import StartingPoint

NEW_RUN = "start a new run in another output_dir, or add --overwrite"


@dataclass(frozen=True)
class PackedRows:
    """The decision about packing, as far as two starts of a run must agree on it.

    Attributes:
        is_packed: Whether the training rows are packed.
        num_rows: The number of rows to train on.
        reason: Why the rows are not packed. It is for messages and is not compared.
    """

    is_packed: bool
    num_rows: int
    reason: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.num_rows} {'packed' if self.is_packed else 'unpacked'} rows"


@dataclass(frozen=True)
class RunIdentity:
    """The values that must be equal in two starts of a run; None for a value not known yet.

    Attributes:
        global_batch_size: Rows per optimizer step.
        rows: Fingerprint of the training rows.
        base: Fingerprint of the base model's weights; empty if it has no safetensors files.
        packing: The decision about packing.
    """

    global_batch_size: int | None = None
    rows: str | None = None
    base: str | None = None
    packing: PackedRows | None = None


@dataclass(frozen=True)
class Sameness:
    """How to check one field of `RunIdentity`, and how to report a difference.

    Attributes:
        read: Returns the value that the checkpoint's run recorded; None if it recorded none.
        field: The recipe field that the error names.
        describe: Returns a sentence about the difference, from the old and the new value.
        fix: Returns the fix, from the old value.
    """

    read: Callable[[StartingPoint], Any]
    field: str
    describe: Callable[[Any, Any], str]
    fix: Callable[[Any], str]


def check_same_run(start: StartingPoint, identity: RunIdentity) -> RunIdentity:
    """Compare the known fields of `identity` with the checkpoint's run, and return `identity`.

    It is called each time another value is known, so that a difference is found before the next
    slow stage. Without a checkpoint nothing is compared.

    Raises: ResumeMismatch if a field differs.
    """
    for name, sameness in SAMENESS.items():
        now = getattr(identity, name)
        if start.checkpoint is None or now is None:
            continue
        before = sameness.read(start)
        if before not in (None, now):
            raise ResumeMismatch(
                sameness.describe(before, now),
                f"{start.checkpoint}  {sameness.field}",
                sameness.fix(before),
            )
    return identity


def _read_base(start: StartingPoint) -> str | None:
    assert start.checkpoint is not None
    record = start.checkpoint / ORIGIN_FILE
    if not record.exists():
        return None
    origin = json.loads(record.read_text(encoding="utf-8"))
    fingerprint: Mapping[str, Any] = origin.get("base_fingerprint") or {}
    return fingerprint.get("sha256")


def _read_packing(start: StartingPoint) -> PackedRows | None:
    recorded = start.get_recorded("plan").get("packing")
    return None if recorded is None else PackedRows(recorded["on"], recorded["rows"])


def _describe_batch(before: int, now: int) -> str:
    return (
        f"the checkpoint was trained with {before} rows per step, but this number of processes "
        f"gives {now} rows per step"
    )


def _describe_rows(before: str, now: str) -> str:
    return f"the training rows are not those of the checkpoint (old {before[:12]}, new {now[:12]})"


def _describe_base(before: str, now: str) -> str:
    return (
        f"the base model is not that of the checkpoint (old {before[:12]}, "
        f"new {now[:12] or 'without safetensors files'})"
    )


def _describe_packing(before: PackedRows, now: PackedRows) -> str:
    reason = f" ({now.reason})" if now.reason else ""
    return f"the checkpoint was trained on {before}, but this start would train on {now}{reason}"


SAMENESS: Mapping[str, Sameness] = {
    "global_batch_size": Sameness(
        lambda start: start.get_recorded("plan").get("global_batch_size"),
        "train.gradient_accumulation_steps",
        _describe_batch,
        lambda before: (
            f"write train.global_batch_size: {before} instead of train.gradient_accumulation_steps"
        ),
    ),
    "rows": Sameness(
        lambda start: start.get_recorded("data").get("fingerprint"),
        "data.datasets",
        _describe_rows,
        lambda _: f"restore the old data, {NEW_RUN}",
    ),
    "base": Sameness(
        _read_base,
        "model.model_name_or_path",
        _describe_base,
        lambda _: (
            "restore the old base model (set model.revision: without it a hub model changes with "
            "its main branch), "
            f"{NEW_RUN}"
        ),
    ),
    "packing": Sameness(
        _read_packing,
        "data.packing",
        _describe_packing,
        lambda _: f"continue with the same attention and kind of machine as before, {NEW_RUN}",
    ),
}
assert list(SAMENESS) == [each.name for each in fields(RunIdentity)]
