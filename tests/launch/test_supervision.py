"""`lora-sft launch` forwards signals to the workers and returns their exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_sft.errors import DataError
from lora_sft.launch import supervision
from lora_sft.launch.supervision import supervise
from lora_sft.launch.workers import find_workers, handles_signals
from lora_sft.processes.outcome import OUTCOME_VARIABLE, leave_outcome
from lora_sft.processes.report import Report
from lora_sft.processes.stop_signal import Stopped
from lora_sft.processes.this_process import Processes
from lora_sft.processes.watch import FOLDER, Watch
from lora_sft.run_directory import RunDirectory
from lora_sft.train.fit import make_result

# A launcher like torchrun: a signal kills it, and it returns 1 if a worker fails.
LAUNCHER = """
import os, subprocess, sys
environment = {**os.environ, "RANK": "0"}
finished = subprocess.run([sys.executable, "-c", sys.argv[1]], env=environment)
sys.exit(1 if finished.returncode else 0)
"""
WORKER = """
import time
if "LATE" in __import__("os").environ:
    time.sleep(1)  # no handlers are installed yet
import os, signal, subprocess, sys, time
from pathlib import Path
from lora_sft.processes.outcome import (leave_outcome)
def stop(number, frame):
    code = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}[number]
    leave_outcome(os.environ, code, was_told=True)
    sys.exit(1)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, stop)
Path(os.environ["READY"]).write_text(str(os.getpid()))
time.sleep(60)
"""


def run(worker, tmp_path, environment=None):
    command = [sys.executable, "-c", LAUNCHER, worker]
    return supervise(command, {**os.environ, **(environment or {})}, RunDirectory(tmp_path))


@pytest.fixture
def hangup():
    """Return a function that sets the handler of SIGHUP; it is restored after the test."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75)],
)
def test_a_signal_reaches_the_workers_and_their_code_is_returned(number, code, tmp_path, hangup):
    hangup(signal.SIG_DFL)
    ready = tmp_path / "ready"

    def send() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert run(WORKER, tmp_path, {"READY": str(ready)}) == code
    sender.join()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_waits_until_the_workers_have_their_handlers(number, code, tmp_path):
    sender = threading.Timer(0.3, os.kill, (os.getpid(), number))
    sender.start()
    assert run(WORKER, tmp_path, {"READY": str(tmp_path / "ready"), "LATE": "1"}) == code


def test_a_signal_reaches_each_worker_when_its_handlers_are_installed(tmp_path):
    """The second worker installs its handlers one second after the first."""
    launcher = (
        "import os, subprocess, sys, time\n"
        "def start(rank, more): return subprocess.Popen([sys.executable, '-c', sys.argv[1]],"
        " env={**os.environ, 'RANK': rank, 'READY': f'{os.environ[\"READY\"]}{rank}', **more})\n"
        "workers = [start('0', {}), start('1', {'LATE': '1'})]\n"
        "sys.exit(max(worker.wait() for worker in workers))"
    )
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    command = [sys.executable, "-c", launcher, WORKER]
    environment = {**os.environ, "READY": str(tmp_path / "ready")}
    began = time.monotonic()
    assert supervise(command, environment, RunDirectory(tmp_path)) == 75
    assert time.monotonic() - began < 30  # without the signal a worker sleeps for a minute


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 4, 8])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_launch_returns_the_right_code_whenever_the_signal_arrives(
    number, code, seconds, write_recipe
):
    """It may arrive while the recipe is read, torch is imported or the model is loaded."""
    recipe = write_recipe(train={"learning_rate": 1e-3, "max_steps": 10**5})
    command = [sys.executable, "-m", "lora_sft", "launch", str(recipe), "--gpus", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(number)
    _, log = process.communicate(timeout=120)
    assert process.returncode == code, log


@pytest.mark.parametrize("is_launcher_stuck", [False, True])
def test_a_suspended_worker_is_killed_after_another_machine_ended_the_run(
    is_launcher_stuck, tmp_path, monkeypatch
):
    """The worker suspends itself. A process on another machine notices it and ends the run."""
    monkeypatch.setattr(supervision, "LEAVE_SECONDS", 1.5)
    monkeypatch.setattr(supervision, "END_POLL_SECONDS", 0.2)
    old, new = (
        Watch(tmp_path / FOLDER / name, Processes(1, 2), 9, lambda code, reason: None)
        for name in ("old", "new")
    )
    for watch in (old, new):
        watch.folder.mkdir(parents=True)
    old.end(3, "an earlier start")
    threading.Timer(1, new.end, (6, "process 0 sent no heartbeat")).start()
    worker = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    launcher = LAUNCHER + "import time; time.sleep(60)" if is_launcher_stuck else LAUNCHER
    launcher = launcher.replace("sys.exit(1", "is_stuck or sys.exit(1")
    command = [sys.executable, "-c", f"is_stuck = {is_launcher_stuck}\n{launcher}", worker]
    began = time.monotonic()
    assert supervise(command, os.environ, RunDirectory(tmp_path)) == 6
    assert 1.5 < time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("ignores_sigterm", [False, True])
def test_a_launcher_without_workers_on_this_machine_is_ended(
    ignores_sigterm, number, code, tmp_path, monkeypatch
):
    """For example pdsh, whose workers are on other machines, or torchrun before the rendezvous."""
    monkeypatch.setattr(supervision, "NO_WORKER_SECONDS", 0.5)
    monkeypatch.setattr(supervision, "LAUNCHER_SECONDS", 0.5)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if ignores_sigterm else ""
    launcher = f"import signal, subprocess; {ignore}subprocess.run(['sleep', '60'])"
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    began = time.monotonic()
    assert supervise([sys.executable, "-c", launcher], os.environ, RunDirectory(tmp_path)) == code
    assert time.monotonic() - began < 20


def test_the_workers_of_a_killed_launcher_are_killed(tmp_path, capfd):
    """Otherwise they would continue to train, and a new start would find their lock."""
    worker = (
        "import os, pathlib, signal, time;"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()));"
        "os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)"
    )
    with subprocess.Popen(["sleep", "600"], env={**os.environ, "RANK": "0"}) as stranger:
        assert run(worker, tmp_path) == 1
        assert stranger.poll() is None
        stranger.kill()
    pid = (tmp_path / "pid").read_text()
    assert not is_alive(pid)
    message = f"the launcher was killed by signal 9; its processes {pid} were killed too"
    assert message in capfd.readouterr().err


def test_the_launcher_receives_sigterm_if_launch_is_killed(tmp_path):
    ready, stopped = tmp_path / "ready", tmp_path / "stopped"
    launcher = (
        "import pathlib, signal, sys, time\n"
        "def stop(number, frame): pathlib.Path(sys.argv[2]).touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    )
    command = [sys.executable, "-c", launcher, str(ready), str(stopped)]
    launch = (
        "import os, pathlib; from lora_sft.launch.supervision import supervise;"
        "from lora_sft.run_directory import RunDirectory;"
        f"supervise({command!r}, os.environ, RunDirectory(pathlib.Path({str(tmp_path)!r})))"
    )
    with subprocess.Popen([sys.executable, "-c", launch]) as process:
        await_true(ready.exists)
        process.kill()
        await_true(stopped.exists)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_rank_variables_of_the_pod_are_not_passed_to_the_launcher(name, tmp_path):
    """PyTorchJob sets them. Every process of the launcher would look like a worker."""
    environment = {**os.environ, name: "0"}
    launcher = f"import os, sys; sys.exit(1 if {name!r} in os.environ else 0)"
    command = [sys.executable, "-c", launcher]
    assert supervise(command, environment, RunDirectory(tmp_path)) == 0


def await_true(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def test_under_nohup_a_closed_terminal_does_not_stop_the_run(tmp_path, hangup):
    hangup(signal.SIG_IGN)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGHUP)).start()
    assert run("import time; time.sleep(1)", tmp_path) == 0


def test_without_an_outcome_file_the_code_comes_from_status_json(tmp_path):
    status = tmp_path / "status.json"
    worker = f"open({str(status)!r}, 'w').write('{{\"exit_code\": 6}}'); raise SystemExit(9)"
    assert run(worker, tmp_path) == 6


@pytest.mark.parametrize(("was_told", "code"), [(True, 1), (False, 75)])
def test_the_code_of_a_worker_that_the_launcher_stopped_does_not_count(was_told, code, tmp_path):
    """torchrun sends SIGTERM to the other workers if one dies. The user did not stop the run."""
    worker = (
        "import os, sys; from lora_sft.processes.outcome import leave_outcome;"
        f"leave_outcome(os.environ, 75, was_told={was_told}); sys.exit(75)"
    )
    assert run(worker, tmp_path) == code


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (Stopped(signal.SIGTERM), 1),
        (Stopped(signal.SIGINT), 1),
        (DataError("no rows"), 3),
    ],
)
def test_if_the_launcher_stops_rank_0_while_it_loads_the_code_is_not_75(stop, code, tmp_path):
    """`status.json` has 75, but the user did not stop the run, and a new start would fail too."""
    written = RunDirectory(tmp_path / "written").create()
    Report(written, Processes(0, 2)).fail(stop)
    assert run(f"import shutil; {copy_status(written, tmp_path)}; exit(9)", tmp_path) == code


def test_a_run_that_another_machine_stopped_with_its_state_saved_returns_75(tmp_path):
    """SLURM may stop the other machine of a hostfile. This machine only has `status.json`."""
    state = SimpleNamespace(global_step=2, max_steps=4)
    stop = SimpleNamespace(received=signal.SIGUSR1)
    result = make_result(state, stop)
    written = RunDirectory(tmp_path / "written").create()
    written.write_status(
        result.exit_code, result.reason, result.step, state_saved=result.state_saved
    )
    assert run(f"import shutil; {copy_status(written, tmp_path)}; exit(9)", tmp_path) == 75


@pytest.mark.parametrize("code", [75, 130])
@pytest.mark.parametrize("reason", ["stopped by SIGTERM, state saved", "another text"])
@pytest.mark.parametrize("step", [0, 4])
def test_the_field_state_saved_decides_whether_a_stop_counts(code, reason, step, tmp_path):
    """Neither the reason nor the step of an older checkpoint decides."""
    written = RunDirectory(tmp_path / "written").create()
    for state_saved, expected in ((True, code), (False, 1)):
        written.write_status(code, reason, step, state_saved=state_saved)
        worker = f"import shutil; {copy_status(written, tmp_path)}; exit(9)"
        assert run(worker, tmp_path) == expected


@pytest.mark.parametrize("stop", [Stopped(signal.SIGTERM), DataError("no rows")])
def test_a_failed_start_saved_no_state_even_if_an_older_checkpoint_is_intact(stop, tmp_path):
    written = RunDirectory(tmp_path).create()
    checkpoint = written.checkpoints / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    Report(written, Processes(0, 1)).fail(stop)
    status = written.read_status()
    assert status is not None
    assert (status["step"], status["state_saved"]) == (4, False)


def copy_status(source, folder):
    return f"shutil.copyfile({str(source.status)!r}, {str(folder / 'status.json')!r})"


@pytest.mark.slow
def test_if_a_process_is_killed_while_it_imports_launch_does_not_return_75(write_recipe, tmp_path):
    """torchrun then sends SIGTERM to the other process. The user did not stop the run."""
    launch = start_launch(write_recipe())
    _, second = await_workers(launch, 2)
    os.kill(second, signal.SIGKILL)
    _, log = launch.communicate(timeout=120)
    assert launch.returncode in (1, 6), log


def start_launch(recipe, **more):
    command = [sys.executable, "-m", "lora_sft", "launch", str(recipe), "--gpus", "2"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **more)


def await_workers(launch, count):
    """Return the process ids by rank, once all workers have their signal handlers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        workers = find_workers(launch.pid)
        if len(workers) == count and all(map(handles_signals, workers)):
            return sorted(workers, key=read_rank)
        time.sleep(0.02)
    launch.kill()
    raise AssertionError("the workers did not start")


def read_rank(process):
    (rank,) = re.findall(rb"\0RANK=(\d+)\0", Path(f"/proc/{process}/environ").read_bytes())
    return int(rank)


def test_the_status_of_an_earlier_start_is_ignored(tmp_path):
    status = tmp_path / "status.json"
    status.write_text('{"exit_code": 75}')
    os.utime(status, (1, 1))
    assert run("raise SystemExit(9)", tmp_path) == 1


def test_a_successful_run_returns_0(tmp_path):
    assert run("pass", tmp_path) == 0


def test_the_code_of_the_first_failed_worker_counts(tmp_path):
    environment = {OUTCOME_VARIABLE: str(tmp_path / "code")}
    leave_outcome(environment, 0)  # this worker succeeded; rank 0 may still export
    leave_outcome(environment, 3)
    leave_outcome(environment, 6)
    assert json.loads((tmp_path / "code").read_text())["exit_code"] == 3


def test_a_process_without_children_has_no_workers():
    assert find_workers(2**22 + 1) == []


def test_the_status_of_this_start_counts_though_the_clock_was_set_back(tmp_path):
    (tmp_path / "status.json").write_text('{"exit_code": 75}')
    write = (
        "import os, pathlib; new = pathlib.Path('new.json'); "
        "new.write_text('{\"exit_code\": 6}'); os.utime(new, (1, 1)); "
        f"os.replace(new, {str(tmp_path / 'status.json')!r}); raise SystemExit(9)"
    )
    assert run(write, tmp_path) == 6
