"""TRL's SFTTrainer, with its defaults or tuned by hand.

The defaults are those of `trl sft --use_peft` (ModelConfig, SFTConfig); set are only the job
(LoRA on all linear layers at the common rank, the longest document so that nothing is cut) and
silence. The tuned one is what a person who reads the documentation would write: packed, bfloat16
base, no dropout.
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
    """TRL as its command line sets it up."""
    model_config = ModelConfig(
        use_peft=True,
        lora_r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_target_modules=["all-linear"],
    )
    return _build(job, get_peft_config(model_config), {**_name_job(job), **job.options}, None)


def build_tuned(job: Job) -> Run:
    """TRL with packing, a bfloat16 base and no dropout.

    Options: `activation_checkpointing` and `rows` (packed rows of `max_length` a micro-batch).
    """
    rows = int(job.options.get("rows", 1))
    settings = {
        **_name_job(job),
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


def _name_job(job: Job) -> dict[str, Any]:
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
