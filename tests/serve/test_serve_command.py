"""`lora-sft serve`: the errors and warnings that come before the model is loaded."""

from __future__ import annotations

import socket
import sys

import pytest


def check_is_refused(outcome, code: int, message: str, fix: str) -> None:
    lines = outcome.stderr.strip().splitlines()[-3:]
    assert outcome.code == code
    assert message in lines[0]
    assert lines[2].startswith("fix:")
    assert fix in lines[2]


def test_a_folder_without_a_model_is_refused(command, tmp_path):
    outcome = command("serve", tmp_path)
    message = "not a run directory, an adapter folder or a model folder"
    check_is_refused(outcome, 4, message, "folder with config.json")


def test_for_a_missing_package_the_error_names_the_extra(command, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "lora_sft.serve.listening", raising=False)
    outcome = command("serve", tiny_model, "--backend", "transformers")
    check_is_refused(outcome, 5, "not installed: uvicorn", "pip install 'lora-sft[serve]'")


def test_a_port_in_use_is_reported_before_the_model_is_loaded(command, tiny_model):
    pytest.importorskip("fastapi", reason="THE SERVER IS NOT TESTED: install the extra `serve`")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        outcome = command("serve", tiny_model, "--port", port, "--backend", "transformers")
    check_is_refused(outcome, 5, "cannot listen on this address", "give another --port")


def test_a_public_address_without_a_key_gives_a_warning(command, tiny_model):
    outcome = command("serve", tiny_model, "--host", "0.0.0.0", "--dry-run")
    assert "every computer that can reach 0.0.0.0 can use the model" in outcome.stderr
    closed = command("serve", tiny_model, "--host", "0.0.0.0", "--api-key", "k", "--dry-run")
    assert "every computer" not in closed.stderr
    assert "--api-key" not in closed.stdout, "a list of processes would show the key"
