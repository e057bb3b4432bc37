"""Names that people bring along: removed by a library, owned by another section, other tools'.

Each gives the line to write instead, with the person's own value carried over. Nothing is
translated in silence: a recipe has one name for a thing, and the fault teaches it.
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
    """Why a name is not read here, the fix, and the path that the fix sets (if it sets one)."""

    what: str
    fix: str

    @property
    def target(self) -> str | None:
        match = re.search(r"write ([\w.]+):", self.fix)
        return match.group(1) if match else None


def find_advice(section: str, name: str, value: Any) -> Advice | None:
    """What to write instead of `name` (not a setting of `section`), if it is a known name."""
    if section == "train" and name in TRAIN_OWNED_ELSEWHERE:
        what, make_fix = f'"{name}" is not set under train', TRAIN_OWNED_ELSEWHERE[name]
    elif section == "adapter" and name in ADAPTER_SET_BY_RUN:
        what, make_fix = f'"{name}" is set by the run', _gone("it follows from model and task")
    elif name in REMOVED:
        what, make_fix = f'"{name}" no longer exists in transformers or TRL', REMOVED[name]
    elif name in FOREIGN:
        what, make_fix = f'"{name}" is another tool\'s name', FOREIGN[name]
    else:
        return None
    return Advice(what, make_fix(value) if value is not None else "delete the line")


def write_line(dotted: str, value: Any) -> str:
    """The fix that sets one path."""
    return f"write {dotted}: {write_yaml_inline(value)}"


def _to(dotted: str) -> MakeFix:
    return lambda value: write_line(dotted, value)


def _gone(reason: str) -> MakeFix:
    return lambda _value: f"delete the line: {reason}"


def _choose(dotted: str, when_true: Any, when_false: Any) -> MakeFix:
    return lambda value: write_line(dotted, when_true if value else when_false)


def _either(dotted: str, value: Any, otherwise: str) -> MakeFix:
    """Write `value` if the old switch was on; else there is nothing to say any more."""
    return lambda switch: write_line(dotted, value) if switch else f"delete the line: {otherwise}"


def _datasets(value: Any) -> str:
    """`dataset: a,b` or a list of names, as entries of `data.datasets`."""
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


_PACKING = _choose("data.packing", "auto", False)
_BY_PACKING = _gone("data.packing decides this")
_QUANTIZE_4 = _either("quantization", "nf4", "without quantization the weights stay as stored")
_QUANTIZE_8 = _either("quantization", "int8", "without quantization the weights stay as stored")
_ALWAYS = _gone("a run always does this")
_ON_COMMAND_LINE = _gone("it is an option of `lora-sft train`: --overwrite")
_LAUNCHER = _gone("the launcher sets it")
_SECRET = _gone("secrets stay out of recipes; set the environment variable HF_TOKEN")

TRAIN_OWNED_ELSEWHERE: dict[str, MakeFix] = {
    "max_length": _to("data.max_length"),
    "packing": _PACKING,
    "packing_strategy": _BY_PACKING,
    "eval_packing": _BY_PACKING,
    "padding_free": _BY_PACKING,
    "truncation_mode": lambda _value: write_line("data.overlong", "keep_start"),
    "assistant_only_loss": _choose("data.loss_on", "assistant", "auto"),
    "completion_only_loss": _choose("data.loss_on", "completion", "all"),
    "chat_template_path": _to("data.chat_template"),
    "eos_token": _to("tokenizer.eos_token"),
    "pad_token": _to("tokenizer.pad_token"),
    "dataset_text_field": _text_column,
    "dataset_kwargs": _gone("data says how rows are prepared"),
    "dataset_num_proc": _gone("rows are prepared in batches, in the process that trains"),
    "shuffle_dataset": _gone("rows are shuffled by train.seed"),
    "output_dir": _to("output_dir"),
    "model_init_kwargs": _model_arguments,
    "trust_remote_code": _to("model.trust_remote_code"),
    "hub_token": _SECRET,
    "local_rank": _LAUNCHER,
    "do_train": _ALWAYS,
    "do_predict": _gone("`lora-sft evaluate` does this"),
    "resume_from_checkpoint": _gone("it is an option of `lora-sft train`: --resume PATH"),
}

# The run fills these in: they follow from the model and the task.
ADAPTER_SET_BY_RUN = frozenset(
    (
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "runtime_config",
    )
)  # fmt: skip

REMOVED: dict[str, MakeFix] = {
    "warmup_ratio": _to("train.warmup_steps"),
    "evaluation_strategy": _to("train.eval_strategy"),
    "max_seq_length": _to("data.max_length"),
    "logging_dir": _gone("set the environment variable TENSORBOARD_LOGGING_DIR"),
    "overwrite_output_dir": _ON_COMMAND_LINE,
    "group_by_length": _either(
        "train.train_sampling_strategy", "group_by_length", "rows are drawn at random"
    ),
    "save_safetensors": _ALWAYS,
    "no_cuda": _to("train.use_cpu"),
    "use_mps_device": _gone("the device is found by itself"),
    "per_gpu_train_batch_size": _to("train.per_device_train_batch_size"),
    "per_gpu_eval_batch_size": _to("train.per_device_eval_batch_size"),
    "tokenizer": _to("tokenizer.path"),
    "processing_class": _to("tokenizer.path"),
    "torch_dtype": _to("model.dtype"),
    "push_to_hub_token": _SECRET,
    "push_to_hub_model_id": _to("export.push_to_hub"),
    "include_tokens_per_second": _gone("throughput is always reported"),
    "jit_mode_eval": _gone("it has no successor"),
    "fp16_backend": _gone("it has no successor"),
    "half_precision_backend": _gone("it has no successor"),
    "dispatch_batches": _gone("set it inside train.accelerator_config"),
    "split_batches": _gone("set it inside train.accelerator_config"),
    "tpu_num_cores": _LAUNCHER,
}

FOREIGN: dict[str, MakeFix] = {
    # model
    "base_model": _to("model.model_name_or_path"),
    "model_name": _to("model.model_name_or_path"),
    "checkpoint_dir": _to("model.model_name_or_path"),
    "model_revision": _to("model.revision"),
    "flash_attention": _either("model.attn_implementation", "flash_attention_2", "null is safe"),
    "flash_attn": lambda _value: write_line("model.attn_implementation", "flash_attention_2"),
    "special_tokens": lambda value: _special_tokens(value),
    "tokenizer_name_or_path": _to("tokenizer.path"),
    "tokenizer_config": _to("tokenizer.path"),
    # quantization
    "load_in_4bit": _QUANTIZE_4,
    "load_in_8bit": _QUANTIZE_8,
    "quantization_bit": _bits,
    "quant_bits": _bits,
    "quantize": _bits,
    "quantization_method": _gone("quantization: nf4 or int8 says it all"),
    # adapter
    "lora_rank": _to("adapter.r"),
    "lora_r": _to("adapter.r"),
    "rank": _to("adapter.r"),
    "lora_target": lambda value: write_line("adapter.target_modules", _targets(value)),
    "lora_target_modules": _to("adapter.target_modules"),
    "lora_target_linear": lambda _value: write_line("adapter.target_modules", "all-linear"),
    "lora_modules_to_save": _to("adapter.modules_to_save"),
    "additional_target": lambda value: write_line("adapter.modules_to_save", _targets(value)),
    "peft_use_dora": _to("adapter.use_dora"),
    "peft_use_rslora": _to("adapter.use_rslora"),
    "lora_model_dir": _to("adapter.init_from"),
    "adapter_name_or_path": _to("adapter.init_from"),
    "finetuning_type": _gone("an adapter is always trained; quantization: nf4 makes it QLoRA"),
    "use_peft": _gone("an adapter is always trained"),
    "stage": _gone("a run is always supervised fine-tuning"),
    # data
    "cutoff_len": _to("data.max_length"),
    "sequence_len": _to("data.max_length"),
    "max_seq_len": _to("data.max_length"),
    "model_max_length": _to("data.max_length"),
    "sample_packing": _PACKING,
    "neat_packing": _PACKING,
    "eval_sample_packing": _BY_PACKING,
    "pad_to_sequence_len": _BY_PACKING,
    "train_on_inputs": _choose("data.loss_on", "all", "auto"),
    "train_on_prompt": _choose("data.loss_on", "all", "auto"),
    "mask_history": _choose("data.loss_on", "last_assistant", "assistant"),
    "dataset": _datasets,
    "dataset_name": _datasets,
    "train_file": _datasets,
    "val_set_size": _split_size,
    "val_size": _split_size,
    "test_datasets": lambda value: write_line("data.validation", {"datasets": value}),
    "eval_dataset": lambda value: write_line("data.validation", {"datasets": [{"path": value}]}),
    "template": _gone("the tokenizer's own template is used; data.chat_template takes a file"),
    "conversation_template": _gone("the tokenizer's own template is used"),
    "dataset_prepared_path": _gone("rows are prepared anew at every start"),
    "overwrite_cache": _gone("the cache knows by its content when it is out of date"),
    "preprocessing_num_workers": _gone("rows are prepared in batches, in the process that trains"),
    "max_samples": lambda _value: write_line("data.datasets.0.repeat", 0.1),
    # train
    "micro_batch_size": _to("train.per_device_train_batch_size"),
    "batch_size": _to("train.per_device_train_batch_size"),
    "eval_batch_size": _to("train.per_device_eval_batch_size"),
    "total_batch_size": _to("train.global_batch_size"),
    "num_epochs": _to("train.num_train_epochs"),
    "epochs": _to("train.num_train_epochs"),
    "lr": _to("train.learning_rate"),
    "lr_scheduler": _to("train.lr_scheduler_type"),
    "optimizer": _to("train.optim"),
    "saves_per_epoch": lambda _value: write_line("train.save_strategy", "epoch"),
    "evals_per_epoch": lambda _value: write_line("train.eval_strategy", "epoch"),
    "grad_clip": _to("train.max_grad_norm"),
    "gradient_clipping": _to("train.max_grad_norm"),
    "plot_loss": _gone("the numbers are in metrics.jsonl, or set train.report_to: tensorboard"),
    "early_stopping": _to("train.early_stopping_patience"),
    # trackers and files
    "wandb_project": lambda _value: "write train.report_to: wandb, and set WANDB_PROJECT",
    "wandb_entity": _gone("set the environment variable WANDB_ENTITY"),
    "wandb_run_id": _gone("set the environment variable WANDB_RUN_ID"),
    "wandb_watch": _gone("set the environment variable WANDB_WATCH"),
    "wandb_name": _to("train.run_name"),
    "use_tensorboard": lambda _value: write_line("train.report_to", "tensorboard"),
    "out_dir": _to("output_dir"),
    "hub_model_id": _to("export.push_to_hub"),
    "hf_token": _SECRET,
    "hf_hub_token": _SECRET,
    "hub_token": _SECRET,
    "auto_resume_from_checkpoints": _gone("a run resumes by itself"),
}


def _targets(value: Any) -> Any:
    """LLaMA-Factory writes `all`, or names with commas between."""
    if value == "all":
        return "all-linear"
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _special_tokens(value: Any) -> str:
    """axolotl's mapping of token names, of which the tokenizer section takes two."""
    tokens = value if isinstance(value, dict) else {}
    names = [name for name in ("pad_token", "eos_token") if name in tokens]
    lines = (f"tokenizer.{name}: {write_yaml_inline(tokens[name])}" for name in names)
    return f"write {'; '.join(lines)}" if names else "delete the line"
