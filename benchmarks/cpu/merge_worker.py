"""Make a base and an adapter, merge them with PEFT alone, and compare two merged models.

`python -m benchmarks.cpu.merge_worker make toy|full FOLDER` writes `base` and `adapter` there;
`peft BASE ADAPTER OUTPUT` is what a script of PEFT's own calls does; `compare OURS PEFT BASE`
reads the three models tensor by tensor. The last line of `make` and `compare` is JSON.
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

TOKENIZER = "lora_sft/quickstart/base"  # small, and in the source tree
SIZES: Mapping[str, dict[str, Any]] = {
    "full": {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32_000,
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
# With PEFT's own A, this moves a weight by about a tenth of its size.
B_STANDARD_DEVIATION = 0.01


def make(size: str, folder: str) -> None:
    """A random base in bf16 with a tokenizer, in three shards, and an adapter that changes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    base, adapter = Path(folder) / "base", Path(folder) / "adapter"
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[size], tie_word_embeddings=False))
    parameters = model.num_parameters()
    weight_bytes = 2 * parameters
    model.save_pretrained(base, max_shard_size=weight_bytes // NUM_SHARDS + weight_bytes // 20)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(base)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    modules = 0
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=B_STANDARD_DEVIATION)
            modules += 1
    adapted.save_pretrained(str(adapter))
    shards = len(list(base.glob("*.safetensors")))
    answer = {"parameters": parameters, "adapted_modules": modules, "base_shards": shards}
    print(json.dumps(answer))


def merge_with_peft(base: str, adapter: str, output: str) -> None:
    """Load in bf16, attach, merge, save: PEFT's documented way."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(output)
    AutoTokenizer.from_pretrained(base).save_pretrained(output)


def compare(ours: str, peft: str, base: str) -> None:
    """The largest differences over all tensors, one tensor of each model in memory at a time."""
    apart, moved = 0.0, 0.0
    with open_tensors(ours) as left, open_tensors(peft) as right, open_tensors(base) as before:
        if not set(left) == set(right) == set(before):
            raise SystemExit("the outputs do not hold the same tensors")
        for name in sorted(left):
            our, their, old = (each[name].get_tensor(name) for each in (left, right, before))
            if not our.dtype == their.dtype == old.dtype:
                raise SystemExit(f"{name} is {our.dtype} here and {their.dtype} there")
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
    """Tensor name -> the open file that holds it."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(safe_open(str(path), framework="pt"))
            for path in sorted(Path(folder).glob("*.safetensors"))
        ]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118 (no mapping)


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
