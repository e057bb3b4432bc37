"""Passwords, tokens and control characters of foreign text are in no output of the command line."""

from __future__ import annotations

import json
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler

import pytest

from tests.conftest import make_rows, write_rows

SECRET = "CANARY"
QUERY = f"?token={SECRET}#{SECRET}"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def address(tmp_path, serve):
    """Return a URL of 24 rows that carries a password and a token."""
    folder = tmp_path / "web"
    folder.mkdir()
    write_rows(folder / "rows.jsonl", make_rows(24))
    write_rows(folder / "broken.jsonl", [{"messages": 1}] * 2)
    base = serve(partial(Quiet, directory=folder)).replace("http://", f"http://me:{SECRET}@")
    return f"{base}/rows.jsonl{QUERY}"


def use(address):
    return f"data.datasets=[{{path: '{address}'}}]"


def show(outcome):
    return outcome.stdout + outcome.stderr


def test_a_run_shows_no_secret_and_only_its_owner_reads_them(
    command, write_recipe, tmp_path, address
):
    umask = os.umask(0o022)
    try:
        recipe = write_recipe(train={"max_steps": 1, "save_steps": 1, "warmup_steps": 0})
        trained = command("train", recipe, use(address))
        changed = command("train", recipe, use(address.replace("rows.jsonl", "broken.jsonl")))
        again = command("train", recipe, use(address), "train.max_steps=2")
    finally:
        os.umask(umask)
    assert (trained.code, changed.code, again.code) == (0, 2, 0), trained.stderr
    assert "data.datasets.0.path" in changed.stderr
    assert not [text for text in map(show, (trained, changed, again)) if SECRET in text]
    run = tmp_path / "run"
    holding = [file for file in run.rglob("*") if file.is_file() and SECRET in read(file)]
    assert {file.relative_to(run).as_posix(): file.stat().st_mode & 0o077 for file in holding} == {
        "recipe.yaml": 0,
        "manifest.json": 0,
    }


def read(file):
    return file.read_bytes().decode("utf-8", "replace")


def test_a_run_without_secrets_can_be_read_by_others(command, write_recipe, tmp_path):
    umask = os.umask(0o022)
    try:
        assert command("train", write_recipe(train={"max_steps": 1, "warmup_steps": 0})).code == 0
    finally:
        os.umask(umask)
    for name in ("recipe.yaml", "manifest.json"):
        assert (tmp_path / "run" / name).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_a_preview_names_its_source_without_secrets(command, write_recipe, tmp_path, address, form):
    mixed = [*make_rows(3), {"messages": 1}, make_rows(1)[0]]
    write_rows(tmp_path / "web" / "rows.jsonl", mixed)
    out = tmp_path / f"preview.{form}"
    outcome = command(
        "preview", write_recipe(), use(address), "data.validation=null", "--format", form,
        "--out", out, "data.duplicates=drop",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert "/rows.jsonl" in out.read_text()
    assert SECRET not in out.read_text() + show(outcome)


@pytest.mark.parametrize(
    ("name", "code"), [("gone.jsonl", 3), ("broken.jsonl", 3), ("rows.zip", 3), ("rows.jsonl", 2)]
)
def test_an_error_shows_no_secret(command, write_recipe, address, name, code):
    changed = address.replace("rows.jsonl", name)
    overrides = [use(changed)] if code == 3 else [use(changed).replace("path", "pathh"), changed]
    outcome = command("prepare", write_recipe(), *overrides)
    assert outcome.code == code, outcome.stderr
    assert SECRET not in show(outcome)


def test_an_unexpected_error_shows_no_secret(command, write_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}-of-the-hub")
    monkeypatch.setattr("lora_sft.pipeline.load_data", fail)
    outcome = command("train", write_recipe())
    assert outcome.code == 1
    assert "Traceback" in outcome.stderr
    assert "KeyError" in outcome.stderr
    assert SECRET not in show(outcome)
    assert "\x1b" not in show(outcome)
    status = (tmp_path / "run" / "status.json").read_text()
    assert "KeyError" in json.loads(status)["reason"]
    assert SECRET not in status


def fail(*_arguments):
    raise KeyError(f"{os.environ['HF_TOKEN']} at http://h/rows?sig={SECRET} \x1b[2J")


def test_a_script_that_keeps_an_address_is_only_for_its_owner(
    command, write_recipe, tmp_path, address
):
    folder = tmp_path / "job"
    outcome = command("launch", write_recipe(), use(address), "--gpus=1", "--write", folder)
    assert outcome.code == 0, outcome.stderr
    assert SECRET in (folder / "job.sbatch").read_text()
    assert (folder / "job.sbatch").stat().st_mode & 0o077 == 0
    assert SECRET not in show(outcome)
