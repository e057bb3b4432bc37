"""A second preparation uses the cache, and a change that affects the tokens is never missed."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from lora_sft.data.labels import labelling
from tests import tiny
from tests.commands import Outcome, run_lora_sft


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_SFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpus"


def prepare(command: Callable[..., Outcome], recipe: Path, *overrides: str) -> dict:
    outcome = command("prepare", recipe, *overrides, "--json")
    assert outcome.code == 0, outcome.stderr
    return outcome.json


def test_the_second_preparation_uses_the_cache_and_trains_the_same_run(
    command, write_recipe, tmp_path
):
    recipe = write_recipe()
    first = prepare(command, recipe)
    assert first["hit"] is False
    again = prepare(command, recipe)
    assert again["hit"] is True
    assert again["cache"] == first["cache"]
    assert again["account"] == first["account"]
    assert command("train", recipe).code == 0
    cached = json.loads((tmp_path / "run" / "manifest.json").read_text())
    shutil.rmtree(first["cache"])
    assert command("train", recipe, "--overwrite").code == 0
    built = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert built["data"] == cached["data"]
    assert built["account"] == cached["account"]


def test_an_edited_line_is_never_missed(command, write_recipe, tmp_path):
    recipe = write_recipe()
    first = prepare(command, recipe)
    rows = tmp_path / "train.jsonl"
    text = rows.read_text()
    stamp = rows.stat().st_mtime
    edited = text.replace("number 7", "number 8", 1)
    assert len(edited) == len(text) and edited != text  # noqa: PT018 (same size)
    rows.write_text(edited)
    os.utime(rows, (stamp, stamp))  # the date stays the same too
    again = prepare(command, recipe)
    assert again["hit"] is False
    assert again["cache"] != first["cache"]


@pytest.mark.parametrize(
    "override",
    [
        "data.max_length=100",
        "data.loss_on=last_assistant",
        "data.chat_template=plain",
        "data.validation.fraction=0.3",
        "data.datasets.0.repeat=2",
        "data.stop_tokens=[</s>]",
    ],
)
def test_a_changed_setting_that_decides_tokens_makes_another_entry(command, write_recipe, override):
    recipe = write_recipe()
    first = prepare(command, recipe)
    other = prepare(command, recipe, override)
    assert other["hit"] is False
    assert other["cache"] != first["cache"]


def test_settings_that_do_not_change_the_tokens_share_an_entry(command, write_recipe):
    recipe = write_recipe()
    first = prepare(command, recipe)
    other = prepare(command, recipe, "train.learning_rate=1e-5", "data.packing=true")
    assert other["hit"] is True
    assert other["cache"] == first["cache"]


@pytest.mark.parametrize(
    "damage",
    [
        "a flipped byte",
        "a cut file",
        "a lost file",
        "an invalid description",
        "invalid checksums",
        "no checksums",
    ],
)
def test_a_damaged_entry_is_found_and_built_again(command, write_recipe, damage):
    recipe = write_recipe()
    first = prepare(command, recipe)
    folder = Path(first["cache"])
    rows = folder / "train-00001.arrow"
    content = bytearray(rows.read_bytes())
    if damage == "a flipped byte":
        content[len(content) // 2] ^= 1
        rows.write_bytes(content)
    elif damage == "a cut file":
        rows.write_bytes(content[:-100])
    elif damage == "a lost file":
        rows.unlink()
    elif damage in ("invalid checksums", "no checksums"):
        (folder / "checksums.json").write_text("[]" if damage == "invalid checksums" else "{}")
    else:
        (folder / "corpus.json").write_text("{")
    again = command("prepare", recipe, "--json")
    assert "damaged and is built again" in again.stderr
    assert again.json["hit"] is False
    assert again.json["account"] == first["account"]
    assert prepare(command, recipe)["hit"] is True


def test_two_processes_that_prepare_at_once_leave_one_entry(write_recipe, tmp_path, cache_folder):
    recipe = write_recipe()
    outcomes = []

    def run() -> None:
        outcomes.append(run_lora_sft("prepare", recipe, "--json"))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.code for outcome in outcomes] == [0, 0]
    entries = [path for path in cache_folder.iterdir() if not path.name.startswith(".")]
    assert len(entries) == 1
    assert not list(cache_folder.glob(".unfinished-*"))


def test_the_preparation_works_if_the_cache_cannot_be_written(
    command, write_recipe, monkeypatch, tmp_path
):
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("LORA_SFT_CACHE", str(tmp_path / "occupied"))
    outcome = command("prepare", write_recipe(), "--json")
    assert outcome.code == 0
    assert outcome.json["cache"] == ""
    assert "the cache cannot be written" in outcome.stderr


def test_old_folders_that_killed_processes_left_are_removed(command, write_recipe, cache_folder):
    recipe = write_recipe()
    old, young = cache_folder / ".unfinished-old", cache_folder / ".unfinished-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "train-00001.arrow").write_bytes(b"half")
    month_ago = time.time() - 30 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    prepare(command, recipe)
    assert not old.exists()
    assert young.exists()


def test_the_cache_keeps_the_date_that_the_template_got_first(
    command, write_recipe, tmp_path, monkeypatch
):
    template = "{{- strftime_now('%Y-%m-%d') -}}" + tiny.CHATML
    (tmp_path / "clock.jinja").write_text(template)
    recipe = write_recipe(data={"chat_template": "clock.jinja"})
    monkeypatch.setattr(labelling, "date", make_date_class("2026-01-30"))
    first = prepare(command, recipe)
    monkeypatch.setattr(labelling, "date", make_date_class("2026-01-31"))
    again = command("prepare", recipe, "--json")
    assert again.json["cache"] == first["cache"]
    assert "shown the date 2026-01-30" in again.stderr
    assert command("train", recipe).code == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["template_date"] == "2026-01-30"
    named = command("prepare", recipe, 'data.template_date="2026-01-31"', "--json")
    assert named.json["hit"] is False
    assert "shown the date" not in named.stderr


def preview_first_row(command: Callable[..., Outcome], recipe: Path, *overrides: str) -> Outcome:
    outcome = command("preview", recipe, *overrides, "--format", "json", "--rows", "1")
    assert outcome.code == 0, outcome.stderr
    return outcome


def read_first_row(folder: str) -> list[int]:
    with pa.ipc.open_stream(Path(folder) / "train-00001.arrow") as rows:
        return list(rows.read_all()["input_ids"][0].as_py())


def test_a_preview_gives_the_template_the_same_date_as_training(
    command, write_recipe, tmp_path, monkeypatch
):
    (tmp_path / "clock.jinja").write_text("{{- strftime_now('%Y-%m-%d') -}}" + tiny.CHATML)
    recipe = write_recipe(data={"chat_template": "clock.jinja"})
    monkeypatch.setattr(labelling, "date", make_date_class("2026-01-31"))
    kept = prepare(command, recipe)
    monkeypatch.setattr(labelling, "date", make_date_class("2026-02-01"))
    assert prepare(command, recipe)["hit"] is True
    shown = preview_first_row(command, recipe)
    assert shown.json["rows"][0]["input_ids"] == read_first_row(kept["cache"])
    assert "shown the date 2026-01-31" in shown.stderr
    text = command("preview", recipe)
    assert "rendered with the date 2026-01-31" in text.stdout
    named = preview_first_row(command, recipe, 'data.template_date="2026-02-01"')
    other = prepare(command, recipe, 'data.template_date="2026-02-01"')
    assert named.json["rows"][0]["input_ids"] == read_first_row(other["cache"])
    assert "shown the date" not in named.stderr


@pytest.mark.parametrize("state", ["not prepared", "damaged"])
def test_a_preview_uses_todays_date_if_the_cache_has_no_valid_entry(
    command, write_recipe, tmp_path, monkeypatch, state
):
    (tmp_path / "clock.jinja").write_text("{{- strftime_now('%Y-%m-%d') -}}" + tiny.CHATML)
    recipe = write_recipe(data={"chat_template": "clock.jinja"})
    if state == "damaged":
        monkeypatch.setattr(labelling, "date", make_date_class("2026-01-31"))
        (Path(prepare(command, recipe)["cache"]) / "train-00001.arrow").write_bytes(b"")
    monkeypatch.setattr(labelling, "date", make_date_class("2026-02-01"))
    shown = preview_first_row(command, recipe)
    assert "shown the date" not in shown.stderr
    first = prepare(command, recipe)
    assert first["hit"] is False
    assert shown.json["rows"][0]["input_ids"] == read_first_row(first["cache"])


def make_date_class(today: str) -> type[date]:
    class Date(date):
        @classmethod
        def today(cls) -> date:
            return date.fromisoformat(today)

    return Date
