"""A recipe gives the same numbers with any division of the batch and under any launcher."""

from __future__ import annotations

import json
import sys

import pytest

from tests.commands import find_free_port, read_metrics, run_process, run_torchrun

QLORA = {"model": {"dtype": "bfloat16"}, "quantization": "nf4"}
# In bfloat16 another division of the batch rounds the sums differently.
RELATIVE_LOSS, RELATIVE_LOSS_BFLOAT16 = 1e-5, 2e-3


def check_same_losses(tmp_path, one: str, other: str, relative: float) -> None:
    left, right = read_metrics(tmp_path / one, "loss"), read_metrics(tmp_path / other, "loss")
    assert list(left) == list(right) == [1, 2, 3, 4]
    for step, loss in left.items():
        assert right[step] == pytest.approx(loss, rel=relative)
    residuals = [right[step] - loss for step, loss in left.items()]
    assert abs(sum(residuals) / len(residuals)) <= relative * left[1]


@pytest.mark.parametrize("micro", [1, 8])
def test_gradient_accumulation_does_not_change_the_losses(command, write_recipe, tmp_path, micro):
    command("train", write_recipe(output_dir=str(tmp_path / "two")))
    override = f"train.per_device_train_batch_size={micro}"
    command("train", write_recipe(output_dir=str(tmp_path / "other")), override)
    check_same_losses(tmp_path, "two", "other", RELATIVE_LOSS)


@pytest.mark.parametrize(
    ("sections", "relative"), [({}, RELATIVE_LOSS), (QLORA, RELATIVE_LOSS_BFLOAT16)]
)
def test_two_processes_give_the_losses_of_one(command, write_recipe, tmp_path, sections, relative):
    one = write_recipe("one.yaml", **sections, output_dir=str(tmp_path / "one"))
    assert command("train", one).code == 0
    two = write_recipe("two.yaml", **sections, output_dir=str(tmp_path / "two"))
    outcome = run_torchrun(2, "train", two)
    assert outcome.code == 0, outcome.stderr
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["world_size"] == 2
    assert manifest["plan"]["accumulation_steps"] == 2
    check_same_losses(tmp_path, "one", "two", relative)


def test_accelerate_launch_gives_the_same_losses(command, write_recipe, tmp_path):
    assert command("train", write_recipe(output_dir=str(tmp_path / "direct"))).code == 0
    launched = write_recipe("launched.yaml", output_dir=str(tmp_path / "launched"))
    outcome = run_process(
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes=1",
        f"--main_process_port={find_free_port()}",
        "-m",
        "lora_sft",
        "train",
        launched,
    )
    assert outcome.code == 0, outcome.stderr
    check_same_losses(tmp_path, "direct", "launched", RELATIVE_LOSS)


def test_a_repeated_run_gives_the_same_bytes(command, write_recipe, tmp_path):
    for name in ("first", "second"):
        assert command("train", write_recipe(output_dir=str(tmp_path / name))).code == 0
    adapters = [tmp_path / name / "adapter" for name in ("first", "second")]
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (adapters[0] / file).read_bytes() == (adapters[1] / file).read_bytes()
