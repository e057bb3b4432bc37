"""Find the folder of real data, and write the source rows of each subject from it.

All contestants read the same file. Its rows are conversations in the `messages` format, far shorter
than `MAX_LENGTH_TOKENS`, so that no contestant drops or cuts a row. The rows are chosen with a
fixed seed.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT

FOLDER_VARIABLE = "LORA_SFT_DATA"
CHATS = "multi-turn chats"
QUESTIONS = "question and answer"
TOKENIZER = Path("tokenizers", "qwen3")
MAX_LENGTH_TOKENS = 2048
# In English this is far below 2,048 tokens, even with the text that the template adds.
LONGEST_CHAT_CHARACTERS = 6_000
NUM_QUESTIONS = 2_000
NUM_TOY_ROWS = 24
SEED = 0

Messages = list[dict[str, str]]


def find_data_folder() -> Path | None:
    """Return the folder in `LORA_SFT_DATA`, else `shared/data` beside the repository, else None."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def write_row_files(data: Path, folder: Path, toy: bool) -> dict[str, Path]:
    """Write one JSON-lines file per subject to `folder`. Return the files by subject."""
    choices = {CHATS: _choose_chats(data), QUESTIONS: _choose_questions(data)}
    files = {}
    for subject, rows in choices.items():
        files[subject] = folder / f"{subject.replace(' ', '_')}.jsonl"
        kept = rows[:NUM_TOY_ROWS] if toy else rows
        files[subject].write_text("".join(json.dumps({"messages": row}) + "\n" for row in kept))
    return files


def _choose_chats(data: Path) -> list[Messages]:
    """Return short ShareGPT conversations and longer OpenAssistant threads, shuffled."""
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
    """Yield each branch of each message tree, from the prompt to the branch's last answer."""
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
    """Return messages from texts in which user and assistant take turns."""
    return [
        {"role": "assistant" if index % 2 else "user", "content": text}
        for index, text in enumerate(texts)
    ]


def _count_characters(row: Messages) -> int:
    return sum(len(message["content"]) for message in row)
