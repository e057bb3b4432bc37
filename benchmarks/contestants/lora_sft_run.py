"""The contestant lora-sft: the stages of its pipeline, from the recipe to the trainer.

The rows are given as tokens, so the run reads no source rows. The options of a job are overrides of
the recipe, for example `{"train.activation_checkpointing": "false"}`. Settings that the job does
not fix keep their defaults, except `data.packing`: a job has so few documents that `auto` would not
pack them.
"""

from __future__ import annotations

import json
from typing import Any

from datasets import Dataset
from transformers import set_seed

from benchmarks.contestants.job import LORA_ALPHA, LORA_RANK, Job, Run, TrainerRun
from lora_sft.data.templates.tokenizer import load_saved_tokenizer
from lora_sft.model.building import build_model
from lora_sft.plan.batch import make_batch_plan
from lora_sft.recipe import Recipe, read_recipe
from lora_sft.run_directory import RunDirectory
from lora_sft.train.callbacks import StopOnSignal
from lora_sft.train.fit import make_callbacks
from lora_sft.train.packing import pack_rows
from lora_sft.train.training_job import TrainingJob
from lora_sft.train.trl.sft_arguments import make_sft_config
from lora_sft.train.trl.trainer import build_trainer


def build(job: Job) -> Run:
    """Build a run as `lora-sft train` does, without reading source rows."""
    recipe = _make_recipe(job)
    run = RunDirectory(job.work_folder / "run").create()
    batch = make_batch_plan(recipe, world_size=1)
    arguments = make_sft_config(recipe, batch, run)
    set_seed(recipe.train["seed"])
    model, _ = build_model(recipe)
    rows = Dataset.from_list(job.documents.to_labelled_rows())
    tokenizer = load_saved_tokenizer(job.model_folder)
    packing = pack_rows(recipe, batch, rows, model, tokenizer, arguments)
    training = TrainingJob(recipe, run, arguments, model, tokenizer, packing)
    callbacks = [*make_callbacks(training, None), StopOnSignal()]
    return TrainerRun(build_trainer(training, callbacks))


def _wants_packing(job: Job) -> bool:
    """Return whether two documents fit into one row: `auto` would pack a larger set like this."""
    shortest = sorted(len(ids) for ids in job.documents.ids)[:2]
    return sum(shortest) <= job.max_length


def _make_recipe(job: Job) -> Recipe:
    row = job.work_folder / "row.jsonl"  # a recipe must name a data set; this one is not trained
    row.write_text('{"prompt": "a", "completion": "b"}\n')
    recipe: dict[str, Any] = {
        "model": {"model_name_or_path": str(job.model_folder)},
        "quantization": "nf4" if job.method == "qlora" else None,
        "adapter": {"r": LORA_RANK, "lora_alpha": LORA_ALPHA},
        "data": {
            "datasets": [{"path": str(row)}],
            "max_length": job.max_length,
            "packing": _wants_packing(job),
        },
        "train": {"max_steps": job.steps, "logging_first_step": True, "save_strategy": "no"},
        "output_dir": str(job.work_folder / "run"),
    }
    path = job.work_folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return read_recipe(path, [f"{name}={value}" for name, value in job.options.items()])
