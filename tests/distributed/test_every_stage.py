"""A recipe gives the same numbers on one process, on two, and under every ZeRO stage.

In float32 the numbers must agree up to rounding. Under NF4 with bfloat16, another division of the
batch rounds differently. So it has its own tolerance, a few times the measured difference.
"""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.distributed.cells import SETTINGS, STEPS

pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")

RELATIVE = {"lora": 1e-5, "qlora": 1e-4}  # measured: 2.5e-7 and 1.4e-6
RELATIVE_GRADIENT = {"lora": 1e-5, "qlora": 5e-3}  # measured: 1.1e-7 and 2.5e-4
ON_TWO_PROCESSES = ["ddp", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
ON_ONE_PROCESS = ["zero2_alone", "zero3_alone"]
NOT_SLOW = {("qlora", "zero3")}
CASES = [
    pytest.param(
        base,
        setting,
        marks=[] if (base, setting) in NOT_SLOW else [pytest.mark.slow],
        id=f"{base}-{setting}",
    )
    for base in RELATIVE
    for setting in (*ON_TWO_PROCESSES, *ON_ONE_PROCESS)
]


@pytest.mark.parametrize(("base", "setting"), CASES)
def test_every_distributed_setting_gives_the_same_numbers(cell, base, setting):
    one, other = cell(base, "one"), cell(base, setting)
    for key, relative in (("loss", RELATIVE), ("grad_norm", RELATIVE_GRADIENT)):
        expected, found = one.read(key), other.read(key)
        if (key, setting) == ("grad_norm", "zero0"):  # at stage 0 DeepSpeed computes no norm
            continue
        assert list(expected) == list(found) == list(range(1, STEPS + 1))
        residuals = [found[step] / value - 1 for step, value in expected.items()]
        assert max(map(abs, residuals)) <= relative[base], (key, residuals)
    losses = list(one.read("loss").values())
    assert losses[-1] < losses[0] - 0.01, "the loss must fall, or the test compares nothing"


@pytest.mark.parametrize(("base", "setting"), CASES)
def test_every_saved_adapter_loads_in_peft_and_has_the_same_loss(cell, base, setting, shared_model):
    one, other = cell(base, "one"), cell(base, setting)
    expected = score(one.run / "adapter", base, shared_model)
    assert score(other.run / "adapter", base, shared_model) == pytest.approx(
        expected, rel=RELATIVE[base]
    )
    assert expected < score(None, base, shared_model) - 0.01


@pytest.mark.parametrize(("base", "setting"), CASES)
def test_adapters_are_float32_under_every_stage(cell, base, setting):
    trained = cell(base, setting)
    folders = [trained.run / "adapter", *sorted((trained.run / "checkpoints").iterdir())]
    assert len(folders) == 3
    for folder in folders:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert len(tensors) == 28
        assert all(tensor.numel() for tensor in tensors.values())
    rows = trained.manifest["census"]["rows"]
    assert {row["dtype"] for row in rows if row["kind"] == "trained"} == {"float32"}
    assert trained.manifest["census"]["total_parameters"] == 125_248 + 8_192


@pytest.mark.parametrize(("base", "setting"), CASES)
def test_each_process_holds_only_its_share(cell, base, setting):
    """Check the formulas of docs/scaling.md: bytes between two steps, four per number.

    AdamW has two moments.
    """
    processes, policy = SETTINGS[setting]
    stage = int(policy[4]) if policy is not None else 0
    whole = cell(base, "one").manifest["first_step"]["bytes_by_process"][0]
    share = processes if stage == 3 else 1
    moments, copy = (2 / processes, 1 / processes) if stage in (1, 2) else (2 / share, 0)
    expected = {
        "base": whole["base"] / share,
        "adapter": whole["adapter"] / share,
        "optimizer": (moments + copy) * whole["adapter"],
    }
    held = cell(base, setting).manifest["first_step"]["bytes_by_process"]
    assert len(held) == processes
    for record in held:
        assert record == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("base", "setting"), CASES)
def test_every_pickle_of_a_checkpoint_is_in_its_manifest(cell, base, setting):
    trained = cell(base, setting)
    assert not list(trained.run.rglob("*.bin"))
    assert not (trained.run / "processes").exists()
    for checkpoint in (trained.run / "checkpoints").iterdir():
        sealed = json.loads((checkpoint / "manifest.json").read_text())["files"]
        pickles = {
            path.relative_to(checkpoint).as_posix()
            for suffix in ("*.pt", "*.pth")
            for path in checkpoint.rglob(suffix)
        }
        assert pickles
        assert pickles <= sealed.keys()


def score(adapter, base, model):
    """Return the mean loss of one conversation, computed only with transformers and PEFT."""
    quantization = None
    if base == "qlora":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    dtype = torch.bfloat16 if base == "qlora" else torch.float32
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=dtype, quantization_config=quantization
    )
    if adapter is not None:
        loaded = PeftModel.from_pretrained(loaded, adapter)
    from tests.tiny import make_tokenizer

    tokenizer = make_tokenizer()
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "Where is Oslo? "},
            {"role": "assistant", "content": "Oslo is number 12."},
        ],
        tokenize=False,
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(loaded(input_ids=ids, labels=ids).loss)
