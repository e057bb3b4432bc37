"""Packed rows give the same training as unpacked rows, or they are not packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from lora_sft.model.isolation import Isolation
from lora_sft.train import packing
from lora_sft.train.trl.row_collator import RowCollator
from tests.commands import read_metrics, run_torchrun
from tests.conftest import make_rows, write_rows

RELATIVE_LOSS, RELATIVE_LOSS_BFLOAT16 = 1e-5, 2e-3
RELATIVE_NORM, RELATIVE_NORM_BFLOAT16 = 1e-4, 2e-2
QLORA = {"model": {"dtype": "bfloat16"}, "quantization": "nf4"}
# One step has the whole data set, packed or not.
WHOLE_SET = {"max_steps": -1, "num_train_epochs": 3, "global_batch_size": 64, "save_strategy": "no"}


@pytest.fixture
def leaking(monkeypatch):
    """Make attention see across the borders of documents."""
    masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(masks, "sdpa", lambda *arguments, **settings: None)


@pytest.fixture
def few_steps_are_enough(monkeypatch):
    monkeypatch.setattr(packing, "MIN_STEPS_PER_EPOCH", 1)


def read_plan(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())["plan"]


@pytest.mark.parametrize("micro", [1, 4], ids=["one sequence", "separate rows"])
@pytest.mark.parametrize(
    ("attention", "sections", "relative", "relative_norm"),
    [
        ("sdpa", {}, RELATIVE_LOSS, RELATIVE_NORM),
        ("eager", {}, RELATIVE_LOSS, RELATIVE_NORM),
        ("sdpa", QLORA, RELATIVE_LOSS_BFLOAT16, RELATIVE_NORM_BFLOAT16),
    ],
    ids=["lora, sdpa", "lora, eager", "qlora, sdpa"],
)
def test_packed_rows_have_the_loss_and_gradient_of_padded_rows(
    command, write_recipe, tmp_path, micro, attention, sections, relative, relative_norm
):
    recipes = {}
    for name, packs in (("packed", True), ("padded", False)):
        model = {**sections.get("model", {}), "attn_implementation": attention}
        recipes[name] = write_recipe(
            f"{name}.yaml",
            **{**sections, "model": model},
            data={"packing": packs},
            train={**WHOLE_SET, "per_device_train_batch_size": micro},
            output_dir=str(tmp_path / name),
        )
        outcome = command("train", recipes[name])
        assert outcome.code == 0, outcome.stderr
    plan = read_plan(tmp_path / "packed")["packing"]
    assert plan["on"]
    assert plan["rows"] < plan["documents"] / 2
    assert plan["leak"] == 0.0
    assert not read_plan(tmp_path / "padded")["packing"]["on"]
    for key, tolerance in (("loss", relative), ("grad_norm", relative_norm)):
        packed, padded = (read_metrics(tmp_path / name, key) for name in recipes)
        assert list(packed) == list(padded) == [1, 2, 3]
        assert packed[1] == pytest.approx(padded[1], rel=tolerance)
        # The first steps of AdamW amplify rounding, because m / sqrt(v) is close to 1 or -1 there.
        assert packed[3] == pytest.approx(padded[3], rel=max(10 * tolerance, 1e-3))


def test_the_comparison_notices_a_leak(command, write_recipe, tmp_path, leaking, monkeypatch):
    monkeypatch.setattr(packing, "measure_isolation", lambda *arguments: Isolation())
    for name, packs in (("packed", True), ("padded", False)):
        output = str(tmp_path / name)
        recipe = write_recipe(
            f"{name}.yaml", data={"packing": packs}, train=WHOLE_SET, output_dir=output
        )
        assert command("train", recipe).code == 0
    for key, tolerance in (("loss", RELATIVE_LOSS), ("grad_norm", RELATIVE_NORM)):
        packed, padded = (read_metrics(tmp_path / name, key)[1] for name in ("packed", "padded"))
        assert abs(packed - padded) > tolerance * padded


def test_packing_does_not_change_the_loss_of_held_out_rows(command, write_recipe, tmp_path):
    for name, packs in (("packed", True), ("padded", False)):
        evaluates = {"eval_on_start": True, "eval_strategy": "steps", "max_steps": 2}
        recipe = write_recipe(
            f"{name}.yaml",
            data={"packing": packs},
            train={**evaluates, "per_device_eval_batch_size": 3},
            output_dir=str(tmp_path / name),
        )
        assert command("train", recipe).code == 0
    packed, padded = (read_metrics(tmp_path / name, "eval_loss") for name in ("packed", "padded"))
    assert packed[0] == padded[0]


@pytest.mark.parametrize("micro", [1, 2])
def test_the_log_counts_every_token_once(command, write_recipe, tmp_path, micro):
    recipe = write_recipe(
        data={"packing": True}, train={**WHOLE_SET, "per_device_train_batch_size": micro}
    )
    assert command("train", recipe).code == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    tokens = manifest["account"]["train"]["tokens"]
    seen = read_metrics(tmp_path / "run", "num_tokens")[1]
    assert tokens <= seen <= (1.0 if micro == 1 else 1.2) * tokens
    assert manifest["plan"]["tokens_a_step"] == tokens
    learned = manifest["account"]["train"]["target_tokens"]
    assert manifest["plan"]["learned_tokens_a_step"] == learned


def test_leaking_attention_is_refused_in_three_lines(command, write_recipe, tmp_path, leaking):
    outcome = command("train", write_recipe(data={"packing": True}))
    assert outcome.code == 5
    what, where, fix = outcome.stderr.strip().splitlines()[-3:]
    assert what.startswith("error: rows cannot be packed: packed documents see each other")
    assert "data.packing" in where
    assert "attention sdpa" in where
    assert fix.startswith("fix:   write data.packing: auto")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_auto_does_not_pack_with_leaking_attention_and_logs_the_reason(
    command, write_recipe, tmp_path, leaking, few_steps_are_enough
):
    outcome = command("train", write_recipe(data={"packing": "auto"}))
    assert outcome.code == 0
    assert "packing: off, packed documents see each other" in outcome.stderr
    plan = read_plan(tmp_path / "run")["packing"]
    assert not plan["on"]
    assert plan["leak"] > 0.01
    assert plan["rows"] == plan["documents"]


def test_auto_packs_if_it_is_safe_and_logs_the_number_of_rows(
    command, write_recipe, tmp_path, few_steps_are_enough
):
    outcome = command("train", write_recipe(data={"packing": "auto"}))
    assert outcome.code == 0
    plan = read_plan(tmp_path / "run")["packing"]
    assert plan["on"]
    line = f"packing: {plan['documents']} rows in {plan['rows']} packed rows"
    assert line in outcome.stderr
    assert plan["utilisation"] > 0.8


def test_auto_does_not_pack_a_small_data_set(command, write_recipe, tmp_path):
    outcome = command("train", write_recipe(data={"packing": "auto"}))
    assert outcome.code == 0
    assert "steps per epoch at global_batch_size 8 (auto needs at least 32)" in outcome.stderr
    assert not read_plan(tmp_path / "run")["packing"]["on"]


def test_auto_does_not_pack_rows_that_fill_max_length(
    command, write_recipe, tmp_path, few_steps_are_enough
):
    lengths = {"data": {"packing": "auto", "max_length": 48, "overlong": "drop"}}
    outcome = command("train", write_recipe(**lengths))
    assert outcome.code == 0
    assert "rows fit beside others in max_length" in outcome.stderr


def test_a_resumed_packed_run_gives_the_same_adapter(command, write_recipe, tmp_path):
    recipe = write_recipe(data={"packing": True}, train={"global_batch_size": 2})
    assert command("train", recipe).code == 0
    run = tmp_path / "run"
    straight = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    losses = read_metrics(run, "loss")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    shutil.rmtree(run / "adapter")
    (run / "status.json").unlink()
    outcome = command("train", recipe)
    assert outcome.code == 0
    assert "continuing from" in outcome.stderr
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == straight
    assert read_metrics(run, "loss") == losses


def test_a_run_does_not_continue_if_the_packing_decision_changes(
    command, write_recipe, tmp_path, few_steps_are_enough, monkeypatch
):
    recipe = write_recipe(data={"packing": "auto"})
    assert command("train", recipe).code == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    shutil.rmtree(run / "adapter")
    (run / "status.json").unlink()
    monkeypatch.setattr(packing, "MIN_STEPS_PER_EPOCH", 32)
    outcome = command("train", recipe)
    assert outcome.code == 2
    assert "packed rows, but this start would train on" in outcome.stderr
    assert (run / "checkpoints" / "checkpoint-2").exists()


def test_two_processes_give_the_losses_of_one_with_packing(command, write_recipe, tmp_path):
    for name in ("one", "two"):
        recipe = write_recipe(
            f"{name}.yaml",
            data={"packing": True},
            train={"per_device_train_batch_size": 1},
            output_dir=str(tmp_path / name),
        )
        outcome = command("train", recipe) if name == "one" else run_torchrun(2, "train", recipe)
        assert outcome.code == 0, outcome.stderr
    one, two = (read_metrics(tmp_path / name, "loss") for name in ("one", "two"))
    assert list(one) == list(two) == [1, 2, 3, 4]
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=RELATIVE_LOSS)


@pytest.mark.parametrize("apart", [False, True])
def test_the_first_token_of_a_document_is_never_learned(apart):
    collate = RowCollator(pad_token_id=0, keeps_rows_apart=apart)
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [2, 3]},
        {"input_ids": [3, 4], "labels": [3, 4], "seq_lengths": [2]},
    ]
    batch = collate(rows)
    assert "attention_mask" not in batch
    positions, labels = batch["position_ids"], batch["labels"]
    assert torch.all(labels[positions == 0] == -100)
    if apart:
        assert positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 0, 0]]
        assert labels.tolist() == [[-100, 6, -100, 8, 9], [-100, 4, -100, -100, -100]]
        assert "cu_seq_lens_q" not in batch
    else:
        assert positions.tolist() == [[0, 1, 0, 1, 2, 0, 1]]
        assert labels.tolist() == [[-100, 6, -100, 8, 9, -100, 4]]
        assert batch["cu_seq_lens_q"].tolist() == [0, 2, 5, 7]
        assert batch["max_length_k"] == 3


def test_unpacked_rows_are_padded():
    rows = [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [-100]}]
    for apart in (False, True):
        batch = RowCollator(pad_token_id=0, keeps_rows_apart=apart)(rows)
        assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
        assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_single_document_may_be_packed(command, write_recipe, tmp_path):
    recipe = write_recipe(data={"packing": True, "validation": None}, train={"max_steps": 2})
    write_rows(tmp_path / "train.jsonl", make_rows(1))
    assert command("train", recipe).code == 0
    assert read_plan(tmp_path / "run")["packing"]["rows"] == 1
