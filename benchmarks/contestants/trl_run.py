"""Two contestants that use TRL: one with its default settings, one with tuned settings.

The defaults are those of `trl sft --use_peft` (ModelConfig, SFTConfig). Three things are set:

- the adapter: LoRA of the common rank on all linear layers,
- the maximum length, so that no document is cut,
- options that turn off reports and progress bars.

The tuned settings are those that the documentation recommends: packing, a bfloat16 base and no
dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig
from transformers import BitsAndBytesConfig
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from benchmarks.contestants.job import LORA_ALPHA, LORA_RANK, NF4_FIELDS, Job, Run, TrainerRun


def build_default(job: Job) -> Run:
    """Build a run with the settings of TRL's command line."""
    model_config = ModelConfig(
        use_peft=True,
        lora_r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_target_modules=["all-linear"],
    )
    settings = {**_make_job_settings(job), **job.options}
    return _build(job, get_peft_config(model_config), settings, None)


def build_tuned(job: Job) -> Run:
    """Build a run with packing, a bfloat16 base and no dropout.

    The job's options are `activation_checkpointing` (default True) and `rows` (packed rows of
    `max_length` tokens per micro-batch, default 1).
    """
    rows = int(job.options.get("rows", 1))
    settings = {
        **_make_job_settings(job),
        "packing": True,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": max(1, job.tokens_per_step // (rows * job.max_length)),
        "activation_checkpointing": bool(job.options.get("activation_checkpointing", True)),
    }
    lora = LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return _build(job, lora, settings, torch.bfloat16)


def _make_job_settings(job: Job) -> dict[str, Any]:
    return {
        "output_dir": str(job.work_folder / "trl"),
        "max_steps": job.steps,
        "max_length": job.max_length,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def _build(
    job: Job, lora: PeftConfig | None, settings: Mapping[str, Any], dtype: torch.dtype | None
) -> Run:
    model_init: dict[str, Any] = {"dtype": dtype} if dtype is not None else {}
    if job.method == "qlora":
        model_init["quantization_config"] = BitsAndBytesConfig(
            **NF4_FIELDS, bnb_4bit_compute_dtype=torch.bfloat16
        )
    arguments = SFTConfig(model_init_kwargs=model_init, **settings)
    trainer = SFTTrainer(
        model=str(job.model_folder),
        args=arguments,
        train_dataset=Dataset.from_list(job.documents.to_labelled_rows()),
        peft_config=lora,
    )
    return TrainerRun(trainer)
