"""Prepare the source rows of all subjects with one contestant, and measure it in this process.

`python -m benchmarks.cpu.data_preparation_worker lora-sft|stages|budget|trl TOKENIZER TEMPLATE
SUBJECT=ROWS...` prints `{subject: {"values": ..., "facts": ...}}`. `stages` measures lora-sft
between two runs of the tokenizer, with the share of each stage. `budget` measures it with and
without the budget of the chat template. The facts hold digests of the rows
that do not depend on their order, so the contestants can be compared without keeping their rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.cpu.block_cost import BlockCost
from benchmarks.cpu.data_folder import MAX_LENGTH_TOKENS
from benchmarks.cpu.sampling import Sample
from benchmarks.cpu.stages import OTHER, StageClock
from benchmarks.documents import IGNORED_LABEL

NUM_WARM_UP_ROWS = 8
BUDGET_PAIRS = 5  # preparations with the budget, and as many without
STOP, NEWLINE = "<|im_end|>", "\n"

# The stage to which the CPU time of each file belongs. The file of the stage "tokenise" is in
# transformers, the others are in lora-sft.
STAGE_OF_FILE = {
    "file_rows.py": "read",
    "plain_json.py": "read",
    "row_sources.py": "read",
    "splits.py": "hash",
    "example_hash.py": "hash",
    "row_formats.py": "convert",
    "messages.py": "convert",
    "rendering.py": "render",
    "template_environment.py": "render",
    "plain_data.py": "render",
    "render_budget.py": "render",
    "limited_functions.py": "render",
    "tokenization_utils_tokenizers.py": "tokenise",
    "chat_label_rule.py": "check",
    "content_survival.py": "check",
    "token_spans.py": "label",
    "labelled_row.py": "label",
    "split_files.py": "write",
}

# Arguments: a file of source rows, and whether to use the tokenizer's own template, which rewrites
# history.
Prepare: TypeAlias = Callable[[Path, bool], Sample]
Array: TypeAlias = NDArray[Any]
# The token ids of a labelled row, and its labels or None.
LabelledRow: TypeAlias = tuple[Sequence[int], Sequence[int] | None]


def main(kind: str, tokenizer: str, template: str, *subjects: str) -> None:
    """Warm up, prepare the rows of each subject and print the costs."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # `datasets` reads it when it is imported
        makers: dict[str, Callable[[Path, Path, Path, Path], Prepare]] = {
            "lora-sft": make_lora_sft_prepare,
            "stages": make_lora_sft_stages,
            "budget": make_lora_sft_budget,
            "trl": make_trl_prepare,
        }
        pairs = [subject.split("=", 1) for subject in subjects]
        warm_up_rows = _write_first_rows(Path(pairs[0][1]), Path(folder) / "warm_up.jsonl")
        prepare = makers[kind](Path(tokenizer), Path(template), Path(folder), warm_up_rows)
        fixed = {"eight_rows_cpu_seconds": prepare(warm_up_rows, False).values["cpu_seconds"]}
        samples = {name: prepare(Path(path), "rewritten" in name) for name, path in pairs}
    answer = {
        name: {"values": {**each.values, **fixed}, "facts": each.facts}
        for name, each in samples.items()
    }
    print(json.dumps(answer))


def make_lora_sft_prepare(
    tokenizer_folder: Path,
    template: Path,
    folder: Path,
    warm_up_rows: Path,
    clock: AbstractContextManager[Any] | None = None,
) -> Prepare:
    """Return a function that prepares rows with lora-sft. It has prepared the warm-up rows.

    It reads a recipe and loads the tokenizer. Then it times `build_corpus`, as `pipeline.load_data`
    calls it.
    """
    from lora_sft.data.corpus.building import build_corpus
    from lora_sft.data.templates.tokenizer import find_stop_token_ids, load_tokenizer
    from lora_sft.recipe import read_recipe

    def prepare(rows: Path, own_template: bool) -> Sample:
        path = _write_recipe(folder, tokenizer_folder, rows, None if own_template else template)
        recipe = read_recipe(path)
        tokenizer = load_tokenizer(recipe.model, recipe.tokenizer, recipe.data)
        stops = find_stop_token_ids(tokenizer, recipe.model, recipe.data.stop_tokens)
        with clock or nullcontext(), BlockCost() as cost:
            corpus = build_corpus(recipe.data, tokenizer, stops)
        account = corpus.accounts["train"]
        return _describe(
            cost,
            corpus.train,
            tokenizer,
            source_rows_kept=account.kept,
            source_rows_read=account.read,
        )

    prepare(warm_up_rows, False)
    return prepare


def make_lora_sft_stages(
    tokenizer: Path, template: Path, folder: Path, warm_up_rows: Path
) -> Prepare:
    """Return a function that prepares rows with lora-sft and measures its stages.

    It also runs the tokenizer on the same texts, directly before and after lora-sft and in the same
    process. Some machines change their speed within seconds, so only runs that follow each other
    closely can be compared.
    """
    clock = StageClock(STAGE_OF_FILE)
    whole = make_lora_sft_prepare(tokenizer, template, folder, warm_up_rows, clock)
    tokenise = make_bare_tokenizer(tokenizer, template, warm_up_rows)

    def prepare(rows: Path, own_template: bool) -> Sample:
        clock.cpu_seconds.clear()
        before, digest = tokenise(rows, own_template)
        cost = whole(rows, own_template)
        after, _ = tokenise(rows, own_template)
        rate = (before + after) / 2 / cost.values["cpu_seconds"]
        shares = {name: clock.shares.get(name, 0.0) for name in {*STAGE_OF_FILE.values(), OTHER}}
        shown = {f"{name}_share": each for name, each in shares.items()}
        is_same = digest == cost.facts["tokens_sha256"]
        values = {**cost.values, "rate_of_bare_tokenizer": rate, **shown}
        return Sample(values, {"same_rows_and_tokens_as_the_tokenizer": is_same})

    return prepare


def make_lora_sft_budget(
    tokenizer: Path, template: Path, folder: Path, warm_up_rows: Path
) -> Prepare:
    """Return a function that prepares rows with lora-sft, in turns with the budget and without."""
    rendering: Any = import_module("lora_sft.data.templates.rendering")
    with_budget = rendering.compile_template
    whole = make_lora_sft_prepare(tokenizer, template, folder, warm_up_rows)
    compilers: dict[str, Any] = {"with": with_budget, "without": compile_without_budget}

    def prepare(rows: Path, own_template: bool) -> Sample:
        samples: dict[str, list[Sample]] = {name: [] for name in compilers}
        for turn in range(BUDGET_PAIRS):
            for name in sorted(compilers, reverse=bool(turn % 2)):
                rendering.compile_template = compilers[name]
                samples[name].append(whole(rows, own_template))
        rendering.compile_template = with_budget
        ratios = [
            one.values["cpu_seconds"] / other.values["cpu_seconds"]
            for one, other in zip(samples["with"], samples["without"], strict=True)
        ]
        labels = {each.facts["labels_sha256"] for each in samples["with"] + samples["without"]}
        values = {**samples["with"][0].values, "ratio_to_no_budget": median(ratios)}
        return Sample(values, {"same_labels_without_budget": len(labels) == 1})

    return prepare


@cache
def compile_without_budget(text: str) -> Any:
    """Return a template that renders without a budget."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    from lora_sft.data.templates.plain_data import PlainDataEnvironment
    from lora_sft.data.templates.template_environment import compile_template

    reference = _compile_jinja_template("").environment
    environment = PlainDataEnvironment(
        trim_blocks=reference.trim_blocks,
        lstrip_blocks=reference.lstrip_blocks,
        extensions=list(map(type, compile_template(text).environment.extensions.values())),
    )
    environment.filters.update(reference.filters)
    environment.globals.update(reference.globals)
    template = environment.from_string(text)
    template.globals = dict(template.globals)
    return template


def make_trl_prepare(
    tokenizer_folder: Path, template: Path, folder: Path, warm_up_rows: Path
) -> Prepare:
    """Return a function that prepares rows as TRL's trainer does.

    The trainer prepares the warm-up rows when it is constructed.
    """
    from datasets import Dataset, load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        assistant_only_loss=True,
        max_length=MAX_LENGTH_TOKENS,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )

    def read(rows: Path) -> Dataset:
        return load_dataset("json", data_files=str(rows), split="train")

    trainer = SFTTrainer(
        LlamaForCausalLM(config),
        arguments,
        processing_class=tokenizer,
        train_dataset=read(warm_up_rows),
    )

    assert trainer.chat_template == template.read_text(), "TRL must use the same template"

    def prepare(rows: Path, own_template: bool) -> Sample:
        assert not own_template, "TRL always replaces Qwen3's template"
        with BlockCost() as cost:
            read_rows = read(rows)
            prepared = trainer._prepare_dataset(
                read_rows, tokenizer, arguments, False, None, "train"
            )
        return _describe(
            cost,
            prepared,
            tokenizer,
            source_rows_kept=len(prepared),
            source_rows_read=len(read_rows),
        )

    return prepare


def make_bare_tokenizer(
    tokenizer_folder: Path, template: Path, warm_up_rows: Path
) -> Callable[[Path, bool], tuple[float, str]]:
    """Return a function that times only the tokenizer, with its fastest call, on rendered texts.

    The function returns the CPU seconds and a digest of the rows.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    training_template = template.read_text()

    def tokenise(rows: Path, own_template: bool) -> tuple[float, str]:
        chats = [json.loads(line)["messages"] for line in rows.read_text().splitlines()]
        texts = [
            tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=None if own_template else training_template
            )
            for chat in chats
            for messages in (_list_served(chat) if own_template else [chat])
        ]
        with BlockCost() as cost:
            encodings = tokenizer.backend_tokenizer.encode_batch_fast(
                texts, add_special_tokens=False
            )
        return cost.values["cpu_seconds"], _hash([np.asarray(each.ids) for each in encodings])

    tokenise(warm_up_rows, False)
    return tokenise


def _list_served(chat: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """Return, for each answer, the conversation up to and including it, as it is served."""
    return [chat[: index + 1] for index, each in enumerate(chat) if each["role"] == "assistant"]


def _write_first_rows(rows: Path, path: Path) -> Path:
    lines = rows.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:NUM_WARM_UP_ROWS]))
    return path


def _write_recipe(folder: Path, tokenizer: Path, rows: Path, template: Path | None) -> Path:
    data: dict[str, Any] = {
        "datasets": [{"path": str(rows), "format": "messages"}],
        "loss_on": "assistant",
        "max_length": MAX_LENGTH_TOKENS,
        "chat_template": None if template is None else str(template),
    }
    recipe = {
        "model": {"model_name_or_path": str(tokenizer)},  # only its tokenizer is read
        "data": data,
        "output_dir": str(folder / "run"),
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def _describe(cost: BlockCost, dataset: Any, tokenizer: Any, **facts: int) -> Sample:
    rows = zip(dataset["input_ids"], dataset["labels"], strict=True)
    sample = _make_sample(cost, rows, tokenizer)
    return Sample(sample.values, {**facts, **sample.facts})


def _make_sample(cost: BlockCost, rows: Iterable[LabelledRow], tokenizer: Any) -> Sample:
    """Return the cost, with counts of the rows and digests of their ids and labels as facts."""
    stop = tokenizer.convert_tokens_to_ids(STOP)
    newline = tokenizer.encode(NEWLINE, add_special_tokens=False)[-1]
    kept = list(rows)
    all_ids = [np.asarray(ids) for ids, _ in kept]
    all_labels = [np.asarray(labels) for _, labels in kept if labels is not None]
    tokens = sum(len(ids) for ids in all_ids)
    values = {**cost.values, "tokens_per_cpu_second": tokens / cost.values["cpu_seconds"]}
    facts = {"rows": len(kept), "tokens": tokens, "tokens_sha256": _hash(all_ids)}
    if all_labels:
        facts |= _describe_labels(all_ids, all_labels, stop, newline)
    return Sample(values, facts)


def _describe_labels(
    all_ids: Sequence[Array], all_labels: Sequence[Array], stop: int, newline: int
) -> dict[str, Any]:
    pairs = zip(all_ids, all_labels, strict=True)
    without = [_unlearn_newlines(ids, labels, stop, newline) for ids, labels in pairs]
    learned = sum(_count_learned(labels) for labels in all_labels)
    return {
        "learned_tokens": learned,
        "learned_newlines": learned - sum(_count_learned(labels) for labels in without),
        "labels_sha256": _hash(all_labels),
        "labels_but_newlines_sha256": _hash(without),
    }


def _unlearn_newlines(ids: Array, labels: Array, stop: int, newline: int) -> Array:
    """Return the labels without the newlines that directly follow a stop token."""
    follows_stop = np.concatenate([[False], ids[:-1] == stop])
    return np.where(follows_stop & (labels == newline), IGNORED_LABEL, labels)


def _count_learned(labels: Array) -> int:
    return int((labels != IGNORED_LABEL).sum())


def _hash(rows: Sequence[Array]) -> str:
    """Return one digest of all rows that does not depend on their order."""
    digests = sorted(hashlib.sha256(row.astype(np.int64).tobytes()).digest() for row in rows)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


if __name__ == "__main__":
    main(*sys.argv[1:])
