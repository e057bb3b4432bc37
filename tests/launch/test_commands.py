"""The command lines of torchrun and of DeepSpeed's launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lora_sft.errors import RecipeError
from lora_sft.launch import supervision
from lora_sft.launch.commands import World, make_deepspeed_command, make_torchrun_command

NAMES = {"node1": "10.0.0.1", "node1-ib": "10.1.0.1", "node2": "10.0.0.2"}
TWO = World(nodes=2, gpus=1)


@pytest.fixture
def names(monkeypatch):
    """Replace the name service by one that knows the machines of `NAMES`."""

    def look_up(host, port, **options):
        if host not in {**NAMES, **dict.fromkeys(NAMES.values())} and not host.startswith("fd00"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (NAMES.get(host, host), 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("rendezvous", "address", "is_certain"),
    [
        ("node1:29500", "10.0.0.1", True),
        ("10.0.0.1:29500", "10.0.0.1", True),
        ("10.0.0.1:29500", "node1", True),
        ("unknown:29500", "unknown", True),
        ("[fd00::1]:29500", "fd00::1", True),
        ("node1:29500", "10.0.0.2", False),
        ("node1:29500", "10.1.0.1", False),  # an address on the other network of node1
        ("unknown:29500", "10.0.0.1", False),
    ],
)
def test_is_host_is_given_only_if_the_address_is_that_of_the_rendezvous(
    rendezvous, address, is_certain
):
    command = make_torchrun_command(TWO, ["train", "r.yaml"], rendezvous, address)
    assert f"--local-addr={address}" in command
    assert [word for word in command if "is_host" in word] == (
        ["--rdzv-conf=is_host=1"] if is_certain else []
    )


@pytest.mark.parametrize("rendezvous", ["node1", "node1:", ":29500", "node1:http", "node1:70000"])
def test_a_rendezvous_without_a_port_is_refused(rendezvous):
    with pytest.raises(RecipeError) as caught:
        make_torchrun_command(TWO, ["train", "r.yaml"], rendezvous)
    assert "is not HOST:PORT" in caught.value.what


HARD = ["a b", "it's", 'say "no"', "$HOME", "a `b` $c", "x;y", "{r: [1, 2]}", "back\\ sl", "*"]


@pytest.fixture
def two_machines(tmp_path):
    """Return a hostfile, and an environment in which ssh and pdsh only start local shells."""
    pytest.importorskip("deepspeed", reason="pip install 'lora-sft[deepspeed]'")
    tools = tmp_path / "tools"
    tools.mkdir()
    remote_shells = """hosts=$5; shift 5
case $hosts in *,*) sh -c "$(echo "$*" | sed s/%n/1/)" & second=$!;; esac
sh -c "$(echo "$*" | sed s/%n/0/)"; code=$?; wait $second; exit $((code | $?))"""
    for name, body in {"ssh": "echo 127.0.0.1", "pdsh": remote_shells}.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("first slots=1\nsecond slots=1\n")
    path = f"{tools}:{os.environ['PATH']}"
    return hostfile, {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--hostfile", "h", "--rendezvous", "a:1"],
            "--rendezvous would be ignored with --hostfile",
        ),
        (["--slurm", "--rendezvous", "a:1"], "--rendezvous would be ignored with --slurm"),
        (["--write", "w", "--rendezvous", "a:1"], "--rendezvous would be ignored with --write"),
        (["--write", "w", "--hostfile", "h"], "--hostfile would be ignored with --write"),
        (["--slurm", "--hostfile", "h"], "--hostfile would be ignored with --slurm"),
        (["--address", "10.0.0.1"], "--address would be ignored without --rendezvous"),
        (["--hosts", "a,b"], "--hosts would be ignored without --write"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options, words, command, write_recipe):
    outcome = command("launch", write_recipe(), "--gpus", "1", *options)
    assert outcome.code == 2
    assert len(outcome.stderr.strip().splitlines()) == 3
    assert outcome.stderr.startswith(f"error: {words}")


def test_the_key_file_is_named_to_the_processes_of_every_machine(
    two_machines, command, write_recipe, monkeypatch, tmp_path
):
    hostfile, environment = two_machines
    monkeypatch.setenv("PATH", environment["PATH"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_SFT_KEY_FILE", "shared.key")
    started = []
    monkeypatch.setattr(supervision, "supervise", lambda words, *_: started.append(words) or 0)
    outcome = command("launch", write_recipe(), "--gpus", "1", "--hostfile", hostfile)
    assert outcome.code == 0, outcome.stderr
    assert f"LORA_SFT_KEY_FILE={tmp_path / 'shared.key'}" in started[0]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_deepspeeds_launcher_passes_arguments_and_variables_to_each_machine(
    nodes, two_machines, tmp_path
):
    """The real launcher runs, because the quoting of the arguments must fit its own."""
    hostfile, environment = two_machines
    (tmp_path / "lora_sft.py").write_text(
        "import json, os, sys\n"
        "name = 'seen' + os.environ['RANK'] + '.json'\n"
        "with open(name, 'w') as file: json.dump([sys.argv[1:], os.environ['ASKED']], file)\n"
    )
    command = make_deepspeed_command(World(nodes, 1), HARD, hostfile, {"ASKED": "a number"})
    finished = subprocess.run(
        command,
        env={**environment, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    for rank in range(nodes):
        words, asked = json.loads(Path(tmp_path / f"seen{rank}.json").read_text())
        assert words == HARD
        assert asked == "a number"


@pytest.mark.slow
def test_launch_trains_on_the_machines_of_a_hostfile(two_machines, write_recipe, tmp_path):
    hostfile, environment = two_machines
    launch = ["launch", str(write_recipe()), "--nodes=2", "--gpus=1", f"--hostfile={hostfile}"]
    finished = subprocess.run(
        [sys.executable, "-m", "lora_sft", *launch, "train.max_steps=2"],
        **{"env": environment, "capture_output": True, "text": True, "timeout": 240},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["world_size"] == 2
