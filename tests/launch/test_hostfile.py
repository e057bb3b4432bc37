"""A hostfile or a machine that DeepSpeed's launcher cannot use is refused before the start."""

from __future__ import annotations

import importlib.util

import pytest

from lora_sft.errors import RecipeError
from lora_sft.launch.commands import World
from lora_sft.launch.hostfile import check_room, read_hostfile

TWO = World(nodes=2, gpus=4)


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("a slots=4\nb\n", "'b' is not a machine name and its slots", ":2"),
        ("# two\n\na slots=4\na slots=4\n", "a is listed twice", ":4"),
        ("a slots=4\nb slots=2\n", "b has slots=2, but --gpus is 4", ""),
        ("a slots=4\n", "the hostfile has fewer machines (1) than --nodes (2)", ""),
        ("# none\n", "the hostfile names no machine", ""),
    ],
)
def test_an_unusable_hostfile_is_refused_with_its_line(text, what, line, tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(text)
    with pytest.raises(RecipeError) as caught:
        check_room(read_hostfile(hostfile), TWO, hostfile)
    assert caught.value.what == what
    assert caught.value.where == f"{hostfile}{line}"
    assert "node1 slots=8" in caught.value.fix


def test_a_hostfile_may_name_more_machines_than_the_run_uses(tmp_path):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("# mine\na slots=4\n\nb   slots=8\nsmall slots=1\n")
    check_room(read_hostfile(hostfile), TWO, hostfile)


def test_a_missing_hostfile_is_refused(command, write_recipe, tmp_path):
    outcome = command("launch", write_recipe(), "--gpus", "2", "--hostfile", tmp_path / "none")
    assert outcome.code == 2
    assert "the hostfile cannot be read" in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "options", "nodes"),
    [
        ("far1 slots=8\nfar2 slots=8\n", [], 2),
        ("far1 slots=8\nfar2 slots=8\n", ["--nodes", "1"], 1),
        ("far1 slots=8\n", [], 1),
    ],
)
def test_the_machines_of_a_hostfile_are_used_even_if_it_is_only_one(
    text, options, nodes, command, write_recipe, tmp_path, monkeypatch
):
    """Without `--force_multi` DeepSpeed's launcher would use this machine instead."""
    pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text(text)
    for name in ("ssh", "pdsh"):
        add_program(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    started = []
    monkeypatch.setattr(
        *("lora_sft.launch.supervision.supervise",),
        lambda words, environment, run: started.append((words, environment)) or 0,
    )
    launch = ("launch", write_recipe(), "--gpus", "1", "--hostfile", hostfile, *options)
    assert command(*launch).code == 0
    ((words, environment),) = started
    assert "--force_multi" in words
    assert f"--num_nodes={nodes}" in words
    assert environment["LORA_SFT_WORLD_SIZE"] == str(nodes)


def add_program(folder, name):
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("missing", ["deepspeed", "ssh", "pdsh"])
def test_a_missing_program_of_the_launcher_is_named(
    missing, command, write_recipe, tmp_path, monkeypatch
):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("a slots=1\nb slots=1\n")
    for name in {"ssh", "pdsh"} - {missing}:
        add_program(tmp_path, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    installed = object() if missing != "deepspeed" else None
    find = importlib.util.find_spec
    monkeypatch.setattr(
        *(importlib.util, "find_spec"),
        lambda name, *rest: installed if name == "deepspeed" else find(name, *rest),
    )
    outcome = command("launch", write_recipe(), "--gpus", "1", "--hostfile", hostfile)
    assert outcome.code == 5
    assert missing in outcome.stderr.lower().splitlines()[0]
    assert "--rendezvous HOST:PORT" in outcome.stderr
