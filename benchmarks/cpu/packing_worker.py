"""Pack every set of documents with one contestant, and measure it in this process.

`python -m benchmarks.cpu.packing_worker lora-sft|trl|padding|least-rows NUM_DOCUMENTS` prints
`{subject: {"values": ..., "facts": ...}}`. Only the lengths matter, so all tokens have the same id.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from benchmarks.cpu.block_cost import BlockCost
from benchmarks.cpu.packing import CAPS_TOKENS, MEAN_TOKENS, name_subject
from benchmarks.cpu.sampling import Sample
from benchmarks.documents import DocumentSet

SIGMA = 0.726  # as for the chat documents of the GPU lanes
SEED = 0
BATCH_ROWS = 8
NO_CAP = 2**31
WARM_UP_LENGTHS = (8,) * 8

Lengths: TypeAlias = Sequence[int]


def main(kind: str, num_documents: int) -> None:
    """Pack the documents of every set into rows of every cap, and print the results."""
    makers: dict[str, Callable[[Lengths], list[Sample]]] = {
        "lora-sft": pack_with_lora_sft,
        "trl": pack_with_trl,
        "padding": lambda lengths: [pad(lengths, cap) for cap in CAPS_TOKENS],
        "least-rows": lambda lengths: [count_least_rows(lengths, cap) for cap in CAPS_TOKENS],
    }
    answer = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # `datasets` reads it when it is imported
        makers[kind](WARM_UP_LENGTHS)
        for name, mean in MEAN_TOKENS.items():
            lengths = DocumentSet(name, mean, NO_CAP, SIGMA).draw_lengths(num_documents, SEED)
            for cap, sample in zip(CAPS_TOKENS, makers[kind](lengths), strict=True):
                facts = {**sample.facts, **_describe(lengths, cap)}
                answer[name_subject(name, cap)] = {"values": sample.values, "facts": facts}
    print(json.dumps(answer))


def pack_with_lora_sft(lengths: Lengths) -> list[Sample]:
    """Pack with lora-sft, from a data set whose documents are already cut."""
    from lora_sft.data.corpus.packing import count_tokens, lay_out_documents, pack_documents

    def pack(documents: Any, cap: int) -> Any:
        return pack_documents(documents, lay_out_documents(count_tokens(documents), cap))

    samples = []
    for cap in CAPS_TOKENS:
        with _on_disk(np.minimum(lengths, cap).tolist(), np.int32) as documents:
            samples.append(_pack_once(pack, documents, lengths, cap))
    return samples


def pack_with_trl(lengths: Lengths) -> list[Sample]:
    """Pack with TRL, from a data set on disk, with the call that `SFTTrainer` makes."""
    from trl import pack_dataset

    def pack(documents: Any, cap: int) -> Any:
        return pack_dataset(documents, cap, "bfd", {})

    with _on_disk(lengths, np.int64) as documents:
        return [_pack_once(pack, documents, lengths, cap) for cap in CAPS_TOKENS]


@contextmanager
def _on_disk(lengths: Lengths, label_type: Any) -> Iterator[Any]:
    """Save documents of these lengths to disk, and yield the data set that reads them."""
    from datasets import load_from_disk

    with tempfile.TemporaryDirectory() as folder:
        _make_dataset(lengths, label_type).save_to_disk(folder)
        yield load_from_disk(folder)


def _pack_once(
    pack: Callable[[Any, int], Any], documents: Any, lengths: Lengths, cap: int
) -> Sample:
    with BlockCost() as cost:
        packed = pack(documents, cap)
    packed_row_lengths = [sum(row) for row in packed["seq_lengths"]]
    assert sum(packed_row_lengths) == _count_kept(lengths, cap), "tokens were lost or repeated"
    per_100k = cost.values["cpu_seconds"] * 100_000 / len(lengths)
    values = {**cost.values, "cpu_seconds_per_100k_documents": per_100k}
    used = sum(packed_row_lengths) / (len(packed_row_lengths) * cap)
    return Sample({"utilisation": used, **values}, {"rows": len(packed_row_lengths)})


def pad(lengths: Lengths, cap: int) -> Sample:
    """Make random batches, and pad each document to the longest document of its batch."""
    kept = np.minimum(lengths, cap)
    shuffled = np.random.default_rng(SEED).permutation(kept)
    batches = np.array_split(shuffled, math.ceil(len(kept) / BATCH_ROWS))
    slots = sum(int(batch.max()) * len(batch) for batch in batches)
    return Sample({"utilisation": float(kept.sum() / slots)}, {"rows": len(lengths)})


def count_least_rows(lengths: Lengths, cap: int) -> Sample:
    """Compute a lower bound for the number of packed rows. A real packing may need more."""
    tokens = _count_kept(lengths, cap)
    rows = math.ceil(tokens / cap)
    return Sample({"utilisation": tokens / (rows * cap)}, {"rows": rows})


def _make_dataset(lengths: Lengths, label_type: Any) -> Any:
    """Make `input_ids` and `labels` with the types that the contestant's own preparation uses."""
    import pyarrow as pa
    from datasets import Dataset

    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    tokens = int(np.sum(lengths))
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(np.ones(tokens, np.int32))),
        "labels": pa.ListArray.from_arrays(offsets, pa.array(np.ones(tokens, label_type))),
    }
    return Dataset(pa.table(columns))


def _count_kept(lengths: Lengths, cap: int) -> int:
    return int(np.minimum(lengths, cap).sum())


def _describe(lengths: Lengths, cap: int) -> dict[str, Any]:
    tokens, kept = int(np.sum(lengths)), _count_kept(lengths, cap)
    return {
        "documents": len(lengths),
        "tokens": kept,
        "share_of_tokens_cut_at_the_cap": round(1 - kept / tokens, 4),
    }


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
