"""The launchers' command lines: who hosts the rendezvous, and what a remote shell makes of it."""

from __future__ import annotations

import socket

import pytest

from lora_sft.errors import RecipeError
from lora_sft.launch.commands import World, make_torchrun_command

NAMES = {"node1": "10.0.0.1", "node1-ib": "10.1.0.1", "node2": "10.0.0.2"}
TWO = World(nodes=2, gpus=1)


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Stand-in for the cluster's name service."""

    def look_up(host, port, **options):
        if host not in {**NAMES, **dict.fromkeys(NAMES.values())} and not host.startswith("fd00"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (NAMES.get(host, host), 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("rendezvous", "address", "is_certain"),
    [
        ("node1:29500", "10.0.0.1", True),
        ("10.0.0.1:29500", "10.0.0.1", True),
        ("10.0.0.1:29500", "node1", True),
        ("unknown:29500", "unknown", True),
        ("[fd00::1]:29500", "fd00::1", True),
        ("node1:29500", "10.0.0.2", False),
        ("node1:29500", "10.1.0.1", False),  # its other network: torch compares the host names
        ("unknown:29500", "10.0.0.1", False),
    ],
)
def test_the_machine_at_the_rendezvous_hosts_it_and_no_other_is_told_not_to(
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
