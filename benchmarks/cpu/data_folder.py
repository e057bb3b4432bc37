"""Find the folder of real data beside the repository, and choose the rows of each subject from it.

Every contestant reads the same file: `messages` rows of user and assistant, none of them near
`MAX_LENGTH_TOKENS`, so that nobody drops or cuts one. The rows are chosen with a seed.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT

VARIABLE = "LORA_SFT_DATA"
CHATS = "multi-turn chats"
QUESTIONS = "question and answer"
TOKENIZER = Path("tokenizers", "qwen3")
MAX_LENGTH_TOKENS = 2048
# Far below 2,048 tokens in English, whatever the template adds.
LONGEST_CHAT_CHARACTERS = 6_000
NUM_QUESTIONS = 2_000
NUM_TOY_ROWS = 24
SEED = 0

Messages = list[dict[str, str]]


def find_data_folder() -> Path | None:
    """The folder that `LORA_SFT_DATA` names, else the one beside the repository, if it is there."""
    folder = Path(os.environ.get(VARIABLE, ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def write_row_files(data: Path, folder: Path, toy: bool) -> dict[str, Path]:
    """One JSON-lines file a subject, in `folder`."""
    choices = {CHATS: _choose_chats(data), QUESTIONS: _choose_questions(data)}
    files = {}
    for subject, rows in choices.items():
        files[subject] = folder / f"{subject.replace(' ', '_')}.jsonl"
        kept = rows[:NUM_TOY_ROWS] if toy else rows
        files[subject].write_text("".join(json.dumps({"messages": row}) + "\n" for row in kept))
    return files


def _choose_chats(data: Path) -> list[Messages]:
    """Short ShareGPT conversations and longer OpenAssistant threads, mixed."""
    threads = {json.dumps(row): row for row in _read_threads(data)}
    rows = [*_read_sharegpt(data), *threads.values()]
    fitting = [row for row in rows if _count_characters(row) <= LONGEST_CHAT_CHARACTERS]
    random.Random(SEED).shuffle(fitting)
    return fitting


def _choose_questions(data: Path) -> list[Messages]:
    lines = (data / "gsm8k" / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = random.Random(SEED).sample(rows, min(NUM_QUESTIONS, len(rows)))
    return [_make_messages([row["question"], row["answer"]]) for row in chosen]


def _read_sharegpt(data: Path) -> Iterator[Messages]:
    rows = json.loads((data / "sharegpt" / "dummy_conversation.json").read_text())
    for row in rows:
        yield _make_messages([turn["value"] for turn in row["conversations"]])


def _read_threads(data: Path) -> Iterator[Messages]:
    """Each way from a tree's prompt to its last answer in that branch."""
    for line in (data / "oasst" / "en_100_tree.jsonl").read_text().splitlines():
        for texts in _walk(json.loads(line)["prompt"], ()):
            with_answer = texts[: len(texts) // 2 * 2]
            if with_answer:
                yield _make_messages(with_answer)


def _walk(node: dict[str, Any], before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    texts = (*before, node["text"])
    replies = node.get("replies", [])
    if not replies:
        yield texts
    for reply in replies:
        yield from _walk(reply, texts)


def _make_messages(texts: Sequence[str]) -> Messages:
    """Texts of a user and an assistant in turns."""
    return [
        {"role": "assistant" if index % 2 else "user", "content": text}
        for index, text in enumerate(texts)
    ]


def _count_characters(row: Messages) -> int:
    return sum(len(message["content"]) for message in row)
