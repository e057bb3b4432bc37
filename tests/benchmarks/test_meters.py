"""The meters count the model's inputs, independently of the trainer's log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.documents import DOCUMENT_SETS, IGNORED_LABEL, DocumentSet, make_documents
from benchmarks.meters import StepClock, TokenMeter
from benchmarks.shapes import PAD_ID

VOCABULARY = 1024


def make_model() -> SimpleNamespace:
    embedding = torch.nn.Embedding(VOCABULARY, 4)
    return SimpleNamespace(get_input_embeddings=lambda: embedding)


def test_documents_have_the_lengths_and_the_learned_share_of_their_set() -> None:
    documents = make_documents(DOCUMENT_SETS["chat"], 128_256, 400_000)
    lengths = [len(ids) for ids in documents.ids]
    assert sum(lengths) >= 400_000
    assert max(lengths) <= 2048
    assert sum(lengths) / len(lengths) == pytest.approx(670, rel=0.08)
    rows = documents.to_labelled_rows()
    learned = sum(label != IGNORED_LABEL for row in rows for label in row["labels"])
    assert learned / sum(lengths) == pytest.approx(0.4, abs=0.01)
    assert all(len(row["labels"]) == len(row["input_ids"]) for row in rows)
    assert documents.ids == make_documents(DOCUMENT_SETS["chat"], 128_256, 400_000).ids


def test_the_attention_span_of_equal_documents_is_their_length() -> None:
    documents = make_documents(DocumentSet("row", 64, 64, 0.0), VOCABULARY, 640)
    assert documents.mean_attention_span == 64


def test_a_meter_counts_tokens_and_finds_documents_in_padded_and_packed_batches() -> None:
    documents = make_documents(DOCUMENT_SETS["toy"], VOCABULARY, 600)
    model = make_model()
    meter = TokenMeter(model)
    embed = model.get_input_embeddings()
    first, second, third = (torch.tensor(documents.ids[number]) for number in (3, 7, 5))
    padded = torch.nn.utils.rnn.pad_sequence(
        [first, second], batch_first=True, padding_value=PAD_ID
    )
    embed(padded)
    embed(torch.cat([third, first])[None])
    assert meter.count_tokens(0, 1) == len(first) + len(second)
    assert meter.count_slots(0, 1) == padded.numel()
    assert meter.find_documents(documents, 0, 1) == [3, 7]
    assert meter.find_documents(documents, 0, 2) == [3, 7, 5, 3]
    meter.remove()
    embed(padded)
    assert len(meter.batches) == 2


def test_the_clock_times_only_the_steps_after_the_warm_up() -> None:
    batches = 0
    clock = StepClock(2, 4, lambda: batches)
    for step in range(1, 6):
        batches += 3
        clock.end_step(step)
    assert clock.marks == {"first step": 3, "warm": 6, "end": 12}
    assert clock.wall_seconds > 0
