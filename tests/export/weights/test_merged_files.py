"""The written files are split like those of the base model, and every tensor is exact."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_sft.export.merge_plan import make_merge_plan
from lora_sft.export.merging import merge
from lora_sft.export.proof.tensor_check import _count_ulps
from lora_sft.export.weights.parameter_names import CONV1D_MODEL_TYPES
from lora_sft.export.weights.shard_writing import ShardWriter
from tests.export.adapters import IDS, answer, make_adapter, make_tiny_gpt2, make_tiny_moe
from tests.tiny import make_tiny_llama

ALL = {"target_modules": "all-linear"}


def make_shards(folder: Path, dtype: torch.dtype = torch.bfloat16, **size: object) -> Path:
    """Save a tiny Llama in three files."""
    make_tiny_llama(folder, **size)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=model.num_parameters() * dtype.itemsize // 2)
    assert len(list(folder.glob("*.safetensors"))) == 3
    return folder


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def merge_into(tmp_path: Path, base: Path, **choices: object) -> dict[str, object]:
    plan = make_merge_plan(
        tmp_path / "adapter", tmp_path / "merged", base=str(base), **{"verify": "tensors"} | choices
    )
    return merge(plan)


@pytest.mark.parametrize("rows_per_block", [None, 7])
def test_the_output_has_the_shards_of_the_base_model_and_is_exact_to_one_ulp(
    tmp_path, monkeypatch, rows_per_block
):
    if rows_per_block:  # tensors have several blocks, and the last block is smaller
        monkeypatch.setattr(
            "lora_sft.export.weights.weight_changes.BLOCK_ELEMENTS", 64 * rows_per_block
        )
        monkeypatch.setattr("lora_sft.export.proof.tensor_check.COMPARED_ELEMENTS", 64 * 5)
        monkeypatch.setattr("lora_sft.export.weights.shard_writing.COPY_BYTES", 1000)
    base = make_shards(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", {"target_modules": ["q_proj", "down_proj"]})
    report = merge_into(tmp_path, base)
    assert report["tensors_merged"] == 4
    before, after = load_all(base), load_all(tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    reference = adapted.merge_and_unload().state_dict()
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        if "q_proj" in name or "down_proj" in name:
            assert not torch.equal(tensor, before[name])
            assert _count_ulps(tensor, reference[name].bfloat16()).max() <= 1
        else:
            assert torch.equal(tensor.view(torch.int16), before[name].view(torch.int16))
    left, right = (
        json.loads((folder / "model.safetensors.index.json").read_text())
        for folder in (base, tmp_path / "merged")
    )
    assert left["weight_map"] == right["weight_map"]
    size = sum(tensor.numel() * tensor.element_size() for tensor in after.values())
    assert right["metadata"]["total_size"] == size == left["metadata"]["total_size"]


def test_several_threads_write_the_same_bytes(tmp_path):
    base = make_shards(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", ALL)
    merge_into(tmp_path, base)
    before = {path.name: path.read_bytes() for path in (tmp_path / "merged").glob("*.safetensors")}
    shutil.rmtree(tmp_path / "merged")
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        merge_into(tmp_path, base)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert len(before) == 3
    for name, content in before.items():
        assert (tmp_path / "merged" / name).read_bytes() == content


def test_a_tensor_in_another_dtype_than_most_keeps_its_dtype(tmp_path):
    base = make_shards(tmp_path / "base")
    path = next(
        each for each in base.glob("*.safetensors") if "model.norm.weight" in load_file(each)
    )
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.linspace(0.9, 1.1, 64)
    save_file(tensors, path, {"format": "pt"})
    make_adapter(base, tmp_path / "adapter", ALL)
    merge_into(tmp_path, base, dtype="float16")
    merged = load_all(tmp_path / "merged")
    assert torch.equal(merged["model.norm.weight"], torch.linspace(0.9, 1.1, 64))
    assert merged["model.embed_tokens.weight"].dtype == torch.float16
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"


def test_several_adapters_are_merged_at_once(tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", ALL)
    make_adapter(base, tmp_path / "more", {"target_modules": ["v_proj"], "r": 8}, seed=2)
    merge_into(tmp_path, base, others=[tmp_path / "more"], verify="auto")
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", adapter_name="one"
    )
    adapted.load_adapter(tmp_path / "more", adapter_name="two")
    adapted.base_model.set_adapter(["one", "two"])
    difference = adapted.eval()(IDS).logits - answer(tmp_path / "merged")
    assert difference.abs().max() < 1e-5
    adapted.base_model.set_adapter(["one"])
    assert (adapted(IDS).logits - answer(tmp_path / "merged")).abs().max() > 1e-3


def test_a_base_model_whose_tensor_names_lack_the_prefix_is_merged(tmp_path):
    """GPT-2 on the hub has the name `h.0.attn...` for the parameter `transformer.h.0.attn...`."""
    base = make_tiny_gpt2(tmp_path / "base")
    path = base / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    expected = make_adapter(base, tmp_path / "adapter", {"target_modules": ["wte", "c_attn"]})
    merge_into(tmp_path, base)
    assert "h.0.attn.c_attn.weight" in load_all(tmp_path / "merged")
    assert (answer(tmp_path / "merged") - expected).abs().max() < 1e-5


def test_experts_that_are_stacked_on_disk_are_merged(tmp_path):
    base = make_tiny_moe(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    stacked = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(stacked, base / "model.safetensors", {"format": "pt"})
    lora = {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]}
    expected = make_adapter(base, tmp_path / "adapter", lora)
    assert merge_into(tmp_path, base)["tensors_merged"] == 4
    assert (answer(tmp_path / "merged") - expected).abs().max() < 1e-5


def test_experts_with_separate_adapter_tensors_are_merged_separately(tmp_path):
    """PEFT saved such adapters before transformers 5 stacked the experts. PEFT converts them."""
    base = make_tiny_moe(tmp_path / "base")
    names = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    LoraConfig(r=4, lora_alpha=8, target_modules=names).save_pretrained(str(tmp_path / "adapter"))
    torch.manual_seed(3)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in names:
            out_features, in_features = weight.shape
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(4, in_features) / 8
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out_features, 4) / 8
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    report = merge_into(tmp_path, base)
    assert report["adapter_tensors_used"] == len(tensors) == 2 * (2 + 2 * 4 * 3)
    assert report["tensors_merged"] == len(tensors) // 2
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert (answer(tmp_path / "merged") - adapted(IDS).logits).abs().max() < 1e-5
    assert (answer(tmp_path / "merged") - answer(base)).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_comparison_of_tensors_finds_every_lost_module(command, tmp_path, monkeypatch, dtype):
    """Each merged tensor in turn is written without its change. Logits would miss most of them."""
    base = make_shards(tmp_path / "base", getattr(torch, dtype))
    make_adapter(base, tmp_path / "adapter", ALL, scale=0.02)
    compute, lost, unnoticed = ShardWriter._compute, "", []
    modules = [f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in PARTS]

    def lose_one(self, computed, panel, rows, tensor, target, place):
        if tensor.name == lost:
            panel = type(panel)(panel.first_element, panel.num_rows, panel.num_columns, ())
        compute(self, computed, panel, rows, tensor, target, place)

    monkeypatch.setattr(ShardWriter, "_compute", lose_one)
    for lost in modules:
        outcome = command("merge", tmp_path / "adapter", tmp_path / "m", "--verify", "tensors")
        if outcome.code != 7 or f"1 of 21 tensors differ (first: {lost};" not in outcome.stderr:
            unnoticed.append(lost)
    assert len(modules) == 14
    assert unnoticed == []
    assert not (tmp_path / "m").exists()
    report = json.loads((tmp_path / "m.failed" / "merge_report.json").read_text())
    assert report["correctness"]["passed"] is False


PARTS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def test_a_copied_tensor_with_wrong_bytes_fails_the_verification(tmp_path, monkeypatch):
    base = make_shards(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    copy = ShardWriter._copy

    def copy_wrongly(self, source, offset, target, place, size):
        copy(self, source, offset - 2, target, place, size)

    monkeypatch.setattr(ShardWriter, "_copy", copy_wrongly)
    with pytest.raises(Exception, match="tensors differ"):
        merge_into(tmp_path, base)


def test_a_merge_that_compares_tensors_imports_no_training_library(tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", ALL)
    program = (
        "import sys; from lora_sft.cli.app import run\n"
        f"code = run(['merge', {str(tmp_path / 'adapter')!r}, {str(tmp_path / 'merged')!r}, "
        "'--verify', 'tensors'])\n"
        "heavy = {'trl', 'peft', 'datasets', 'transformers.modeling_utils'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_every_model_type_of_transformers_with_conv1d_is_listed():
    """A square Conv1D has the shape of a linear layer, so only the model type shows it."""
    folder = Path(sys.modules[Conv1D.__module__].__file__).parent / "models"
    users = {
        path.parent.name
        for path in folder.glob("*/modeling_*.py")
        if "Conv1D(" in path.read_text() and "import Conv1D" in path.read_text()
    }
    assert {name.replace("openai", "openai-gpt") for name in users} <= CONV1D_MODEL_TYPES
    assert "gpt2" in users


def test_a_second_merge_into_the_same_output_is_refused(tmp_path, command):
    base = make_tiny_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", ALL)
    (tmp_path / ".merged.merging").mkdir()
    held = os.open(tmp_path / ".merged.merging", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    outcome = command("merge", tmp_path / "adapter", tmp_path / "merged")
    os.close(held)
    assert outcome.code == 7
    assert "another merge is writing to this output now" in outcome.stderr
    assert command("merge", tmp_path / "adapter", tmp_path / "merged").code == 0


def test_too_little_disk_space_is_an_error_before_anything_is_written(
    tmp_path, command, monkeypatch
):
    base = make_tiny_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "adapter", ALL)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    outcome = command("merge", tmp_path / "adapter", tmp_path / "merged")
    assert outcome.code == 5
    assert "too little disk space" in outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
