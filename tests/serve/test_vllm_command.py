"""The vLLM command of `lora-sft serve`, and the adapters that vLLM cannot serve."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.serve.models import make_answering_adapter
from tests.tiny import make_tiny_llama


def print_vllm_command(command, folder: Path, *options: str) -> list[str]:
    outcome = command("serve", folder, "--dry-run", *options)
    assert outcome.code == 0, outcome.stderr
    return shlex.split(outcome.stdout)


def find_value(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_a_merged_folder_is_served_locally_under_its_short_name(command, tmp_path):
    folder = make_tiny_llama(tmp_path / "support-bot")
    words = print_vllm_command(command, folder)
    assert words[:3] == ["vllm", "serve", str(folder)]
    assert find_value(words, "--served-model-name") == "support-bot"
    assert find_value(words, "--host") == "127.0.0.1"
    assert find_value(words, "--port") == "8000"


def test_an_adapter_is_served_with_its_own_tokenizer_template_and_stop_tokens(command, tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    adapter = make_answering_adapter(base, tmp_path / "support")
    words = print_vllm_command(command, adapter, "--name", "bot", "--port", "9000")
    assert words[:3] == ["vllm", "serve", str(base)]
    assert "--enable-lora" in words
    assert find_value(words, "--max-lora-rank") == "8"  # r is 4; vLLM accepts 1, 8, 16, ...
    assert find_value(words, "--lora-modules") == f"bot={adapter}"
    assert (
        find_value(words, "--tokenizer") == find_value(words, "--generation-config") == str(adapter)
    )
    assert find_value(words, "--chat-template") == str(adapter / "chat_template.jinja")
    assert find_value(words, "--port") == "9000"
    assert "--quantization" not in words


def test_a_qlora_adapter_is_served_on_its_quantised_base(command, tmp_path):
    base = make_tiny_llama(tmp_path / "base")
    adapter = make_answering_adapter(base, tmp_path / "support")
    origin = {
        "model_name_or_path": str(base),
        "dtype": "bfloat16",
        "quantization": {"load_in_4bit": True},
    }
    (adapter / "lora_sft.json").write_text(json.dumps(origin))
    words = print_vllm_command(command, adapter)
    assert find_value(words, "--quantization") == "bitsandbytes"
    assert find_value(words, "--dtype") == "bfloat16"


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
def test_an_adapter_that_vllm_cannot_serve_is_refused_with_the_merge_command(
    command, tmp_path, field, value
):
    adapter = make_answering_adapter(make_tiny_llama(tmp_path / "base"), tmp_path / "support")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    outcome = command("serve", adapter, "--dry-run")
    assert outcome.code == 5
    assert f"{field} is set to {json.dumps(value)}" in outcome.stderr
    assert f"lora-sft merge {adapter} OUT" in outcome.stderr
