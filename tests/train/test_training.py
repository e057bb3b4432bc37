"""The files that a training run writes, and the errors that end it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.commands import read_metrics
from tests.tiny import make_tokenizer

# With this learning rate a tiny model soon becomes worse. The best checkpoint is kept.
DIVERGING = {
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}
# The loss falls. With `greater_is_better` a high loss counts as good: the first checkpoint is best.
FIRST_IS_BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
    "max_steps": 6,
}


def test_a_run_directory_has_all_documented_files(command, write_recipe, tmp_path):
    outcome = command("train", write_recipe(train={"eval_strategy": "steps", "eval_steps": 2}))
    assert outcome.code == 0
    assert outcome.stdout == ""
    run = tmp_path / "run"
    assert json.loads((run / "status.json").read_text()) == {
        "exit_code": 0,
        "reason": "",
        "step": 4,
        "state_saved": True,
    }
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["world_size"] == 1
    assert manifest["account"]["train"]["read"] + manifest["account"]["validation"]["read"] == 48
    assert manifest["versions"]["trl"]
    assert list(read_metrics(run, "loss")) == [1, 2, 3, 4]
    assert list(read_metrics(run, "eval_loss")) == [2, 4]
    names = {path.name for path in (run / "adapter").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
    } <= names
    assert not list(run.rglob("training_args.bin"))
    assert not [path for path in run.rglob("*.bin") if path.is_file()]
    card = (run / "adapter" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "More Information Needed" not in card


def test_training_lowers_the_loss_and_the_adapter_loads_in_plain_peft(
    command, write_recipe, tmp_path, tiny_model
):
    assert command("train", write_recipe(train={"max_steps": 30, "learning_rate": 2e-2})).code == 0
    losses = list(read_metrics(tmp_path / "run", "loss").values())
    assert losses[-1] < 0.95 * losses[0]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.arange(20)[None]
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    assert not torch.allclose(adapted(ids).logits, plain, atol=1e-2)


def test_qlora_trains_in_float32_on_four_bit_weights(command, write_recipe, tmp_path):
    recipe = write_recipe(
        model={"dtype": "bfloat16"},
        quantization="nf4",
        train={"eval_strategy": "steps", "eval_steps": 2, "max_steps": 8, "learning_rate": 1e-2},
    )
    assert command("train", recipe).code == 0
    losses = list(read_metrics(tmp_path / "run", "loss").values())
    assert losses[-1] < losses[0]
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    rows = json.loads((tmp_path / "run" / "manifest.json").read_text())["census"]["rows"]
    assert {row["kind"] for row in rows} == {"quantised", "frozen", "trained"}


def test_a_nan_loss_stops_training_before_the_step(command, write_recipe, tmp_path):
    """Infinite weights make the first loss NaN. No adapter may be saved."""
    broken = tmp_path / "broken"
    source = Path(json.loads(write_recipe().read_text())["model"]["model_name_or_path"])
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(source).save_pretrained(broken)
    outcome = command("train", write_recipe(model={"model_name_or_path": str(broken)}))
    assert outcome.code == 6
    assert "the loss is nan at optimizer step 1" in outcome.stderr
    assert not (tmp_path / "run" / "adapter").exists()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 6
    assert status["state_saved"] is False


def test_the_best_checkpoint_is_exported(command, write_recipe, tmp_path):
    recipe = write_recipe(train=FIRST_IS_BEST)
    assert command("train", recipe).code == 0
    losses = read_metrics(tmp_path / "run", "eval_loss")
    assert max(losses, key=losses.__getitem__) == 2
    folder = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    best_tensors = load_file(folder / "adapter_model.safetensors")
    exported = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert best_tensors.keys() == exported.keys()
    assert all(torch.equal(best_tensors[name], exported[name]) for name in exported)


@pytest.mark.parametrize("last_step", [4, 6])
def test_a_moved_run_still_finds_its_best_checkpoint(command, write_recipe, tmp_path, last_step):
    """The run was stopped after step 4, or killed after its last checkpoint, and then moved."""
    recipe = write_recipe(train=FIRST_IS_BEST)
    assert command("train", recipe).code == 0
    run, moved = tmp_path / "run", tmp_path / "moved"
    wanted = (run / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    (run / "status.json").unlink()
    shutil.rmtree(run / "adapter")
    if last_step == 4:
        shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    run.rename(moved)
    again = command("train", recipe, f"output_dir={moved}", "train.save_steps=6")
    assert again.code == 0, again.stderr
    assert f"continuing from {moved / 'checkpoints' / f'checkpoint-{last_step}'}" in again.stderr
    assert "does not exist anymore" not in again.stderr
    assert (moved / "adapter" / "adapter_model.safetensors").read_bytes() == wanted


def test_a_run_resumed_in_a_new_folder_keeps_its_best_checkpoint(command, write_recipe, tmp_path):
    recipe = write_recipe(train=FIRST_IS_BEST)
    assert command("train", recipe).code == 0
    checkpoints, new = tmp_path / "run" / "checkpoints", tmp_path / "new"
    wanted = (checkpoints / "checkpoint-2" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(checkpoints / "checkpoint-6")
    again = ["train", recipe, f"output_dir={new}"]
    assert command(*again, "--resume", checkpoints / "checkpoint-4").code == 0
    for longer in (6, 8):
        (new / "status.json").unlink()
        shutil.rmtree(new / "adapter")
        assert command(*again, f"train.max_steps={longer}").code == 0
        assert (new / "adapter" / "adapter_model.safetensors").read_bytes() == wanted


@pytest.mark.parametrize(
    ("is_missing", "what"), [(True, "is not in"), (False, "is damaged (adapter")]
)
def test_a_missing_or_damaged_best_checkpoint_is_named_and_its_score_ignored(
    command, write_recipe, tmp_path, is_missing, what
):
    recipe = write_recipe(train=FIRST_IS_BEST)
    assert command("train", recipe).code == 0
    run = tmp_path / "run"
    (run / "status.json").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    best = run / "checkpoints" / "checkpoint-2"
    if is_missing:
        shutil.rmtree(best)
    else:
        with (best / "adapter_model.safetensors").open("r+b") as file:
            file.seek(-2, 2)
            file.write(b"!")
    again = command("train", recipe, "train.max_steps=8")
    assert again.code == 0, again.stderr
    assert f"the best checkpoint checkpoint-2 {what}" in again.stderr
    losses = read_metrics(run, "eval_loss")
    assert losses[6] > losses[8]
    kept = run / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors"
    exported = run / "adapter" / "adapter_model.safetensors"
    assert exported.read_bytes() == kept.read_bytes()


def test_early_stopping_ends_a_run_that_does_not_improve(command, write_recipe, tmp_path):
    recipe = write_recipe(train={**DIVERGING, "max_steps": 40, "early_stopping_patience": 2})
    assert command("train", recipe).code == 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 0
    assert status["step"] < 40


def test_tensorboard_events_are_written_into_the_run(command, write_recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    assert command("train", write_recipe(train={"report_to": "tensorboard"})).code == 0
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_resumed_after_a_signal_gives_the_same_losses(
    number, command, write_recipe, tmp_path
):
    straight = write_recipe(
        "straight.yaml", train={"max_steps": 40, "save_steps": 100}, output_dir=str(tmp_path / "s")
    )
    recipe = write_recipe(train={"max_steps": 40, "save_steps": 100})
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_sft", "train", str(recipe)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(number)
    code = process.wait(timeout=120)
    assert code == (130 if number == signal.SIGINT else 75)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == code
    assert status["state_saved"] is True
    assert 1 <= status["step"] < 40
    assert command("train", recipe).code == 0
    assert command("train", straight).code == 0
    assert read_metrics(tmp_path / "run", "loss") == read_metrics(tmp_path / "s", "loss")


def test_settings_that_sft_config_refuses_are_a_recipe_error(command, write_recipe):
    outcome = command(
        "train", write_recipe(train={"optim": "adamw_torch", "save_strategy": "best"})
    )
    assert outcome.code == 2
    assert len(outcome.stderr.strip().splitlines()) == 3


def test_accumulation_steps_may_replace_the_global_batch_size(command, write_recipe, tmp_path):
    recipe = write_recipe(train={"global_batch_size": None, "gradient_accumulation_steps": 4})
    assert command("train", recipe).code == 0
    plan = json.loads((tmp_path / "run" / "manifest.json").read_text())["plan"]
    expected = {"micro_batch_size": 2, "accumulation_steps": 4, "global_batch_size": 8}
    assert expected.items() <= plan.items()


def test_a_base_with_missing_tensors_is_refused(command, write_recipe, tmp_path, tiny_model):
    """transformers would initialise them with random numbers and continue."""
    incomplete = tmp_path / "incomplete"
    shutil.copytree(tiny_model, incomplete)
    tensors = load_file(incomplete / "model.safetensors")
    lost = [name for name in tensors if "layers.1.mlp" in name]
    kept = {name: tensor for name, tensor in tensors.items() if name not in lost}
    save_file(kept, incomplete / "model.safetensors")
    outcome = command("train", write_recipe(model={"model_name_or_path": str(incomplete)}))
    assert outcome.code == 4
    assert f"{len(lost)} tensors of the model are not in its files" in outcome.stderr


def test_a_tokenizer_larger_than_the_embedding_is_refused(command, write_recipe, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["Paris", "Oslo"])
    tokenizer.save_pretrained(tmp_path / "larger")
    outcome = command("train", write_recipe(tokenizer={"path": str(tmp_path / "larger")}))
    assert outcome.code == 4
    assert "the model has 400 embedding rows" in outcome.stderr


def test_an_existing_merge_folder_is_refused_before_training(command, write_recipe, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    outcome = command("train", write_recipe(export={"merge": str(tmp_path / "taken")}))
    assert outcome.code == 7
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_checkpoint_of_a_qlora_run_can_be_merged(command, write_recipe, tmp_path):
    recipe = write_recipe(model={"dtype": "bfloat16"}, quantization="nf4")
    assert command("train", recipe).code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    report = command("merge", checkpoint, tmp_path / "merged", "--json")
    assert report.code == 0, report.stderr
    assert report.json["onto"] == "dequantized"


def test_an_unfinished_run_cannot_be_evaluated_or_chatted_with(command, write_recipe, tmp_path):
    assert command("train", write_recipe()).code == 0
    shutil.rmtree(tmp_path / "run" / "adapter")
    for name in ("evaluate", "chat"):
        outcome = command(name, tmp_path / "run")
        assert outcome.code == 4
        assert "its training is not complete" in outcome.stderr
