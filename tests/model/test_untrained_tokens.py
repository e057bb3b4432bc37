"""Training warns if the template uses an untrained token, and names the setting that trains it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_sft.model.untrained_tokens import find_untrained_tokens
from tests import tiny


def make_model(rows):
    weight = torch.randn(50, 8) * 0.02
    for row, scale in rows.items():
        weight[row] = weight[row] * scale if scale else weight.mean(0)
    model = torch.nn.Module()
    model.get_input_embeddings = lambda: torch.nn.Embedding.from_pretrained(weight)
    return model


def test_zero_small_and_mean_rows_are_found_among_the_given_tokens():
    torch.manual_seed(0)
    model = make_model({3: 1e-6, 5: 0.1, 7: None, 9: 1e-6})
    assert find_untrained_tokens(model, {2, 3, 5, 7, 11}) == [3, 5, 7]
    assert (
        find_untrained_tokens(model, {3, 50}) == []
    )  # other checks refuse a token id outside the embedding
    assert find_untrained_tokens(model, set()) == []


@pytest.fixture
def model_with_untrained_marker(tmp_path):
    folder = tiny.make_tiny_llama(tmp_path / "model")
    tokenizer = tiny.make_tokenizer()
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][tokenizer.convert_tokens_to_ids("<|im_start|>")] *= 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder, tokenizer


def test_training_warns_and_the_named_setting_removes_the_warning(
    command, write_recipe, model_with_untrained_marker
):
    folder, tokenizer = model_with_untrained_marker
    recipe = write_recipe()
    model = f"model.model_name_or_path={folder}"
    warned = command("train", recipe, model, "train.max_steps=3")
    assert warned.code == 0
    token = tokenizer.convert_tokens_to_ids("<|im_start|>")
    line = f"adapter.trainable_token_indices: [{token}]"
    assert line in " ".join(warned.stderr.split())
    assert "<|im_start|>" in warned.stderr
    corrected = command(
        "train", recipe, model, "train.max_steps=3", line.replace(": ", "="), "--overwrite"
    )
    assert corrected.code == 0
    assert "never trained on" not in corrected.stderr


def test_a_base_with_trained_markers_causes_no_warning(command, write_recipe):
    outcome = command("train", write_recipe(), "train.max_steps=3")
    assert outcome.code == 0
    assert "never trained on" not in outcome.stderr
