"""Nobody who stops reading ends a run, and only a reader of results ends a command."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_sft.cli import app, show, train

SPEAK = """
import os, sys, warnings
from lora_sft.log import make_console, outlive_readers, say
outlive_readers()
for _ in range(3):
    say("words")
    print("a line", file=sys.stderr)
    make_console().print("[bold]a table")
    warnings.warn("a library speaks")
os.write(1, os.readlink("/proc/self/fd/2").encode())
"""

STOPPED = """
import os, signal
from lora_sft.cli import app, train
train._run = lambda arguments, request: os.kill(os.getpid(), signal.SIGTERM)
app.main(["train", "recipe.yaml"])
"""

SIGNALLED_AT_EXIT = """
import atexit, os, signal
from lora_sft.cli import app, train
train._run = lambda arguments, request: 75
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    atexit.register(os.kill, os.getpid(), number)
app.main(["train", "recipe.yaml"])
"""

WORDS_IN_A_WRITE = """
import os, signal, sys
from lora_sft.log import outlive_readers, say
outlive_readers()
signal.signal(signal.SIGTERM, lambda number, frame: say("from the handler"))
os.write(1, b"ready")
print("x" * 1_000_000, file=sys.stderr)
"""


GOES_ON = """
import signal
from lora_sft.cli import app, quickstart
from lora_sft.processes.stop_signal import StopRequest
def run(arguments):
    with StopRequest().listening():
        pass
    return 9 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 1
quickstart.run = run
app.main(["quickstart"])
"""


def run_python(script, **streams):
    return subprocess.run([sys.executable, "-c", script], timeout=60, check=False, **streams)


def make_pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def make_terminal_that_was_closed():
    master, slave = pty.openpty()
    os.close(master)
    return slave


@pytest.mark.parametrize("make", [make_pipe_without_reader, make_terminal_that_was_closed])
def test_words_without_a_reader_go_to_the_null_device(make):
    stderr = make()
    outcome = run_python(SPEAK, stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    assert (outcome.returncode, outcome.stdout) == (0, b"/dev/null")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_log_file_on_a_full_disk_stays_the_log_file():
    with Path("/dev/full").open("w") as full:
        outcome = run_python(SPEAK, stdout=subprocess.PIPE, stderr=full)
    assert (outcome.returncode, outcome.stdout) == (0, b"/dev/full")


def test_words_with_a_reader_arrive():
    error = run_python(SPEAK, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).stderr.decode()
    for words in ("words\n", "a line\n", "a table\n", "a library speaks\n"):
        assert words in error


def test_a_signal_in_the_middle_of_a_write_may_speak():
    """The pipe is full, and the process waits in its write for somebody to read."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORDS_IN_A_WRITE], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(5)
    start = os.read(process.stderr.fileno(), 1)  # it writes, and far more than a pipe holds
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"from the handler\n" in rest
    assert (start + rest).count(b"x") == 1_000_000


def test_a_signal_is_answered_with_its_code_though_nobody_reads():
    stderr = make_pipe_without_reader()
    outcome = run_python(STOPPED, stdout=stderr, stderr=stderr)
    os.close(stderr)
    assert outcome.returncode == 75


def test_signals_at_exit_do_not_change_the_exit_code():
    assert run_python(SIGNALLED_AT_EXIT, stderr=subprocess.DEVNULL).returncode == 75


def test_a_command_that_goes_on_after_its_training_can_be_interrupted():
    assert run_python(GOES_ON).returncode == 9


def refuse(arguments, request=None):
    raise BrokenPipeError(32, "a tracker's connection")


def test_another_broken_pipe_is_no_success(command, monkeypatch):
    for module, name in ((train, "_run"), (show, "run")):
        monkeypatch.setattr(module, name, refuse)
        outcome = command(module.__name__.rsplit(".", 1)[-1], "recipe.yaml")
        assert outcome.code == 1
        assert "a tracker's connection" in outcome.stderr


def test_what_a_library_prints_in_training_is_no_result(command, monkeypatch):
    monkeypatch.setattr(train, "_run", lambda arguments, request: print("a banner") or 0)
    outcome = command("train", "recipe.yaml")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "a banner\n")


@pytest.mark.parametrize("arguments", [["recipes"], ["show", "--schema"]])
def test_a_reader_that_has_seen_enough_of_a_result_ends_the_command_well(arguments):
    stdout = make_pipe_without_reader()
    outcome = subprocess.run(
        [sys.executable, "-m", "lora_sft", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(stdout)
    assert (outcome.returncode, outcome.stderr) == (0, b"")


def test_signals_are_given_back_to_a_program_that_goes_on(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "_run", lambda arguments, request: 0)
    assert app.run(["train", "recipe.yaml"]) == 0
    assert signal.getsignal(signal.SIGTERM) == before
