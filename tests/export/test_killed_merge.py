"""A killed merge leaves no folder that loads as a wrong model, and the next merge succeeds."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.export.adapters import answer, make_adapter
from tests.export.weights.test_merged_files import make_shards

# The real command in many slow steps, so that a kill can happen between two steps.
SLOW_MERGE = """
import sys, time
from lora_sft.export.weights import shard_writing
from lora_sft.export.weights import weight_changes
weight_changes.BLOCK_ELEMENTS = 64 * 16
shard_writing.COPY_BYTES = 4096
run = shard_writing.ShardWriter._run
def run_slowly(self, jobs, pool):
    def pause():
        for job in jobs:
            time.sleep(0.015)
            yield job
    run(self, pause(), pool)
shard_writing.ShardWriter._run = run_slowly
from lora_sft.cli.app import main
main(sys.argv[1:])
"""


def start_merge(folder: Path) -> subprocess.Popen[bytes]:
    command = ["merge", folder / "adapter", folder / "merged", "--verify", "tensors"]
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_MERGE, *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def list_open_outputs(process_id: int) -> list[str]:
    opened = []
    with contextlib.suppress(OSError):  # the process ended or closed the file in the meantime
        for link in Path(f"/proc/{process_id}/fd").iterdir():
            opened.append(link.readlink().name)
    return [name for name in opened if name.endswith(".safetensors.unfinished")]


def wait_for_writing(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not list_open_outputs(process.pid):
        time.sleep(0.005)


def loads_correctly(folder: Path, expected: torch.Tensor) -> bool:
    """Return whether the folder loads. If it loads, its answers must be right."""
    try:
        found = answer(folder, torch.float32)
    except (OSError, ValueError, RuntimeError):
        return False
    assert (found - expected).abs().max() < 0.1
    return True


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("kills", "while_writing"),
    [(2, 1), pytest.param(20, 15, marks=pytest.mark.slow)],
    ids=["two moments", "twenty moments"],
)
def test_a_merge_that_is_killed_at_any_moment_leaves_no_wrong_model(tmp_path, kills, while_writing):
    base = make_shards(tmp_path / "base")
    expected = make_adapter(base, tmp_path / "adapter", {"target_modules": "all-linear"})
    merged, staged = tmp_path / "merged", tmp_path / ".merged.merging"
    choose, open_files, killed = random.Random(0), 0, 0
    while killed < kills:
        process = start_merge(tmp_path)
        wait_for_writing(process)
        # Most kills are while it writes, every tenth while it saves, verifies and renames.
        moments = (0.0, 1.2) if killed % 10 else (1.2, 5.0)
        time.sleep(choose.uniform(*(moments if kills > 2 else (0.0, 1.0))))
        if process.poll() is not None:  # the merge ended before the kill, so it must be complete
            assert loads_correctly(merged, expected)
            shutil.rmtree(merged)
            continue
        process.send_signal(signal.SIGSTOP)
        open_files += bool(list_open_outputs(process.pid))
        process.kill()
        process.wait()
        killed += 1
        assert not merged.exists() or loads_correctly(merged, expected)
        loads_correctly(staged, expected)
        shutil.rmtree(merged, ignore_errors=True)
    assert open_files >= while_writing
    assert start_merge(tmp_path).wait() == 0
    assert loads_correctly(merged, expected)
    assert not staged.exists()
