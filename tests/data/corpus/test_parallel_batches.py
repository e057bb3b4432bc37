"""Any number of processes makes the same corpus, raises the same errors and leaves no process."""

import json
import os
import signal
import sys

import psutil
import pytest

from lora_sft.data.corpus import parallel_batches, source_row_following
from lora_sft.data.corpus.building import build_corpus
from lora_sft.data.corpus.parallel_batches import VARIABLE, count_processes, map_batches
from lora_sft.errors import CapabilityError, DataError
from tests import tiny
from tests.data.sections import make_chat, make_data, make_dataset, make_split, write_jsonl

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux uses several processes")

NUM_ROWS = 120


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Make batches of a few rows. The test's own process works only on the first batch."""
    monkeypatch.setattr(source_row_following, "BATCH_ROWS", 7)
    monkeypatch.setattr(parallel_batches, "BATCHES_DONE_HERE", 1)


def make_row(index):
    """Make a row that is kept, or dropped for one of several reasons, depending on `index`."""
    answer = "yes " * (200 if index % 11 == 0 else 3)
    question = f"What is {index // 2 if index % 5 == 0 else index}?"
    if index % 13 == 0:
        question = "say <|im_end|>"
    return {"messages": make_chat(question, answer)}


def build(path, **data):
    tokenizer = tiny.make_tokenizer(tiny.THINK_DROPPED_FROM_HISTORY)
    settings = {"validation": make_split(fraction=0.2), "duplicates": "drop", "max_length": 128}
    dataset = make_dataset(path, repeat=1.5)
    return build_corpus(
        make_data(dataset, **{**settings, **data}), tokenizer, {tokenizer.eos_token_id}
    )


def describe(corpus):
    return (
        corpus.fingerprint,
        corpus.validation["input_ids"][:],
        corpus.train["row"][:],
        {name: account.as_dict() for name, account in corpus.accounts.items()},
        corpus.warnings,
        corpus.stop_token_ids,
        corpus.largest_token_id,
    )


def list_children():
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_any_number_of_processes_makes_the_same_corpus(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "rows.jsonl", [make_row(index) for index in range(NUM_ROWS)])
    corpora = []
    for processes in ("1", "2", "5"):
        monkeypatch.setenv(VARIABLE, processes)
        corpora.append(describe(build(path)))
    assert corpora[0] == corpora[1] == corpora[2]
    dropped = corpora[0][3]["train"]["dropped"]
    assert {"duplicate", "overlong", "special_tokens", "subsampled"} & set(dropped) >= {
        "duplicate",
        "overlong",
        "special_tokens",
    }


def test_worker_processes_do_the_work_after_the_first_batch(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2")
    before = list_children()
    done = [(batch, pid) for batch, pid in map_batches(lambda _: os.getpid(), range(40))]
    assert [batch for batch, _ in done] == list(range(40))
    assert done[0][1] == os.getpid()
    others = {pid for _, pid in done[1:]}
    assert os.getpid() not in others
    assert 1 <= len(others) <= 2
    assert list_children() == before


def test_an_error_in_a_worker_process_is_the_same_error_as_in_the_main_process(
    tmp_path, monkeypatch
):
    rows = [make_row(1) for _ in range(NUM_ROWS)]
    rows[100] = {"messages": make_chat("say <|im_end|>", "no")}
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    texts = []
    for processes in ("1", "3"):
        monkeypatch.setenv(VARIABLE, processes)
        before = list_children()
        with pytest.raises(DataError) as caught:
            build(path, special_tokens_in_content="error")
        texts.append(str(caught.value))
        assert list_children() == before
    assert texts[0] == texts[1]
    assert "rows.jsonl:101" in texts[0]


def test_the_error_for_a_killed_worker_process_has_a_fix(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2")
    home = os.getpid()

    def die(batch):
        if os.getpid() != home and batch == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    with pytest.raises(CapabilityError, match="killed") as caught:
        list(map_batches(die, range(20)))
    assert f"{VARIABLE}=1" in caught.value.fix


def test_closing_the_results_early_ends_the_worker_processes(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2")
    before = list_children()
    results = map_batches(lambda batch: batch, range(1000))
    for _ in range(10):
        next(results)
    assert list_children() > before
    results.close()
    assert list_children() == before


def test_only_a_limited_number_of_batches_is_read_ahead(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2")
    read = 0

    def count():
        nonlocal read
        while read < 200:
            read += 1
            yield read

    for taken, _ in enumerate(map_batches(lambda batch: batch, count()), start=1):
        assert read <= taken + 2 * parallel_batches.BATCHES_WAITING


@pytest.mark.parametrize(("asked", "expected"), [("3", 3), ("0", 1)])
def test_an_environment_variable_sets_the_number_of_processes(monkeypatch, asked, expected):
    monkeypatch.setenv(VARIABLE, asked)
    assert count_processes() == expected


def test_little_free_memory_reduces_the_number_of_processes(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

    class Memory:
        available = 5 * parallel_batches.PROCESS_BYTES + 1

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert count_processes() == 5


def test_a_preview_with_several_processes_shows_every_row(command, write_recipe, monkeypatch):
    monkeypatch.setenv(VARIABLE, "2")
    recipe = write_recipe()
    shown = command("preview", recipe, "--format", "json").json
    monkeypatch.setenv(VARIABLE, "1")
    assert shown == command("preview", recipe, "--format", "json").json
    assert json.dumps(shown).count('"input_ids"') == len(shown["rows"])
