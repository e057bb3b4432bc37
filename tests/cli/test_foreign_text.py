"""Passwords, tokens and control characters of foreign text are in no output of the command line."""

from __future__ import annotations

import json
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler

import pytest
from rich.table import Table
from rich.text import Text

from lora_sft.cli.chat import Chat
from lora_sft.log import make_console, say
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


# --- control characters ---------------------------------------------------------------------------

CODES = "\x1b[2J\x1b]0;title\x07\x9b31m"


def has_codes(text):
    return any(code in text for code in "\x1b\x07\x9b")


def test_show_prints_no_control_characters_of_a_recipe(command, write_recipe):
    kwargs = {f"key{CODES}": {"deep": f"value{CODES}"}}
    recipe = write_recipe(f"{CODES}.yaml", data={"chat_template_kwargs": kwargs})
    shown = command("show", recipe)
    assert shown.code == 0, shown.stderr
    assert not has_codes(show(shown))
    assert "\\x1b[2J" in shown.stdout
    as_json = command("show", recipe, "--json")
    assert not has_codes(show(as_json))
    assert as_json.json["recipe"]["data"]["chat_template_kwargs"] == kwargs


@pytest.mark.parametrize("override", [f"{CODES}=1", r'train.seed="\e[2J"', CODES, f"--{CODES}"])
def test_an_error_prints_no_control_characters_of_a_recipe(command, write_recipe, override):
    outcome = command("train", write_recipe(f"{CODES}.yaml"), override)
    assert outcome.code == 2
    assert not has_codes(show(outcome))
    assert "\\x1b[2J" in outcome.stderr


def test_names_of_files_and_texts_of_rows_are_printed_without_control_characters(
    command, write_recipe, tmp_path
):
    chat = [{"role": CODES, "content": CODES}, {"role": "assistant", "content": CODES}]
    rows = [*make_rows(8), {"messages": chat}, {"messages": [{"role": "user", CODES: 1}]}]
    write_rows(tmp_path / f"{CODES}.jsonl", rows)
    write_rows(tmp_path / "other.jsonl", make_rows(20))
    paths = [{"path": f"{CODES}.jsonl"}, {"path": "other.jsonl"}]
    recipe = write_recipe(data={"datasets": paths, "validation": None})
    for arguments in (["prepare"], ["preview"], ["prepare", "--json"], ["preview", "--rows=99"]):
        outcome = command(arguments[0], recipe, *arguments[1:])
        assert outcome.code == 0, outcome.stderr
        assert "malformed" in show(outcome) or "no_target" in show(outcome)
        assert not has_codes(show(outcome))


def test_tables_and_lines_have_only_the_codes_of_their_own_style(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = make_console()
    table = Table(CODES)
    table.add_row(Text(CODES, style="bold"))
    console.print(table)
    console.print(CODES, style="red", markup=False)
    say(f"a{CODES}\nb")
    printed = capfd.readouterr().err
    assert "\x1b[1m" in printed
    assert not [code for code in ("\x1b[2J", "\x1b]0;", "\x07", "\x9b") if code in printed]
    assert printed.endswith("\\x9b31m\\nb\n")


def test_an_answer_is_printed_without_control_characters(capfd):
    class Stream:
        was_cut = False

        def __iter__(self):
            return iter(["one\n", f"two{CODES}", "\t\U0001f469\u200d\U0001f469"])

        def stop(self):
            pass

    class Model:
        def answer(self, *_arguments):
            return Stream()

    Chat(Model(), None, {}, None).say("hello")
    printed = capfd.readouterr().out
    assert not has_codes(printed)
    assert printed == "one\ntwo\\x1b[2J\\x1b]0;title\\x07\\x9b31m\t\U0001f469\u200d\U0001f469\n"
