"""The seed reproduces the shipped quickstart rows, and no split leaks into another one."""

import importlib
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lora_sft

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(lora_sft.__file__).parent / "quickstart" / "data"
NUM_ROWS = {"train": 3900, "validation": 200, "test": 200}
KEYS = ["intent", "product", "order", "greeting", "urgent"]
INTENTS = {"refund", "exchange", "delivery", "cancel", "invoice"}
OPEN_SLOTS = ("product", "order", "greeting")
MAX_TOTAL_BYTES = 1_500_000


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    return importlib.import_module("build_quickstart_data")


def read_conversations(split: str) -> list[list[dict[str, str]]]:
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def read_answers(split: str) -> list[dict[str, Any]]:
    return [json.loads(messages[-1]["content"]) for messages in read_conversations(split)]


def find_frame(messages: list[dict[str, str]]) -> str:
    """Return the message without its open values: the text that no other split may use."""
    text, answer = messages[0]["content"], json.loads(messages[-1]["content"])
    for slot in OPEN_SLOTS:
        value = answer[slot].removeprefix("Dear ")
        assert text.count(value) == 1
        text = text.replace(value, f"<{slot}>")
    return text.replace(" an <product>", " a <product>")


def test_the_seed_gives_the_shipped_rows_byte_for_byte(tool: ModuleType) -> None:
    files = tool.make_files()
    assert sorted(files) == sorted(f"{split}.jsonl" for split in NUM_ROWS)
    for name, text in files.items():
        assert (DATA / name).read_bytes() == text.encode("utf-8")


def test_no_two_splits_share_an_open_value() -> None:
    num_compared = 0
    for slot in OPEN_SLOTS:
        values = {split: [answer[slot] for answer in read_answers(split)] for split in NUM_ROWS}
        for one, other in itertools.combinations(NUM_ROWS, 2):
            assert not set(values[one]) & set(values[other])
            num_compared += len(values[one]) * len(values[other])
    assert num_compared == 3 * (3900 * 200 + 3900 * 200 + 200 * 200)


def test_no_two_splits_share_a_message_frame() -> None:
    frames = {split: [find_frame(m) for m in read_conversations(split)] for split in NUM_ROWS}
    num_compared = 0
    for one, other in itertools.combinations(NUM_ROWS, 2):
        assert not set(frames[one]) & set(frames[other])
        num_compared += len(frames[one]) * len(frames[other])
    assert num_compared == 3900 * 200 + 3900 * 200 + 200 * 200


def test_a_frame_or_value_in_two_splits_is_refused(tool: ModuleType) -> None:
    examples = tool.make_examples("test")
    assert tool.check_disjoint({"one": examples[:100], "other": []}) > 100
    with pytest.raises(ValueError, match="one and other share"):
        tool.check_disjoint({"one": examples[:100], "other": examples[99:]})


@pytest.mark.parametrize(("split", "num_rows"), NUM_ROWS.items())
def test_each_split_has_the_right_number_of_complete_rows(split: str, num_rows: int) -> None:
    conversations = read_conversations(split)
    assert len(conversations) == num_rows
    assert len({messages[0]["content"] for messages in conversations}) == num_rows
    for messages in conversations:
        assert [message["role"] for message in messages] == ["user", "assistant"]
        answer = json.loads(messages[-1]["content"])
        assert list(answer) == KEYS
        assert answer["intent"] in INTENTS
        assert isinstance(answer["urgent"], bool)
        assert json.dumps(answer) == messages[-1]["content"]


@pytest.mark.parametrize("split", NUM_ROWS)
def test_no_answer_is_so_frequent_that_guessing_it_scores_well(split: str) -> None:
    answers = read_answers(split)
    for key in ("intent", "urgent"):
        counts = [sum(a[key] == v for a in answers) for v in {a[key] for a in answers}]
        assert max(counts) < 0.65 * len(answers)


def test_the_files_stay_small() -> None:
    assert sum((DATA / f"{split}.jsonl").stat().st_size for split in NUM_ROWS) < MAX_TOTAL_BYTES
