"""Settings that must not change the losses: dtype, attention kernel, activation checkpointing."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.gpu.kinds import both_kinds

pytestmark = pytest.mark.gpu

# Relative tolerances of a loss. bfloat16 has 8 significant bits, so it rounds by up to 2^-9. A loss
# is a mean over hundreds of tokens.
BFLOAT16_LOSS = 5e-3
FLOAT32_LOSS = 1e-4
# The relative tolerance of one unit in the last place: only one of the two devices may fuse a
# multiplication with an addition.
LAST_PLACE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}


@pytest.fixture
def first_loss(train, write_recipe, tmp_path):
    """A function that trains one step with these model settings and returns its loss."""

    def run(name: str, **model: object) -> float:
        recipe = write_recipe(
            f"{name}.yaml",
            model=model,
            train={"max_steps": 1, "warmup_steps": 0},
            output_dir=str(tmp_path / name),
        )
        return train(recipe, tmp_path / name)[1]

    return run


def test_the_first_loss_in_bfloat16_equals_that_in_float32(first_loss):
    exact = first_loss("exact", dtype="float32")
    assert first_loss("rounded", dtype="bfloat16") == pytest.approx(exact, rel=BFLOAT16_LOSS)


def test_the_first_loss_with_sdpa_equals_that_with_eager_attention(first_loss):
    eager = first_loss("eager", attn_implementation="eager")
    sdpa = first_loss("sdpa", attn_implementation="sdpa")
    assert sdpa == pytest.approx(eager, rel=FLOAT32_LOSS)


@pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed"
)
def test_the_first_loss_with_flash_attention_equals_that_with_eager_attention(cuda, first_loss):
    eager = first_loss("eager", dtype="bfloat16", attn_implementation="eager")
    flash = first_loss("flash", dtype="bfloat16", attn_implementation="flash_attention_2")
    assert flash == pytest.approx(eager, rel=BFLOAT16_LOSS)


@both_kinds
def test_activation_checkpointing_changes_no_loss(
    sections, train, write_recipe, tmp_path, repeats_to
):
    losses = {}
    for name, checkpointing in (("kept", False), ("recomputed", True)):
        recipe = write_recipe(
            f"{name}.yaml",
            **sections,
            train={"gradient_checkpointing": checkpointing},
            output_dir=str(tmp_path / name),
        )
        losses[name] = train(recipe, tmp_path / name)
    assert losses["recomputed"] == pytest.approx(losses["kept"], rel=repeats_to, abs=0)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", list(LAST_PLACE))
def test_four_bit_codes_have_the_same_values_on_cuda_and_on_the_cpu(cuda, dtype, nested):
    """An adapter trained on a GPU may be merged on a CPU: both must read the same base."""
    from bitsandbytes import functional

    weights = torch.randn(256, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, state = functional.quantize_4bit(
        weights, blocksize=64, quant_type="nf4", compress_statistics=nested
    )
    on_cpu = functional.dequantize_4bit(codes, state).clone()
    state.to("cuda")  # in place
    on_cuda = functional.dequantize_4bit(codes.cuda(), state).cpu()
    torch.testing.assert_close(on_cuda, on_cpu, rtol=LAST_PLACE[dtype], atol=0)
