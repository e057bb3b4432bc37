"""A run continues only with everything that changes its numbers; what may change is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_sft.train import manifest
from lora_sft.train.checkpoints.conditions import list_other_conditions
from tests.conftest import make_rows, write_rows
from tests.tiny import make_tiny_llama

LONGER = "train.max_steps=2"
OTHER = "this start differs from the one before"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base model, rows, a recipe, and a run of one step."""
    from lora_sft.cli.app import run

    folder = tmp_path_factory.mktemp("begun")
    make_tiny_llama(folder / "base")
    write_rows(folder / "train.jsonl", make_rows(24))
    write_rows(folder / "validation.jsonl", make_rows(30)[24:])
    (folder / "recipe.yaml").write_text(
        f"""
model: {{model_name_or_path: base, dtype: float32}}
adapter: {{r: 4, lora_alpha: 8}}
data:
  datasets: [{{path: train.jsonl}}]
  validation: {{datasets: [{{path: validation.jsonl}}]}}
  max_length: 128
  packing: false
train: {{max_steps: 1, warmup_steps: 0, per_device_train_batch_size: 2, global_batch_size: 4,
         save_steps: 1, gradient_checkpointing: false}}
output_dir: {folder / "run"}
"""
    )
    assert run(["train", str(folder / "recipe.yaml")]) == 0
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Iterator[Path]:
    """Yield the same folder, at its own place, and restore its files afterwards."""
    shutil.copytree(begun, tmp_path / "copy")
    yield begun
    shutil.rmtree(begun)
    shutil.copytree(tmp_path / "copy", begun)


def edit_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path) -> None:
    """Change 4 bytes of one tensor, at a place that the adapter's fingerprint does not read."""
    path = folder / "base" / "model.safetensors"
    content = bytearray(path.read_bytes())
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    start, end = header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"]
    place = 8 + header_bytes + start + (end - start) * 3 // 10 // 4 * 4
    content[place : place + 4] = b"\x00\x00\x40\x40"
    path.write_bytes(bytes(content))


def edit_tokenizer(folder: Path) -> None:
    """Add a token. No row contains it, so the rows keep their ids."""
    path = folder / "base" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = {**tokenizer["added_tokens"][-1], "id": len(tokenizer["model"]["vocab"])}
    tokenizer["added_tokens"].append({**added, "content": "<|never seen|>"})
    path.write_text(json.dumps(tokenizer))


def edit_template(folder: Path) -> None:
    """Add a branch that no row takes."""
    path = folder / "base" / "chat_template.jinja"
    path.write_text("{%- if no_such_thing -%}{{- 'x' -}}{%- endif -%}" + path.read_text())


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "norm": (
        lambda folder: edit_json(folder / "base" / "config.json", rms_norm_eps=0.5),
        "the config of the base model is not that of the checkpoint: rms_norm_eps: 1e-06 -> 0.5",
    ),
    "activation": (
        lambda folder: edit_json(folder / "base" / "config.json", hidden_act="gelu"),
        'hidden_act: "silu" -> "gelu"',
    ),
    "rope": (
        lambda folder: edit_json(
            folder / "base" / "config.json",
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        "rope_parameters.rope_theta: 10000.0 -> 500.0",
    ),
    "new field": (
        lambda folder: edit_json(folder / "base" / "config.json", sliding_window=8),
        "sliding_window: not there -> 8",
    ),
    "weights": (
        edit_weights,
        "the weights of the base model are not those of the checkpoint: model.safetensors: ",
    ),
    "tokenizer": (edit_tokenizer, "the tokenizer is not that of the checkpoint (old "),
    "template": (edit_template, "the chat template is not that of the checkpoint (old "),
    "rows": (
        lambda folder: write_rows(folder / "train.jsonl", make_rows(23)),
        "the training rows are not those of the checkpoint (old ",
    ),
    "validation rows": (
        lambda folder: write_rows(folder / "validation.jsonl", make_rows(29)[24:]),
        "the validation rows, which choose the best checkpoint, are not those of the checkpoint",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_numbers_is_refused_by_name(command, folder, change):
    edit, said = CHANGES[change]
    edit(folder)
    state = (folder / "run" / "manifest.json").read_bytes()
    outcome = command("train", folder / "recipe.yaml", LONGER)
    assert outcome.code == 2, outcome.stderr
    assert said in outcome.stderr
    assert "new run in another output_dir, or add --overwrite" in outcome.stderr
    assert (folder / "run" / "manifest.json").read_bytes() == state


def test_fields_that_change_no_number_may_change(command, folder):
    edit_json(
        folder / "base" / "config.json",
        use_cache=False,
        transformers_version="5.0.0",
        _attn_implementation="eager",
    )
    outcome = command("train", folder / "recipe.yaml", LONGER)
    assert outcome.code == 0, outcome.stderr
    assert OTHER not in outcome.stderr


def test_other_libraries_and_another_machine_are_said_once(command, folder, monkeypatch):
    monkeypatch.setattr(manifest, "read_versions", lambda: {"torch": "9.9", "new": "1.0"})
    machine = {"device": "NVIDIA H100", "threads": 64}
    monkeypatch.setattr(manifest, "read_machine", lambda: machine)
    recorded = json.loads((folder / "run" / "manifest.json").read_text())
    outcome = command("train", folder / "recipe.yaml", LONGER)
    assert outcome.code == 0, outcome.stderr
    (line,) = (line for line in outcome.stderr.splitlines() if line.startswith(OTHER))
    assert f"torch {recorded['versions']['torch']} -> 9.9" in line
    assert "new none -> 1.0" in line
    assert "device cpu -> NVIDIA H100" in line
    assert f"threads {recorded['machine']['threads']} -> 64" in line
    again = command("train", folder / "recipe.yaml", "train.max_steps=3")
    assert again.code == 0
    assert OTHER not in again.stderr


def test_another_number_of_processes_is_said_and_what_was_never_recorded_is_not():
    now = {"versions": {"torch": "2"}, "machine": {"threads": 1}, "world_size": 2}
    assert list_other_conditions({**now, "world_size": 1}, now) == ["processes 1 -> 2"]
    assert list_other_conditions({"versions": {"torch": "1"}}, now) == ["torch 1 -> 2"]
    assert list_other_conditions(now, now) == []
