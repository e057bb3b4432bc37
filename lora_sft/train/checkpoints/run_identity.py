"""Check that a start which continues from a checkpoint is the same run.

Two starts of one recipe can still differ. A data file was edited, or the base model's branch on the
hub has changed. Another world size gives another batch, and another attention gives other packing.
The checkpoint and the manifest of its run record the old values. A value that the run did not
record, because an earlier version of lora-sft began it, is not compared.

To add a check, add a field to `RunIdentity` and an entry to `SAMENESS`, and record the value in
`make_manifest`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import tokenizers

from lora_sft.errors import ResumeMismatch
from lora_sft.file_names import ORIGIN_FILE
from lora_sft.model_files.base_record import keep_effective
from lora_sft.train.checkpoints.resume import StartingPoint, flatten

NEW_RUN = "start a new run in another output_dir, or add --overwrite"
OLD_BASE = (
    "restore the old base model (set model.revision: without it a hub model changes with its main "
    f"branch), {NEW_RUN}"
)
SHOWN_CHANGES = 8
HASH_DIGITS = 12


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
        validation: Fingerprint of the validation rows, which choose the best checkpoint.
        template: Hash of the chat template's text.
        tokenizer: Hash of the tokenizer.
        base: Fingerprint of the base model's weights; empty if it has no safetensors files. It
            reads a sample of the weights, and every checkpoint has it.
        config: The fields of the base's config that change a number.
        weights: Hash of each file of the base's weights.
        code: Hash of each Python file of the base, if they run.
        packing: The decision about packing.
    """

    global_batch_size: int | None = None
    rows: str | None = None
    validation: str | None = None
    template: str | None = None
    tokenizer: str | None = None
    base: str | None = None
    config: Mapping[str, Any] | None = None
    weights: Mapping[str, str] | None = None
    code: Mapping[str, str] | None = None
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


def _read_fingerprint(split: str) -> Callable[[StartingPoint], str | None]:
    def read(start: StartingPoint) -> str | None:
        fingerprints: Mapping[str, str] = start.get_recorded("data").get("fingerprints") or {}
        return fingerprints.get(split)

    return read


def _read_tokenizer(start: StartingPoint) -> str | None:
    """Return the recorded hash, if the same version of the library wrote the hashed text."""
    recorded = start.get_recorded("tokenizer")
    is_comparable = recorded.get("tokenizers") == tokenizers.__version__
    return recorded.get("sha256") if is_comparable else None


def _read_config(start: StartingPoint) -> dict[str, Any] | None:
    config = start.get_recorded("base").get("config")
    return None if config is None else keep_effective(config)


def _describe_hash(what: str) -> Callable[[str, str], str]:
    def describe(before: str, now: str) -> str:
        old = before[:HASH_DIGITS]
        new = now[:HASH_DIGITS] or "without safetensors files"
        return f"{what} of the checkpoint (old {old}, new {new})"

    return describe


def _describe_changes(what: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], str]:
    def describe(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
        old, new = dict(flatten(before)), dict(flatten(now))
        names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        shown = [f"{name}: {_show(old, name)} -> {_show(new, name)}" for name in names]
        more = len(shown) - SHOWN_CHANGES
        rest = [f"and {more} more"] if more > 0 else []
        return f"{what} of the checkpoint: {'; '.join([*shown[:SHOWN_CHANGES], *rest])}"

    return describe


def _show(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "not there"


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
        _describe_hash("the training rows are not those"),
        lambda _: f"restore the old data, {NEW_RUN}",
    ),
    "validation": Sameness(
        _read_fingerprint("validation"),
        "data.validation",
        _describe_hash("the validation rows, which choose the best checkpoint, are not those"),
        lambda _: f"restore the old data, {NEW_RUN}",
    ),
    "template": Sameness(
        lambda start: start.get_recorded("data").get("template_sha256"),
        "data.chat_template",
        _describe_hash("the chat template is not that"),
        lambda _: f"restore the old chat template, {NEW_RUN}",
    ),
    "tokenizer": Sameness(
        _read_tokenizer,
        "tokenizer.path, model.model_name_or_path",
        _describe_hash("the tokenizer is not that"),
        lambda _: f"restore the old tokenizer, {NEW_RUN}",
    ),
    "base": Sameness(
        _read_base,
        "model.model_name_or_path",
        _describe_hash("the base model is not that"),
        lambda _: OLD_BASE,
    ),
    "config": Sameness(
        _read_config,
        "model.model_name_or_path",
        _describe_changes("the config of the base model is not that"),
        lambda _: OLD_BASE,
    ),
    "weights": Sameness(
        lambda start: start.get_recorded("base").get("weights"),
        "model.model_name_or_path",
        _describe_changes("the weights of the base model are not those"),
        lambda _: OLD_BASE,
    ),
    "code": Sameness(
        lambda start: start.get_recorded("base").get("code"),
        "model.trust_remote_code",
        _describe_changes("the Python code of the base model is not that"),
        lambda _: OLD_BASE,
    ),
    "packing": Sameness(
        _read_packing,
        "data.packing",
        _describe_packing,
        lambda _: f"continue with the same attention and kind of machine as before, {NEW_RUN}",
    ),
}
assert list(SAMENESS) == [each.name for each in fields(RunIdentity)]
