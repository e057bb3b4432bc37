"""Make a base and an adapter, merge them with PEFT, and compare two merged models.

`python -m benchmarks.cpu.merge_worker COMMAND`:

make SIZE FOLDER            write `FOLDER/base` and `FOLDER/adapter`, one shard at a time, so that
                            making a model needs no more memory than merging it
peft BASE ADAPTER OUTPUT    merge with PEFT's documented calls
compare OURS PEFT BASE      compare the three models, one tensor at a time

`make` and `compare` print JSON on their last line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

TOKENIZER = "lora_sft/quickstart/base"  # a small tokenizer in the source tree
SIZES: Mapping[str, dict[str, Any]] = {
    "0.32 B": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 32_000,
    },
    # The shapes of Llama-3.2-1B and Llama-3.2-3B
    "1.2 B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "3.2 B": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "toy": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 4_096,
    },
}
NUM_SHARDS = 3
RANK, ALPHA = 16, 32
SEED = 0
BASE_STANDARD_DEVIATION = 0.02
# With PEFT's initialisation of A, this changes a weight by about a tenth of its size.
B_STANDARD_DEVIATION = 0.01


def make(size: str, folder: str) -> None:
    """Write a random base in bf16 with three shards and a tokenizer, and an adapter for it."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    base, adapter = Path(folder) / "base", Path(folder) / "adapter"
    base.mkdir()
    adapter.mkdir()
    torch.manual_seed(SEED)
    config = LlamaConfig(**{"tie_word_embeddings": False, **SIZES[size]}, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    parameters = dict(model.named_parameters())  # a tied head is not listed: it is the embedding
    _write_shards(parameters, base)
    config.save_pretrained(base)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(base)
    modules = _write_adapter(model, adapter)
    shards = len(list(base.glob("*.safetensors")))
    total = sum(parameter.numel() for parameter in parameters.values())
    answer = {"parameters": total, "adapted_modules": modules, "base_shards": shards}
    print(json.dumps(answer))


def _write_shards(parameters: Mapping[str, torch.Tensor], folder: Path) -> None:
    total = sum(parameter.numel() for parameter in parameters.values())
    shards: list[list[str]] = [[]]
    size = 0
    for name, parameter in parameters.items():
        if size and size + parameter.numel() > 1.05 * total / NUM_SHARDS:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += parameter.numel()
    weight_map = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _make_weight(parameters[name].shape) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    index_file = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


def _make_weight(shape: torch.Size) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=BASE_STANDARD_DEVIATION)


def _write_adapter(model: torch.nn.Module, folder: Path) -> int:
    """Write an adapter in PEFT's format, on all linear layers except the output head.

    Returns: The number of adapted modules.
    """
    from peft import LoraConfig

    tensors, names = {}, set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            a = torch.empty(RANK, module.in_features)
            torch.nn.init.kaiming_uniform_(a, a=5**0.5)  # as PEFT initialises it
            b = torch.empty(module.out_features, RANK).normal_(std=B_STANDARD_DEVIATION)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
            names.add(name.rsplit(".", 1)[-1])
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=sorted(names), task_type="CAUSAL_LM"
    )
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return len(tensors) // 2


def merge_with_peft(base: str, adapter: str, output: str) -> None:
    """Load the base in bf16, merge the adapter and save the model, as PEFT's documentation does."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(output)
    AutoTokenizer.from_pretrained(base).save_pretrained(output)


def compare(ours: str, peft: str, base: str) -> None:
    """Print the largest differences between the models.

    Only one tensor of each model is in memory at a time.
    """
    apart, moved = 0.0, 0.0
    with open_tensors(ours) as left, open_tensors(peft) as right, open_tensors(base) as before:
        if not set(left) == set(right) == set(before):
            raise SystemExit(f"{ours}, {peft} and {base} do not hold the same tensors")
        for name in sorted(left):
            our, their, old = (each[name].get_tensor(name) for each in (left, right, before))
            if not our.dtype == their.dtype == old.dtype:
                raise SystemExit(
                    f"{name} is {our.dtype} in {ours}, {their.dtype} in {peft} and {old.dtype} in "
                    f"{base}"
                )
            apart = max(apart, _find_largest_difference(our, their))
            moved = max(moved, _find_largest_difference(our, old))
        tensors = len(left)
    answer = {
        "tensors_compared": tensors,
        "largest_difference_between_outputs": apart,
        "largest_difference_from_base": moved,
    }
    print(json.dumps(answer))


@contextmanager
def open_tensors(folder: str) -> Iterator[Mapping[str, Any]]:
    """Open the weight files of a folder, and yield the open file of each tensor name."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(str(path), framework="pt"))
            for path in sorted(Path(folder).glob("*.safetensors"))
        ]
        # `safe_open` returns no mapping, so its names come only from `keys`.
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118


def _find_largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return 0.0 if torch.equal(left, right) else float((left - right).abs_().max())


def main(command: str, arguments: Sequence[str]) -> None:
    """Run one of the commands."""
    commands: dict[str, Callable[..., None]] = {
        "make": make,
        "peft": merge_with_peft,
        "compare": compare,
    }
    commands[command](*arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
