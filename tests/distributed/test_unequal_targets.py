"""Every learned token has the same weight, even if two processes have different numbers of them.

On one process every learned token has the same weight. If two processes averaged their mean
gradients, a learned token of a short row would have more weight than one of a long row.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import run_torchrun
from tests.conftest import write_rows

pytestmark = pytest.mark.slow
SHORT = [
    {
        "messages": [
            {"role": "user", "content": f"{index}?"},
            {"role": "assistant", "content": "Z"},
        ]
    }
    for index in range(4)
]
LONG = [
    {
        "messages": [
            {"role": "user", "content": f"{index}?"},
            {"role": "assistant", "content": "The quick brown fox is fine, thank you. " * 6},
        ]
    }
    for index in range(4)
]


@pytest.fixture
def gradient(command, write_recipe, tmp_path):
    """A function that returns the gradient of one step, as SGD with rate 1 subtracts it."""
    start = tmp_path / "start"

    def compute(name, rows, processes=1, **train):
        recipe = write_recipe(
            f"{name}.yaml",
            data={"datasets": [{"path": f"{name}.jsonl"}], "validation": None, "max_length": 512},
            adapter={"init_from": str(start)} if start.exists() else {"r": 4, "lora_alpha": 8},
            output_dir=str(tmp_path / name),
            train={
                "learning_rate": 1.0,
                "optim": "sgd",
                "lr_scheduler_type": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "max_grad_norm": 1e9,
                "max_steps": 1,
                "per_device_train_batch_size": len(rows) // processes,
                "global_batch_size": len(rows),
                "train_sampling_strategy": "sequential",
                **train,
            },
        )
        if start.exists():
            recipe.write_text(_remove_shape(recipe.read_text()))
        write_rows(tmp_path / f"{name}.jsonl", rows)
        done = command("train", recipe) if processes == 1 else run_torchrun(2, "train", recipe)
        assert done.code == 0, done.stderr
        after = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        before = load_file(start / "adapter_model.safetensors") if start.exists() else after
        return torch.cat([(before[key] - after[key]).flatten() for key in sorted(after)])

    compute("start_run", SHORT + LONG)
    (tmp_path / "start_run" / "adapter").rename(start)
    tensors = load_file(start / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    moved = {
        key: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in tensors.items()
    }
    save_file(moved, start / "adapter_model.safetensors", metadata={"format": "pt"})
    return compute


def _remove_shape(text):
    """Keep only `adapter.init_from`: that adapter has its own rank and scale."""
    recipe = json.loads(text)
    recipe["adapter"] = {"init_from": recipe["adapter"]["init_from"]}
    return json.dumps(recipe)


def test_every_learned_token_has_the_same_weight_on_two_processes(gradient):
    one = gradient("one", SHORT + LONG)
    two = gradient("two", SHORT + LONG, processes=2)
    short, long = gradient("short", SHORT), gradient("long", LONG)
    naive = (short + long) / 2
    assert (two - one).norm() <= 1e-5 * one.norm()
    assert (naive - one).norm() > one.norm(), "these rows must distinguish the two gradients"
