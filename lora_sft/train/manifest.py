"""Make the manifest of a run: the facts that distinguish it from other runs."""

from __future__ import annotations

from typing import Any

import tokenizers

from lora_sft.data.corpus.building import Corpus
from lora_sft.model.census import Census
from lora_sft.plan.batch import BatchPlan
from lora_sft.recipe import Recipe
from lora_sft.train.checkpoints.conditions import read_machine
from lora_sft.train.checkpoints.run_identity import RunIdentity
from lora_sft.train.training_rows import TrainingRows
from lora_sft.versions import read_versions


def make_manifest(
    recipe: Recipe,
    batch: BatchPlan,
    corpus: Corpus,
    census: Census,
    rows: TrainingRows,
    identity: RunIdentity,
) -> dict[str, Any]:
    """Return the manifest, which is written before the first step."""
    return {
        "versions": read_versions(),
        "seed": recipe.train["seed"],
        "world_size": batch.world_size,
        "machine": read_machine(),
        "plan": {
            "micro_batch_size": batch.micro_batch_size,
            "accumulation_steps": batch.accumulation_steps,
            "global_batch_size": batch.global_batch_size,
            **rows.count_per_step(batch),
            "packing": rows.to_dict(),
        },
        "data": {
            "fingerprint": corpus.fingerprint,
            "fingerprints": dict(corpus.fingerprints),
            "template_sha256": corpus.template_sha256,
            "stop_token_ids": sorted(corpus.stop_token_ids),
            "template_date": corpus.template_date,
        },
        "base": {
            "config": identity.config,
            "weights": identity.weights,
            "code": identity.code,
        },
        "tokenizer": {"tokenizers": tokenizers.__version__, "sha256": identity.tokenizer},
        "account": {split: account.as_dict() for split, account in corpus.accounts.items()},
        "census": census.to_dict(),
        "recipe": recipe.to_dict(absolute_paths=True),
    }
