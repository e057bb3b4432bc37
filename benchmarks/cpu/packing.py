"""How many token slots hold a real token once documents are packed into rows, and what that costs.

Packed rows are of one length, the cap; a padded batch is as wide as its longest document. Every
set is 10,000 seeded documents of log-normal length; one longer than the cap is cut there, and its
cut part counts for nobody. lora-sft packs the whole set at once, from documents that its data stage
has cut, into rows in memory. TRL packs as `SFTTrainer` does (`pack_dataset`, best fit decreasing,
in groups of 1,000 rows, `input_ids` and `labels` copied into a new data set on disk). Both read
documents that lie on disk, and their CPU seconds hold all that they do with them. Padding is
decided while training and costs nothing before it. The limit is the least number of rows that
holds the tokens.
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
    """A set of documents in packed rows of one length."""
    return f"{name} (mean {MEAN_TOKENS[name]} tokens), rows of {cap}"


def measure(toy: bool) -> Iterator[Case]:
    """Every set at every cap; `toy` packs a few documents once."""
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
