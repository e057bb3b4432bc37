"""What it costs to make tokens and labels of rows on disk, one process, one thread.

Everyone has the same rows, the same Qwen3 tokenizer and one chat template: TRL replaces Qwen3's
own by its training twin (which never rewrites history) when asked for `assistant_only_loss`, so
lora-sft is given that same twin. Then both make the same tokens. Their labels differ in one thing,
which `facts` proves row by row: TRL also learns the newline after each answer's stop token, which
no served model has to produce.

With Qwen3's own template history is rewritten, and lora-sft makes a row of each answer as it is
served (`rewritten_history: expand`). That is other work, hence another subject; TRL has none of it.

Counted is the work alone, from the file to the data set (lora-sft: `build_corpus`; TRL:
`load_dataset` and `SFTTrainer._prepare_dataset`), after eight rows to warm up. Imports, the
tokenizer and the model are not counted. What has to be paid whatever the number of rows is in
"eight_rows_cpu_seconds": eight rows, prepared a second time. (TRL's is large: `datasets` hashes
the tokenizer to name its cache file.) Each round starts new processes, with a new, empty cache.
`data_stages` compares with the tokenizer alone.
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
    QUESTIONS,
    TOKENIZER,
    VARIABLE,
    find_data_folder,
    write_row_files,
)
from benchmarks.cpu.sampling import Contestant, Sample, run_sampling_worker, take_turns
from benchmarks.record import Case

MEASURE = "data_preparation"
REWRITTEN = "multi-turn chats, history rewritten"
REPEATS = 3

OURS, PEER = "lora-sft", "TRL"
NO_DATA = f"needs the data folder {VARIABLE}"
NOT_REWRITTEN = (
    "TRL replaces the template by one that does not rewrite history: see multi-turn chats"
)
SAME_LABELS = "the same tokens are learned"
MORE_NEWLINES = (
    "the same tokens are learned, but for the newline after an answer's stop token: TRL learns it "
    "({count} of them), lora-sft does not, as no served model has to produce it"
)
OTHER_LABELS = "UNEXPLAINED: other tokens are learned, beyond the newline after a stop token"


def measure(toy: bool) -> Iterator[Case]:
    """All subjects; skipped, with its reason, where the data folder is missing."""
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
    """The training twin of Qwen3's template that TRL ships, found without importing TRL."""
    trl = importlib.util.find_spec("trl")
    package = Path(trl.origin).parent if trl and trl.origin else Path("trl")
    return package / "chat_templates" / "qwen3_training.jinja"


def _compare(cases: Sequence[Case]) -> Iterator[Case]:
    """Every case with what its facts say beside lora-sft's of the same subject."""
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
