"""Previews without the command line: rows, pieces of text, segments and the histogram."""

from __future__ import annotations

import io
import json
import random

import pytest

from lora_sft.data.corpus.building import build_corpus
from lora_sft.data.labelled_row import Turn, make_labelled_row
from lora_sft.data.preview.page import make_length_chart
from lora_sft.data.preview.shown_rows import Preview, Selection, find_segments, write_document
from lora_sft.data.preview.token_pieces import TokenPieces, make_visible
from tests.data.sections import make_chat, make_data, make_dataset, write_jsonl
from tests.tiny import THINK_DROPPED_FROM_HISTORY, make_tokenizer


def show(data, tokenizer, selection=None):
    """Return the JSON document of a data section."""
    file = io.StringIO()
    stops = frozenset({tokenizer.eos_token_id})
    write_document(Preview(data, tokenizer, stops, selection or Selection()), file)
    return json.loads(file.getvalue())


def test_an_expanded_conversation_gives_rows_in_turn_order(tmp_path):
    answers = [f"<think>hm {n}</think>So it is {n}." for n in range(3)]
    chat = make_chat("What?", answers[0], "And?", answers[1], "Then?", answers[2])
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": chat}])
    tokenizer = make_tokenizer(THINK_DROPPED_FROM_HISTORY)
    data = make_data(make_dataset(path))
    document = show(data, tokenizer)
    assert [row["row"] for row in document["rows"]] == [0, 0, 0]
    assert [row["turns"][0]["message"] for row in document["rows"]] == [1, 3, 5]
    assert document["account"]["expanded"] == 1
    assert document["account"]["rows_out"] == 3
    corpus = build_corpus(data, tokenizer, {tokenizer.eos_token_id})
    assert corpus.train["input_ids"][:] == [row["input_ids"] for row in document["rows"]]


def test_an_expanded_conversation_shows_only_the_rows_that_fit(tmp_path):
    chat = make_chat("What?", "<think>hm</think>So.", "And? " * 60, "<think>hm</think>Never.")
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": chat}])
    data = make_data(make_dataset(path), max_length=80)
    document = show(data, make_tokenizer(THINK_DROPPED_FROM_HISTORY))
    assert [row["turns"][0]["message"] for row in document["rows"]] == [1]
    assert document["account"]["partly_overlong"] == 1


def test_a_pair_that_is_tokenised_separately_is_boundary_and_a_text_has_no_message(tmp_path):
    pairs = [{"prompt": "The quick brown ", "completion": "fox"}]
    texts = [{"text": "The lazy dog."}]
    paths = [
        write_jsonl(tmp_path / "pairs.jsonl", pairs),
        write_jsonl(tmp_path / "texts.jsonl", texts),
    ]
    document = show(make_data(*map(make_dataset, paths)), make_tokenizer())
    pair, text = document["rows"]
    assert pair["built"] == "boundary"
    assert pair["turns"][0]["text"].strip() == "fox<|im_end|>"
    assert text["turns"][0]["message"] is None
    assert text["labels"][0] == -100


def test_a_row_with_half_of_a_surrogate_pair_is_shown_as_malformed(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = {"messages": make_chat("Who?", "I.")}
    bad = json.dumps({"messages": make_chat("Who?", "\ud800")})
    path.write_text(f"{json.dumps(good)}\n{bad}\n")
    document = show(make_data(make_dataset(path)), make_tokenizer())
    assert [row["dropped"] for row in document["rows"]] == [None, "malformed"]


def test_a_split_without_labelled_rows_gives_a_document(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": make_chat("Who?", "I.")}])
    data = make_data(make_dataset(path, repeat=1e-9))
    document = show(data, make_tokenizer())
    assert [row["dropped"] for row in document["rows"]] == ["subsampled"]
    assert show(data, make_tokenizer(), Selection(split="test"))["rows"] == []


TEXTS = (
    "The quick brown fox",
    "naïve 👩‍🚀 日本語\n\n\ttabs  and   spaces ",
    "<|im_start|>user\nÜber<|im_end|>\n",
    "\ufffd broken \ufffd",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
def test_there_is_one_piece_per_token_and_pieces_add_up_to_the_text(text):
    tokenizer = make_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = TokenPieces(tokenizer).cut(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_the_pieces_of_random_ids_add_up_to_their_decoded_text():
    tokenizer = make_tokenizer()
    generator = random.Random(5)
    for _ in range(50):
        ids = [generator.randrange(len(tokenizer)) for _ in range(40)]
        assert "".join(TokenPieces(tokenizer).cut(ids)) == tokenizer.decode(ids)


def test_characters_that_are_hidden_or_move_the_cursor_become_visible():
    assert make_visible("a\n\tb\r\x1b[2J\x07\x9b\x7f\u202e\u2066\ud800") == (
        "a↵\n⇥b␍␛[2J␇\\u009b␡\\u202e\\u2066\\ud800"
    )
    assert make_visible("plain 👩‍🚀 ça") == "plain 👩‍🚀 ça"


def test_segments_cover_the_row_in_order():
    row = make_labelled_row(
        list(range(10)), [Turn("assistant", 1, 2, 5), Turn("assistant", 3, 5, 7)]
    )
    segments = [(s.start, s.end, s.turn and s.turn.message) for s in find_segments(row)]
    assert segments == [(0, 2, None), (2, 5, 1), (5, 7, 3), (7, 10, None)]


@pytest.mark.parametrize("max_length", [1, 90, 128, 100_000])
@pytest.mark.parametrize("lengths", [{}, {1: 3}, {7: 1, 99: 4}, dict.fromkeys(range(1, 3000), 1)])
def test_every_row_is_in_one_bar_of_the_chart(lengths, max_length):
    chart = make_length_chart(lengths, max_length)
    assert sum(rows for *_, rows, _ in chart.bars) == sum(lengths.values())
    assert all(start <= end for start, end, *_ in chart.bars)
    assert 0 < chart.mark <= 1
    for length, rows in lengths.items():
        assert rows <= sum(count for start, end, count, _ in chart.bars if start <= length <= end)
