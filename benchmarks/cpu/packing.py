"""Measure packing: the share of token slots that hold a real token, and the CPU time.

All packed rows have one length, the cap. A padded batch is as wide as its longest document. Each
set has 10,000 documents, with log-normal lengths drawn from a seed. A document longer than the cap
is cut, and the tokens that are cut off do not count for any contestant.

lora-sft's data stage has already cut the documents. Its packing handles the whole set at once and
makes rows in memory. TRL packs as `SFTTrainer` does: `pack_dataset` with best fit decreasing, in
groups of 1,000 rows, copies `input_ids` and `labels` into a new data set on disk. Both read the
documents from disk, and their CPU seconds cover all of this work. Padding happens during training
and costs nothing before it. The limit is the smallest number of rows that can hold the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.cpu.sampling import Contestant, run_sampling_worker, take_turns
from benchmarks.record import Case, Role

MEASURE = "packing"

MEAN_TOKENS = {"short chats": 150, "chats": 670, "long chats": 2500}
CAPS_TOKENS = (2048, 8192)
NUM_DOCUMENTS, NUM_TOY_DOCUMENTS = 10_000, 200
REPEATS = 3


def name_subject(name: str, cap: int) -> str:
    """Return the subject's name: a set of documents, and the length of the packed rows."""
    return f"{name} (mean {MEAN_TOKENS[name]} tokens), rows of {cap}"


def measure(toy: bool) -> Iterator[Case]:
    """Measure every set at every cap. With `toy`, pack few documents, only once."""
    subjects = tuple(name_subject(name, cap) for name in MEAN_TOKENS for cap in CAPS_TOKENS)
    num_documents = NUM_TOY_DOCUMENTS if toy else NUM_DOCUMENTS

    def make(name: str, role: Role, kind: str) -> Contestant:
        run = partial(run_sampling_worker, "packing_worker", kind, num_documents)
        return Contestant(name, role, subjects, run)

    contestants = (
        make("lora-sft", "ours", "lora-sft"),
        make("TRL, best fit decreasing", "peer", "trl"),
        make("padding, batch 8", "peer", "padding"),
        make("least rows that hold them", "limit", "least-rows"),
    )
    yield from take_turns(contestants, 1 if toy else REPEATS)
