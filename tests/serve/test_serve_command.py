"""What `lora-sft serve` says before a model is loaded."""

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


def test_a_folder_of_something_else_is_refused(command, tmp_path):
    outcome = command("serve", tmp_path)
    check_is_refused(outcome, 4, "neither a run, an adapter nor a model", "folder with config.json")


def test_a_missing_package_is_named_with_the_extra_that_has_it(command, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "lora_sft.serve.endpoint", raising=False)
    outcome = command("serve", tiny_model, "--backend", "transformers")
    check_is_refused(outcome, 5, "not installed: uvicorn", "pip install 'lora-sft[serve]'")


def test_a_port_that_is_taken_is_known_before_the_model_is_loaded(command, tiny_model):
    pytest.importorskip("fastapi", reason="NO SERVER WAS TRIED: install the serve extra")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        outcome = command("serve", tiny_model, "--port", port, "--backend", "transformers")
    check_is_refused(outcome, 5, "cannot listen there", "give another --port")


def test_an_open_address_without_a_key_is_warned_of(command, tiny_model):
    outcome = command("serve", tiny_model, "--host", "0.0.0.0", "--dry-run")
    assert "anybody who reaches 0.0.0.0 can use the model" in outcome.stderr
    closed = command("serve", tiny_model, "--host", "0.0.0.0", "--api-key", "k", "--dry-run")
    assert "anybody" not in closed.stderr
    assert "--api-key" not in closed.stdout, "a list of processes would show it"
