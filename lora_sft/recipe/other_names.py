"""Names that people know from elsewhere, and the line to write in a recipe for each.

These are names that a library removed, names that another section owns, and names of other tools.
The line repeats the person's own value. No name is translated silently: a recipe has one name per
setting, and the error message teaches it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lora_sft.recipe.yaml_reader import write_yaml_inline

MakeFix = Callable[[Any], str]


@dataclass(frozen=True)
class Advice:
    """The fault and the fix for an unknown name.

    `target` is the path that the fix sets, or None if the fix deletes the line.
    """

    what: str
    fix: str

    @property
    def target(self) -> str | None:
        match = re.search(r"write ([\w.]+):", self.fix)
        return match.group(1) if match else None


def find_advice(section: str, name: str, value: Any) -> Advice | None:
    """Return the advice for `name`, or None if this file does not list it.

    Args:
        section: The section in which the name was found.
        name: A name that is not a setting of this section.
        value: Its value, which the fix repeats.
    """
    if section == "train" and name in TRAIN_OWNED_ELSEWHERE:
        what, make_fix = f'"{name}" does not belong under train', TRAIN_OWNED_ELSEWHERE[name]
    elif section == "adapter" and name in ADAPTER_SET_BY_RUN:
        what = f'"{name}" is set by the run'
        make_fix = _delete_line("it follows from the model and the task")
    elif name in REMOVED_NAMES:
        what, make_fix = f'"{name}" no longer exists in transformers or TRL', REMOVED_NAMES[name]
    elif name in OTHER_TOOLS_NAMES:
        what, make_fix = f'"{name}" is a setting of another tool', OTHER_TOOLS_NAMES[name]
    else:
        return None
    return Advice(what, make_fix(value) if value is not None else "delete the line")


def write_line(dotted: str, value: Any) -> str:
    """Return the fix that sets one path."""
    return f"write {dotted}: {write_yaml_inline(value)}"


def _rename(dotted: str) -> MakeFix:
    return lambda value: write_line(dotted, value)


def _delete_line(reason: str) -> MakeFix:
    return lambda _value: f"delete the line: {reason}"


def _rename_switch(dotted: str, when_true: Any, when_false: Any) -> MakeFix:
    return lambda value: write_line(dotted, when_true if value else when_false)


def _rename_if_on(dotted: str, value: Any, otherwise: str) -> MakeFix:
    """Return a fix that sets `value` if the old switch was on, and else deletes the line."""
    return lambda switch: write_line(dotted, value) if switch else f"delete the line: {otherwise}"


def _datasets(value: Any) -> str:
    """Return the fix for `dataset: a,b` or a list of names: entries of `data.datasets`."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    paths = value if isinstance(value, list) else [value]
    entries = [path if isinstance(path, dict) else {"path": path} for path in paths]
    return write_line("data.datasets", entries)


def _split_size(value: Any) -> str:
    is_share = isinstance(value, float) and 0 < value < 1
    return write_line("data.validation", {"fraction": value if is_share else 0.05})


def _bits(value: Any) -> str:
    return write_line("quantization", "int8" if str(value) in ("8", "true", "True") else "nf4")


def _model_arguments(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return "write model.dtype: bfloat16"
    lines = (f"model.{name}: {write_yaml_inline(item)}" for name, item in value.items())
    return f"write {'; '.join(lines)}"


def _text_column(value: Any) -> str:
    return write_line("data.datasets.0.rename_columns", {str(value): "text"})


_PACKING = _rename_switch("data.packing", "auto", False)
_BY_PACKING = _delete_line("data.packing decides this")
_QUANTIZE_4 = _rename_if_on("quantization", "nf4", "by default the weights are not quantized")
_QUANTIZE_8 = _rename_if_on("quantization", "int8", "by default the weights are not quantized")
_ALWAYS = _delete_line("a run always does this")
_ON_COMMAND_LINE = _delete_line("use the option `lora-sft train --overwrite`")
_LAUNCHER = _delete_line("the launcher sets it")
_SECRET = _delete_line("a recipe must not contain secrets; set the environment variable HF_TOKEN")

TRAIN_OWNED_ELSEWHERE: dict[str, MakeFix] = {
    "max_length": _rename("data.max_length"),
    "packing": _PACKING,
    "packing_strategy": _BY_PACKING,
    "eval_packing": _BY_PACKING,
    "padding_free": _BY_PACKING,
    "truncation_mode": lambda _value: write_line("data.overlong", "keep_start"),
    "assistant_only_loss": _rename_switch("data.loss_on", "assistant", "auto"),
    "completion_only_loss": _rename_switch("data.loss_on", "completion", "all"),
    "chat_template_path": _rename("data.chat_template"),
    "eos_token": _rename("tokenizer.eos_token"),
    "pad_token": _rename("tokenizer.pad_token"),
    "dataset_text_field": _text_column,
    "dataset_kwargs": _delete_line("the section data decides how rows are prepared"),
    "dataset_num_proc": _delete_line("the training process prepares the rows itself"),
    "shuffle_dataset": _delete_line("rows are always shuffled, with train.seed"),
    "output_dir": _rename("output_dir"),
    "model_init_kwargs": _model_arguments,
    "trust_remote_code": _rename("model.trust_remote_code"),
    "hub_token": _SECRET,
    "local_rank": _LAUNCHER,
    "do_train": _ALWAYS,
    "do_predict": _delete_line("use `lora-sft evaluate`"),
    "resume_from_checkpoint": _delete_line("use the option `lora-sft train --resume PATH`"),
}

# The run sets these: they follow from the model and the task.
ADAPTER_SET_BY_RUN = frozenset(
    (
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "runtime_config",
    )
)  # fmt: skip

REMOVED_NAMES: dict[str, MakeFix] = {
    "warmup_ratio": _rename("train.warmup_steps"),
    "evaluation_strategy": _rename("train.eval_strategy"),
    "max_seq_length": _rename("data.max_length"),
    "logging_dir": _delete_line("set the environment variable TENSORBOARD_LOGGING_DIR"),
    "overwrite_output_dir": _ON_COMMAND_LINE,
    "group_by_length": _rename_if_on(
        "train.train_sampling_strategy", "group_by_length", "rows are sampled at random by default"
    ),
    "save_safetensors": _ALWAYS,
    "no_cuda": _rename("train.use_cpu"),
    "use_mps_device": _delete_line("the device is found automatically"),
    "per_gpu_train_batch_size": _rename("train.per_device_train_batch_size"),
    "per_gpu_eval_batch_size": _rename("train.per_device_eval_batch_size"),
    "tokenizer": _rename("tokenizer.path"),
    "processing_class": _rename("tokenizer.path"),
    "torch_dtype": _rename("model.dtype"),
    "push_to_hub_token": _SECRET,
    "push_to_hub_model_id": _rename("export.push_to_hub"),
    "include_tokens_per_second": _delete_line("throughput is always reported"),
    "jit_mode_eval": _delete_line("no setting replaces it"),
    "fp16_backend": _delete_line("no setting replaces it"),
    "half_precision_backend": _delete_line("no setting replaces it"),
    "dispatch_batches": _delete_line("set it inside train.accelerator_config"),
    "split_batches": _delete_line("set it inside train.accelerator_config"),
    "tpu_num_cores": _LAUNCHER,
}

OTHER_TOOLS_NAMES: dict[str, MakeFix] = {
    # model
    "base_model": _rename("model.model_name_or_path"),
    "model_name": _rename("model.model_name_or_path"),
    "checkpoint_dir": _rename("model.model_name_or_path"),
    "model_revision": _rename("model.revision"),
    "flash_attention": _rename_if_on(
        "model.attn_implementation", "flash_attention_2", "the default, null, is safe"
    ),
    "flash_attn": lambda _value: write_line("model.attn_implementation", "flash_attention_2"),
    "special_tokens": lambda value: _special_tokens(value),
    "tokenizer_name_or_path": _rename("tokenizer.path"),
    "tokenizer_config": _rename("tokenizer.path"),
    # quantization
    "load_in_4bit": _QUANTIZE_4,
    "load_in_8bit": _QUANTIZE_8,
    "quantization_bit": _bits,
    "quant_bits": _bits,
    "quantize": _bits,
    "quantization_method": _delete_line("quantization: nf4 or int8 is enough"),
    # adapter
    "lora_rank": _rename("adapter.r"),
    "lora_r": _rename("adapter.r"),
    "rank": _rename("adapter.r"),
    "lora_target": lambda value: write_line("adapter.target_modules", _targets(value)),
    "lora_target_modules": _rename("adapter.target_modules"),
    "lora_target_linear": lambda _value: write_line("adapter.target_modules", "all-linear"),
    "lora_modules_to_save": _rename("adapter.modules_to_save"),
    "additional_target": lambda value: write_line("adapter.modules_to_save", _targets(value)),
    "peft_use_dora": _rename("adapter.use_dora"),
    "peft_use_rslora": _rename("adapter.use_rslora"),
    "lora_model_dir": _rename("adapter.init_from"),
    "adapter_name_or_path": _rename("adapter.init_from"),
    "finetuning_type": _delete_line(
        "an adapter is always trained; for QLoRA write quantization: nf4"
    ),
    "use_peft": _delete_line("an adapter is always trained"),
    "stage": _delete_line("every run is supervised fine-tuning"),
    # data
    "cutoff_len": _rename("data.max_length"),
    "sequence_len": _rename("data.max_length"),
    "max_seq_len": _rename("data.max_length"),
    "model_max_length": _rename("data.max_length"),
    "sample_packing": _PACKING,
    "neat_packing": _PACKING,
    "eval_sample_packing": _BY_PACKING,
    "pad_to_sequence_len": _BY_PACKING,
    "train_on_inputs": _rename_switch("data.loss_on", "all", "auto"),
    "train_on_prompt": _rename_switch("data.loss_on", "all", "auto"),
    "mask_history": _rename_switch("data.loss_on", "last_assistant", "assistant"),
    "dataset": _datasets,
    "dataset_name": _datasets,
    "train_file": _datasets,
    "val_set_size": _split_size,
    "val_size": _split_size,
    "test_datasets": lambda value: write_line("data.validation", {"datasets": value}),
    "eval_dataset": lambda value: write_line("data.validation", {"datasets": [{"path": value}]}),
    "template": _delete_line(
        "the tokenizer's own template is used; for another, set data.chat_template to a file"
    ),
    "conversation_template": _delete_line("the tokenizer's own template is used"),
    "dataset_prepared_path": _delete_line("set the environment variable LORA_SFT_CACHE"),
    "overwrite_cache": _delete_line("the cache is rebuilt automatically when the data changes"),
    "preprocessing_num_workers": _delete_line("the training process prepares the rows itself"),
    "max_samples": lambda _value: write_line("data.datasets.0.repeat", 0.1),
    # train
    "micro_batch_size": _rename("train.per_device_train_batch_size"),
    "batch_size": _rename("train.per_device_train_batch_size"),
    "eval_batch_size": _rename("train.per_device_eval_batch_size"),
    "total_batch_size": _rename("train.global_batch_size"),
    "num_epochs": _rename("train.num_train_epochs"),
    "epochs": _rename("train.num_train_epochs"),
    "lr": _rename("train.learning_rate"),
    "lr_scheduler": _rename("train.lr_scheduler_type"),
    "optimizer": _rename("train.optim"),
    "saves_per_epoch": lambda _value: write_line("train.save_strategy", "epoch"),
    "evals_per_epoch": lambda _value: write_line("train.eval_strategy", "epoch"),
    "grad_clip": _rename("train.max_grad_norm"),
    "gradient_clipping": _rename("train.max_grad_norm"),
    "plot_loss": _delete_line(
        "the loss is in metrics.jsonl; for plots set train.report_to: tensorboard"
    ),
    "early_stopping": _rename("train.early_stopping_patience"),
    # trackers and files
    "wandb_project": lambda _value: "write train.report_to: wandb, and set WANDB_PROJECT",
    "wandb_entity": _delete_line("set the environment variable WANDB_ENTITY"),
    "wandb_run_id": _delete_line("set the environment variable WANDB_RUN_ID"),
    "wandb_watch": _delete_line("set the environment variable WANDB_WATCH"),
    "wandb_name": _rename("train.run_name"),
    "use_tensorboard": lambda _value: write_line("train.report_to", "tensorboard"),
    "out_dir": _rename("output_dir"),
    "hub_model_id": _rename("export.push_to_hub"),
    "hf_token": _SECRET,
    "hf_hub_token": _SECRET,
    "hub_token": _SECRET,
    "auto_resume_from_checkpoints": _delete_line("an interrupted run resumes automatically"),
}


def _targets(value: Any) -> Any:
    """Return LLaMA-Factory's target modules in PEFT's form.

    LLaMA-Factory writes `all`, or names with commas between them.
    """
    if value == "all":
        return "all-linear"
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _special_tokens(value: Any) -> str:
    """Return the fix for axolotl's mapping of special tokens.

    Two of them have a setting in the section `tokenizer`.
    """
    tokens = value if isinstance(value, dict) else {}
    names = [name for name in ("pad_token", "eos_token") if name in tokens]
    lines = (f"tokenizer.{name}: {write_yaml_inline(tokens[name])}" for name in names)
    return f"write {'; '.join(lines)}" if names else "delete the line"
