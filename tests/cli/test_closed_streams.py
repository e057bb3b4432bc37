"""Commands with a closed stdout or stderr.

A closed stderr never stops a command. If stdout is closed, a command that prints a result ends with
exit code 0.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_sft.cli import app, show, train

WRITE_TO_STDERR = """
import os, sys, warnings
from lora_sft.log import ignore_stderr_failures, make_console, say
ignore_stderr_failures()
for _ in range(3):
    say("a message")
    print("a line", file=sys.stderr)
    make_console().print("[bold]a table")
    warnings.warn("a warning of a library")
os.write(1, os.readlink("/proc/self/fd/2").encode())
"""

STOP_BY_SIGTERM = """
import os, signal
from lora_sft.cli import app, train
train._run = lambda arguments, request: os.kill(os.getpid(), signal.SIGTERM)
app.main(["train", "recipe.yaml"])
"""

SIGNALS_AT_EXIT = """
import atexit, os, signal
from lora_sft.cli import app, train
train._run = lambda arguments, request: 75
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    atexit.register(os.kill, os.getpid(), number)
app.main(["train", "recipe.yaml"])
"""

HANDLER_THAT_WRITES = """
import os, signal, sys
from lora_sft.log import ignore_stderr_failures, say
ignore_stderr_failures()
signal.signal(signal.SIGTERM, lambda number, frame: say("from the handler"))
os.write(1, b"ready")
print("x" * 1_000_000, file=sys.stderr)
"""


WORK_AFTER_TRAINING = """
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


def make_closed_terminal():
    master, slave = pty.openpty()
    os.close(master)
    return slave


@pytest.mark.parametrize("make_stderr", [make_pipe_without_reader, make_closed_terminal])
def test_a_closed_stderr_is_replaced_by_the_null_device(make_stderr):
    stderr = make_stderr()
    outcome = run_python(WRITE_TO_STDERR, stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    assert (outcome.returncode, outcome.stdout) == (0, b"/dev/null")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_log_file_on_a_full_disk_stays_open():
    with Path("/dev/full").open("w") as full:
        outcome = run_python(WRITE_TO_STDERR, stdout=subprocess.PIPE, stderr=full)
    assert (outcome.returncode, outcome.stdout) == (0, b"/dev/full")


def test_an_open_stderr_gets_every_message():
    script = WRITE_TO_STDERR
    error = run_python(script, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).stderr.decode()
    for text in ("a message\n", "a line\n", "a table\n", "a warning of a library\n"):
        assert text in error


def test_a_signal_handler_may_write_while_a_write_is_running():
    """The pipe is full, so the process waits inside its write when the signal arrives."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANDLER_THAT_WRITES], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(5)
    start = os.read(process.stderr.fileno(), 1)  # the write has begun; a pipe cannot hold it all
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"from the handler\n" in rest
    assert (start + rest).count(b"x") == 1_000_000


def test_a_signal_sets_the_exit_code_even_if_stdout_and_stderr_are_closed():
    stderr = make_pipe_without_reader()
    outcome = run_python(STOP_BY_SIGTERM, stdout=stderr, stderr=stderr)
    os.close(stderr)
    assert outcome.returncode == 75


def test_signals_at_exit_do_not_change_the_exit_code():
    assert run_python(SIGNALS_AT_EXIT, stderr=subprocess.DEVNULL).returncode == 75


def test_ctrl_c_works_in_a_command_that_continues_after_its_training():
    assert run_python(WORK_AFTER_TRAINING).returncode == 9


def lose_connection(arguments, request=None):
    raise BrokenPipeError(32, "a tracker's connection")


def test_a_broken_pipe_that_is_not_stdout_is_an_error(command, monkeypatch):
    for module, name in ((train, "_run"), (show, "run")):
        monkeypatch.setattr(module, name, lose_connection)
        outcome = command(module.__name__.rsplit(".", 1)[-1], "recipe.yaml")
        assert outcome.code == 1
        assert "a tracker's connection" in outcome.stderr


def test_text_that_a_library_prints_during_training_goes_to_stderr(command, monkeypatch):
    monkeypatch.setattr(train, "_run", lambda arguments, request: print("a banner") or 0)
    outcome = command("train", "recipe.yaml")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "a banner\n")


@pytest.mark.parametrize("arguments", [["recipes"], ["show", "--schema"]])
def test_a_command_that_prints_a_result_succeeds_if_stdout_is_closed(arguments):
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


def test_a_program_that_calls_run_gets_its_signal_handlers_back(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "_run", lambda arguments, request: 0)
    assert app.run(["train", "recipe.yaml"]) == 0
    assert signal.getsignal(signal.SIGTERM) == before
