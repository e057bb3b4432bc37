"""The contestant unsloth: its own loader, adapter and patched trainer, with its defaults.

unsloth patches torch, transformers, TRL and PEFT when it is imported. So benchmarks/gpu/perform.py
imports it before these libraries, in a separate process with a separate set of libraries. The
learning rate and the warm-up come from unsloth's notebooks. Other settings that the job does not
fix are its defaults: padding-free batches, its own activation checkpointing that offloads to the
CPU, and 8-bit AdamW.
"""

from __future__ import annotations

from typing import Any

from benchmarks.contestants.job import LORA_ALPHA, LORA_RANK, Job, Run, TrainerRun

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEED = 3407  # unsloth's default


def build(job: Job) -> Run:
    """Build the run.

    The job's options are `use_gradient_checkpointing` (default "unsloth") and all fields of
    SFTConfig.
    """
    options = dict(job.options)
    checkpointing = options.pop("use_gradient_checkpointing", "unsloth")
    model, tokenizer = _load_model(job, checkpointing)
    return TrainerRun(_make_trainer(job, model, tokenizer, options))


def _load_model(job: Job, checkpointing: Any) -> tuple[Any, Any]:
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(job.model_folder),
        max_seq_length=job.max_length,
        dtype=torch.bfloat16,
        load_in_4bit=job.method == "qlora",
        load_in_16bit=job.method == "lora",
        use_exact_model_name=True,
        use_gradient_checkpointing=checkpointing,
    )
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=TARGETS,
        use_gradient_checkpointing=checkpointing,
        random_state=SEED,
    )
    return adapted, tokenizer


def _make_trainer(job: Job, model: Any, tokenizer: Any, options: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = {
        "output_dir": str(job.work_folder / "unsloth"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": job.steps,
        "warmup_steps": 5,
        "learning_rate": 2e-4,
        "logging_steps": 1,
        "optim": "adamw_8bit",
        "weight_decay": 0.001,
        "lr_scheduler_type": "linear",
        "seed": SEED,
        "max_length": job.max_length,
        "save_strategy": "no",
        "report_to": "none",
        **options,
    }
    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(job.documents.to_labelled_rows()),
        args=SFTConfig(**settings),
    )
