"""Measure one size of `data_scale`: `python -m benchmarks.cpu.data_scale_worker NUM_ROWS`."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cpu.block_cost import BlockCost

MAX_LENGTH_TOKENS = 2_048
WORDS = ("the", "one", "of", "to", "and", "in", "is", "it", "for", "on", "with", "as", "was", "at")
MEAN_WORDS, LARGEST_WORDS = 12, 40
SEED = 0


def main(num_rows: int) -> None:
    """Write the rows, prepare them twice, pack them and print the costs."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORA_SFT_CACHE"] = str(Path(folder) / "cache")
        path = Path(folder) / "rows.jsonl"
        write_rows(path, num_rows)
        print(json.dumps(prepare(path, Path(folder))))


def write_rows(path: Path, num_rows: int) -> None:
    """Write rows of one question and one answer, with lengths and words drawn from a seed."""
    draw = random.Random(SEED)
    with path.open("w") as file:
        for row in range(num_rows):
            texts = (f"{row} {_make_text(draw)}?", f"{_make_text(draw)}.")
            roles = ("user", "assistant")
            messages = [
                {"role": role, "content": text} for role, text in zip(roles, texts, strict=True)
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def _make_text(draw: random.Random) -> str:
    num_words = min(LARGEST_WORDS, 1 + int(draw.expovariate(1 / MEAN_WORDS)))
    return " ".join(draw.choices(WORDS, k=num_words))


def prepare(path: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Prepare the rows twice and pack them. Return the values and the facts."""
    from lora_sft.data.corpus.loading import prepare_data
    from lora_sft.data.corpus.packing import count_tokens, lay_out_documents, pack_documents
    from lora_sft.recipe import read_recipe

    recipe_path = folder / "recipe.yaml"
    recipe = {
        "model": {"model_name_or_path": "lora_sft://quickstart/base"},
        "data": {"datasets": [{"path": str(path)}], "max_length": MAX_LENGTH_TOKENS},
        "output_dir": str(folder / "run"),
    }
    recipe_path.write_text(json.dumps(recipe))  # JSON is YAML
    with BlockCost() as cost:
        corpus = prepare_data(read_recipe(recipe_path)).corpus
    started = time.perf_counter()
    again = prepare_data(read_recipe(recipe_path))
    second_seconds = time.perf_counter() - started
    assert again.is_hit, "the second preparation must find the rows in the cache"
    started = time.perf_counter()
    layout = lay_out_documents(count_tokens(corpus.train), MAX_LENGTH_TOKENS)
    pack_documents(corpus.train, layout)
    values = {
        **cost.values,
        "rows_per_second": len(corpus.train) / cost.values["wall_seconds"],
        "second_preparation_seconds": second_seconds,
        "packing_seconds": time.perf_counter() - started,
    }
    facts = {
        "rows": len(corpus.train),
        "tokens": corpus.accounts["train"].tokens,
        "utilisation": layout.utilisation,
    }
    return {"values": values, "facts": facts}


if __name__ == "__main__":
    main(int(sys.argv[1]))
