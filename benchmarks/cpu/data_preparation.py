"""Measure the preparation of data, from source rows on disk to tokens and labels, on one thread.

Both contestants have the same rows, the same Qwen3 tokenizer and the same chat template. For
`assistant_only_loss` TRL replaces Qwen3's template by its own variant for training, which never
rewrites history. lora-sft gets that variant too, so both make the same tokens. Their labels differ
in one way: TRL also learns the newline after each answer's stop token. A served model never has to
produce that newline. The facts compare the tokens and the labels of all rows.

Qwen3's own template rewrites history. With it, lora-sft makes one row per answer, as the answer is
served (`rewritten_history: expand`). That is other work, so it is a separate subject. TRL cannot do
it.

Only the work from the file to the data set is timed, after eight warm-up rows. For lora-sft it is
`build_corpus`, for TRL `load_dataset` and `SFTTrainer._prepare_dataset`. Imports and the loading of
tokenizer and model are not timed. "eight_rows_cpu_seconds" is the cost that does not depend on the
number of rows: the same eight rows, prepared a second time. (TRL's is large, because `datasets`
hashes the tokenizer to name its cache file.) Each round starts new processes with an empty cache.
`data_stages` compares lora-sft with the tokenizer.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cpu.data_folder import (
    CHATS,
    FOLDER_VARIABLE,
    QUESTIONS,
    TOKENIZER,
    find_data_folder,
    write_row_files,
)
from benchmarks.cpu.sampling import Contestant, Sample, run_sampling_worker, take_turns
from benchmarks.record import Case

MEASURE = "data_preparation"
REWRITTEN = "multi-turn chats, history rewritten"
REPEATS = 3

OURS, PEER = "lora-sft", "TRL"
NO_DATA = f"set {FOLDER_VARIABLE} to the folder with the real data"
NOT_REWRITTEN = (
    "TRL replaces the template by a template that does not rewrite history (see multi-turn chats)"
)
SAME_LABELS = "both learn the same tokens"
MORE_NEWLINES = (
    "both learn the same tokens, except the newline after an answer's stop token: TRL learns "
    "{count} of them, lora-sft learns none, because a served model never has to produce it"
)
OTHER_LABELS = "UNEXPLAINED: the learned tokens differ in more than newlines after a stop token"


def measure(toy: bool) -> Iterator[Case]:
    """Measure all subjects. Without the data folder, all cases are skipped with that reason."""
    data = find_data_folder()
    if data is None:
        for subject in (CHATS, QUESTIONS, REWRITTEN):
            yield Case(subject, OURS, "ours", status="skipped", reason=NO_DATA)
            yield Case(subject, PEER, "peer", status="skipped", reason=NO_DATA)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = write_row_files(data, Path(folder), toy)
        contestants = _list_contestants(data / TOKENIZER, files)
        cases = list(take_turns(contestants, 1 if toy else REPEATS))
    yield from _compare(cases)


def _list_contestants(tokenizer: Path, files: Mapping[str, Path]) -> Sequence[Contestant]:
    same = [f"{subject}={path}" for subject, path in files.items()]
    rewritten = [f"{REWRITTEN}={files[CHATS]}"]
    template = find_training_template()

    def run(kind: str, subjects: Sequence[str]) -> dict[str, Sample]:
        return run_sampling_worker("data_preparation_worker", kind, tokenizer, template, *subjects)

    subjects = (*files, REWRITTEN)
    return (
        Contestant(OURS, "ours", subjects, partial(run, "lora-sft", [*same, *rewritten])),
        Contestant(
            PEER, "peer", tuple(files), partial(run, "trl", same), {REWRITTEN: NOT_REWRITTEN}
        ),
    )


def find_training_template() -> Path:
    """Return the path of TRL's variant of Qwen3's template, without importing TRL."""
    trl = importlib.util.find_spec("trl")
    package = Path(trl.origin).parent if trl and trl.origin else Path("trl")
    return package / "chat_templates" / "qwen3_training.jinja"


def _compare(cases: Sequence[Case]) -> Iterator[Case]:
    """Yield all cases. A peer's facts then say how its rows differ from lora-sft's."""
    ours = {case.subject: case.facts for case in cases if case.role == "ours"}
    for case in cases:
        if case.role == "ours" or case.status != "measured" or not ours[case.subject]:
            yield case
            continue
        facts = {**case.facts, **_describe_difference(case.facts, ours[case.subject])}
        yield replace(case, facts=facts)


def _describe_difference(facts: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "same_rows_and_tokens_as_lora_sft": facts["tokens_sha256"] == ours["tokens_sha256"]
    }
    if "labels_sha256" in facts:
        described["labels"] = _describe_labels(facts, ours)
    return described


def _describe_labels(facts: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    if facts["labels_sha256"] == ours["labels_sha256"]:
        return SAME_LABELS
    if facts["labels_but_newlines_sha256"] == ours["labels_but_newlines_sha256"]:
        count = facts["learned_newlines"] - ours["learned_newlines"]
        return MORE_NEWLINES.format(count=count)
    return OTHER_LABELS
