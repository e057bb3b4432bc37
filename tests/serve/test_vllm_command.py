"""What vLLM is told: everything that it would otherwise take from the base, or apply wrongly."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.serve.models import make_shouting_adapter
from tests.tiny import make_tiny_llama


def say_command(command, folder: Path, *options: str) -> list[str]:
    outcome = command("serve", folder, "--dry-run", *options)
    assert outcome.code == 0, outcome.stderr
    return shlex.split(outcome.stdout)


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_a_merged_folder_is_served_on_loopback_under_its_short_name(command, tmp_path):
    folder = make_tiny_llama(tmp_path / "support-bot")
    words = say_command(command, folder)
    assert words[:3] == ["vllm", "serve", str(folder)]
    assert after(words, "--served-model-name") == "support-bot"
    assert after(words, "--host") == "127.0.0.1"
    assert after(words, "--port") == "8000"


def test_an_adapter_brings_its_own_tokenizer_template_and_stop_tokens(command, tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    adapter = make_shouting_adapter(base, tmp_path / "support")
    words = say_command(command, adapter, "--name", "bot", "--port", "9000")
    assert words[:3] == ["vllm", "serve", str(base)]
    assert "--enable-lora" in words
    assert after(words, "--max-lora-rank") == "8"  # r is 4; vLLM knows 1, 8, 16, ...
    assert after(words, "--lora-modules") == f"bot={adapter}"
    assert after(words, "--tokenizer") == after(words, "--generation-config") == str(adapter)
    assert after(words, "--chat-template") == str(adapter / "chat_template.jinja")
    assert after(words, "--port") == "9000"
    assert "--quantization" not in words


def test_a_qlora_adapter_is_served_on_the_base_it_was_trained_on(command, tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    adapter = make_shouting_adapter(base, tmp_path / "support")
    origin = {
        "model_name_or_path": str(base),
        "dtype": "bfloat16",
        "quantization": {"load_in_4bit": True},
    }
    (adapter / "lora_sft.json").write_text(json.dumps(origin))
    words = say_command(command, adapter)
    assert after(words, "--quantization") == "bitsandbytes"
    assert after(words, "--dtype") == "bfloat16"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("alpha_pattern", {"q_proj": 64}),
        ("r", 1024),
    ],
)
def test_what_vllm_would_refuse_or_apply_wrongly_is_refused_with_the_way_out(
    command, tmp_path, field, value
):
    adapter = make_shouting_adapter(make_tiny_llama(tmp_path / "base"), tmp_path / "support")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    outcome = command("serve", adapter, "--dry-run")
    assert outcome.code == 5
    assert f"{field} is set to {json.dumps(value)}" in outcome.stderr
    assert f"lora-sft merge {adapter} OUT" in outcome.stderr
