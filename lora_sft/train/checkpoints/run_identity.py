"""Check that a start which continues from a checkpoint is the same run.

Equal recipes can still mean other rows (a file was edited), another base (a branch moved on),
another batch (other processes) or other packing (another machine attends in another way). The
manifest of the checkpoint's run and the checkpoint itself record what they were.

A new kind of sameness is one field of `RunIdentity` and one entry of `SAMENESS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lora_sft.errors import ResumeMismatch
from lora_sft.file_names import ORIGIN_FILE
from lora_sft.train.checkpoints.resume import StartingPoint

ANEW = "train anew into another output_dir, or add --overwrite"


@dataclass(frozen=True)
class PackedRows:
    """Whether the training rows are packed, how many rows that makes, and why not if they are not.

    The reason is for messages: it tells no two runs apart.
    """

    is_on: bool
    num_rows: int
    reason: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.num_rows} {'packed' if self.is_on else 'single'} rows"


@dataclass(frozen=True)
class RunIdentity:
    """What two starts must have in common to be the same run; None for what is not known yet.

    Attributes:
        global_batch_size: Rows per optimizer step.
        rows: Fingerprint of the training rows.
        base: Fingerprint of the base's weights; empty if the base has no safetensors files.
        packing: The packing that was decided.
    """

    global_batch_size: int | None = None
    rows: str | None = None
    base: str | None = None
    packing: PackedRows | None = None


@dataclass(frozen=True)
class Sameness:
    """How one field of `RunIdentity` is read back, and what a person is told if it differs.

    Attributes:
        read: Returns what the checkpoint's run recorded, or None if it recorded nothing.
        field: The recipe's field to look at.
        describe: Returns the difference in a sentence, from the old and the new value.
        fix: Returns what to do about it, from the old value.
    """

    read: Callable[[StartingPoint], Any]
    field: str
    describe: Callable[[Any, Any], str]
    fix: Callable[[Any], str]


def check_same_run(start: StartingPoint, identity: RunIdentity) -> RunIdentity:
    """Compare the known fields of `identity` with the checkpoint's run, and return `identity`.

    It is called whenever more is known, so that a difference is found before the next slow stage.

    Raises: ResumeMismatch if a field differs. Without a checkpoint nothing is compared.
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
        f"a step of the checkpoint had {before} rows, and on this number of processes it would "
        f"have {now}"
    )


def _describe_rows(before: str, now: str) -> str:
    return f"the training rows are not those of the checkpoint ({before[:12]} then, {now[:12]} now)"


def _describe_base(before: str, now: str) -> str:
    return (
        f"the base is not the one of the checkpoint ({before[:12]} then, "
        f"{now[:12] or 'no safetensors'} now)"
    )


def _describe_packing(before: PackedRows, now: PackedRows) -> str:
    reason = f" ({now.reason})" if now.reason else ""
    return f"the checkpoint was trained on {before}, and this start would train on {now}{reason}"


SAMENESS: Mapping[str, Sameness] = {
    "global_batch_size": Sameness(
        lambda start: start.get_recorded("plan").get("global_batch_size"),
        "train.gradient_accumulation_steps",
        _describe_batch,
        lambda before: (
            f"write train.global_batch_size: {before} in place of train.gradient_accumulation_steps"
        ),
    ),
    "rows": Sameness(
        lambda start: start.get_recorded("data").get("fingerprint"),
        "data.datasets",
        _describe_rows,
        lambda _: f"put the data back, {ANEW}",
    ),
    "base": Sameness(
        _read_base,
        "model.model_name_or_path",
        _describe_base,
        lambda _: (
            "put the base back (without model.revision a hub model is what its main branch is), "
            f"{ANEW}"
        ),
    ),
    "packing": Sameness(
        _read_packing,
        "data.packing",
        _describe_packing,
        lambda _: f"continue on a machine whose model attends as it did then, {ANEW}",
    ),
}
assert list(SAMENESS) == [each.name for each in fields(RunIdentity)]
