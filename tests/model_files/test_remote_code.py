"""Python code that comes with a model runs only if the person who starts the command trusts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_sft.errors import ModelError
from lora_sft.model_files import remote_code
from tests.serve.models import make_answering_adapter
from tests.tiny import make_tiny_llama

CODE = """\
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()
class StrangeConfig(LlamaConfig):
    model_type = "strange"
class StrangeModel(LlamaForCausalLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def marker(tmp_path) -> Path:
    """Return a file that exists once the code of the strange model has run."""
    return tmp_path / "the-code-ran"


@pytest.fixture
def strange_base(tmp_path, marker) -> Path:
    """Return a base model that only its own Python file can load."""
    base = make_tiny_llama(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["model_type"] = "strange"
    config["auto_map"] = {
        "AutoConfig": "strange.StrangeConfig",
        "AutoModelForCausalLM": "strange.StrangeModel",
    }
    (base / "config.json").write_text(json.dumps(config))
    (base / "strange.py").write_text(CODE.format(marker=str(marker)))
    return base


@pytest.fixture
def adapter(tmp_path, strange_base) -> Path:
    """Return an adapter whose record asks for trust in the code of its base."""
    plain = make_tiny_llama(tmp_path / "plain")
    folder = make_answering_adapter(plain, tmp_path / "adapter")
    record = {"model_name_or_path": str(strange_base), "trust_remote_code": True}
    (folder / "lora_sft.json").write_text(json.dumps(record))
    return folder


def list_commands(adapter: Path, base: Path, tmp_path: Path) -> list[tuple[object, ...]]:
    question = ("--message", "hi", "--max-new-tokens", "2")
    return [
        ("chat", adapter, *question),
        ("chat", base, *question),
        ("merge", adapter, tmp_path / "merged"),
        ("serve", adapter, "--backend", "transformers", "--port", "0"),
    ]


def test_no_command_runs_code_that_only_an_artefact_trusts(
    command, adapter, strange_base, marker, tmp_path
):
    for arguments in list_commands(adapter, strange_base, tmp_path):
        outcome = command(*arguments)
        assert outcome.code == 4, outcome.stderr
        assert "--trust-remote-code" in outcome.stderr
        assert not marker.exists(), arguments


def test_the_option_runs_the_code_and_prints_its_files(
    command, adapter, strange_base, marker, tmp_path
):
    for arguments in list_commands(adapter, strange_base, tmp_path)[:3]:
        remote_code._announce.cache_clear()
        outcome = command(*arguments, "--trust-remote-code")
        assert outcome.code == 0, outcome.stderr
        assert f"running Python code of {strange_base}: strange.py" in outcome.stderr
        assert marker.exists()  # written once: Python keeps the imported file


def test_a_vllm_command_trusts_only_with_the_option(command, adapter):
    arguments = ("serve", adapter, "--backend", "vllm", "--dry-run")
    assert "--trust-remote-code" not in command(*arguments).stdout
    assert "--trust-remote-code" in command(*arguments, "--trust-remote-code").stdout


def test_a_relative_path_of_a_folder_is_a_local_folder(strange_base, monkeypatch):
    monkeypatch.chdir(strange_base.parent)
    remote_code.check_remote_code(strange_base.name, None)


@pytest.mark.parametrize("revision", [None, "main", "master", ""])
def test_a_hub_id_without_a_fixed_revision_is_not_trusted(revision):
    with pytest.raises(ModelError, match="can change"):
        remote_code.check_remote_code("someone/model", revision)


def test_code_of_another_repository_is_refused(tmp_path):
    config = {"auto_map": {"AutoConfig": "someone/else--strange.StrangeConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="another repository"):
        remote_code.check_remote_code(str(tmp_path), None)


def test_a_recipe_in_a_run_directory_cannot_trust_code(command, write_recipe, tmp_path, marker):
    trusting = write_recipe(model={"trust_remote_code": True})
    (tmp_path / "manifest.json").write_text("{}")
    refused = command("train", trusting)
    assert refused.code == 2
    assert "a run directory cannot trust remote code" in refused.stderr
    assert "--trust-remote-code" in refused.stderr
    assert command("show", trusting, "model.trust_remote_code=true").code == 0


def test_launch_passes_the_option_to_its_processes(command, write_recipe, tmp_path):
    folder = tmp_path / "files"
    options = ("--gpus", 2, "--write", folder, "--trust-remote-code")
    outcome = command("launch", write_recipe(), *options)
    assert outcome.code == 0, outcome.stderr
    texts = [path.read_text() for path in folder.iterdir() if path.is_file()]
    assert any("model.trust_remote_code=true" in text for text in texts)
