"""The kinds of attacks on a training run. Each attack chooses its details with a seed."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tools.attacks.file_calls import FileCalls
from tools.attacks.outcomes import find_intact
from tools.attacks.starts import Command, Hook, Start, start
from tools.attacks.system_calls import SystemCall, inject, stop_at_save, trace

RESUME_ME = 75
# A start that trains to its end writes this line into its list of file calls.
SEALED = "os.rename checkpoints/checkpoint-{step}/.manifest.json.PID.staged"


class Misbehaved(Exception):
    """The attacked start itself did something wrong."""


@dataclass(frozen=True)
class Facts:
    """What the runs without a fault have shown.

    Attributes:
        seconds: The time of one start, by number of processes and by `is_program`.
        file_calls: The calls that change a file of the run, in their order.
        system_calls: The system calls of the traced save; empty without strace.
        saved_steps: The steps that are saved.
        traced_step: The step whose save is traced.
    """

    seconds: dict[tuple[int, bool], float]
    file_calls: list[str]
    system_calls: list[SystemCall]
    saved_steps: tuple[int, ...]
    traced_step: int


@dataclass
class Victim:
    """One run that is attacked.

    Attributes:
        folder: The folder for the output directory and the logs.
        command: The command that is started again and again.
        share: The place of this attack among the attacks of its kind, from 0 to 1. Attacks at a
            numbered call use it, so that together they meet all calls.
    """

    folder: Path
    command: Command
    random: random.Random
    share: float
    facts: Facts
    starts: int = 0

    @property
    def run(self) -> Path:
        return self.command.output

    def start(self, *options: str, hook: Hook | None = None) -> Start:
        """Start the command; each start has a log of its own."""
        log = self.folder / f"start-{self.starts}.log"
        self.starts += 1
        return start(self.command, log, *options, hook=hook)

    def finish(self) -> None:
        """Run to the end without a fault."""
        if self.start().wait() != 0:
            raise Misbehaved("the start without a fault failed")

    def choose_moment(self) -> float:
        """Return a number of seconds after the beginning of a start."""
        way = (self.command.processes, self.command.is_program)
        return self.random.random() * self.facts.seconds[way]

    def choose_file(self, folder: Path) -> Path:
        """Return a file in a folder."""
        return self.random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))

    def interrupt(self, num_sealed: int) -> None:
        """Kill a start at a file call after it has sealed this many checkpoints."""
        steps = self.facts.saved_steps
        first = self.facts.file_calls.index(SEALED.format(step=steps[num_sealed - 1])) + 1
        last = self.facts.file_calls.index(SEALED.format(step=steps[num_sealed])) + 1
        number = self.random.randrange(first + 1, last)
        self.start(hook=FileCalls(self.run, kill_at=number).install).wait()
        if find_intact(self.run) is None:
            raise Misbehaved("the interrupted start left no checkpoint")


# --- kills ----------------------------------------------------------------------------------------


def kill_at_moment(victim: Victim) -> str:
    """SIGKILL at a random moment, a third of them with an empty cache of rows."""
    is_cold = victim.random.random() < 1 / 3
    if is_cold:
        victim.command = replace(victim.command, cache=victim.folder / "cache")
    seconds = victim.choose_moment()
    started = victim.start()
    started.wait_seconds(seconds)
    started.kill()
    return f"after {seconds:.2f} s" + (", cold cache" if is_cold else "")


def kill_again_and_again(victim: Victim) -> str:
    """SIGKILL at a random moment, in each of three starts one after another."""
    return "; ".join(kill_at_moment(victim) for _ in range(3))


def kill_at_file_call(victim: Victim) -> str:
    """SIGKILL before a call that changes a file of the run."""
    calls = victim.facts.file_calls
    number = int(victim.share * len(calls))
    exit_code = victim.start(hook=FileCalls(victim.run, kill_at=number).install).wait()
    return f"{number}: {calls[number]}{_note_missed(exit_code)}"


def _note_missed(exit_code: int | None) -> str:
    return "" if exit_code == -signal.SIGKILL else f" (not reached, exit code {exit_code})"


def kill_at_system_call(victim: Victim) -> str:
    """SIGKILL at a system call of a save."""
    calls = victim.facts.system_calls
    call = calls[int(victim.share * len(calls))]
    started = victim.start(hook=lambda: stop_at_save(victim.facts.traced_step))
    trace(started, victim.folder / "strace", *inject(call))
    what = f"{call.name} {call.number} {call.text}".strip()
    return what + _note_missed(started.exit_code)


def terminate_at_moment(victim: Victim) -> str:
    """SIGTERM at a random moment."""
    seconds = victim.choose_moment()
    started = victim.start()
    started.wait_seconds(seconds)
    return f"after {seconds:.2f} s, {_terminate(started, started.pid)}"


def _terminate(started: Start, pid: int) -> str:
    """Send SIGTERM, and check the exit code. A process without handlers yet ends by the signal."""
    if started.exit_code is None:
        _send(pid, signal.SIGTERM)
    exit_code = started.wait()
    if exit_code not in (0, RESUME_ME, -signal.SIGTERM):
        raise Misbehaved(f"exit code {exit_code} after SIGTERM")
    return f"exit code {exit_code}"


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


# --- damage ---------------------------------------------------------------------------------------


def flip_bit(victim: Victim, path: Path) -> str:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    bit = victim.random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit} of {path.relative_to(victim.run)}"


def flip_bit_in_newest_checkpoint(victim: Victim) -> str:
    """One flipped bit in the newest of two checkpoints."""
    victim.interrupt(2)
    return flip_bit(victim, victim.choose_file(_find_newest(victim)))


def flip_bit_in_every_checkpoint(victim: Victim) -> str:
    """One flipped bit in each checkpoint."""
    victim.interrupt(2)
    folders = sorted(victim.run.glob("checkpoints/checkpoint-*"))
    return "; ".join(flip_bit(victim, victim.choose_file(folder)) for folder in folders)


def flip_bit_in_run_file(victim: Victim) -> str:
    """One flipped bit in `manifest.json` or `metrics.jsonl` of an unfinished run."""
    victim.interrupt(2)
    names = ("metrics.jsonl", "manifest.json")
    return flip_bit(victim, victim.run / names[int(victim.share * len(names))])


def flip_bit_in_adapter(victim: Victim) -> str:
    """One flipped bit in the weights or the config of a finished run's adapter."""
    victim.finish()
    names = ("adapter_model.safetensors", "adapter_config.json")
    return flip_bit(victim, victim.run / "adapter" / victim.random.choice(names))


def _find_newest(victim: Victim) -> Path:
    newest = find_intact(victim.run)
    assert newest is not None
    return newest


# --- deletions ------------------------------------------------------------------------------------


def delete_file_of_newest_checkpoint(victim: Victim) -> str:
    """A deleted file of the newest of two checkpoints."""
    victim.interrupt(2)
    return _delete(victim, victim.choose_file(_find_newest(victim)))


def delete_newest_checkpoint(victim: Victim) -> str:
    """The newest of two checkpoints, deleted."""
    victim.interrupt(2)
    newest = _find_newest(victim)
    for path in newest.rglob("*"):
        path.unlink()
    newest.rmdir()
    return f"deleted {newest.name}"


def delete_file_of_unfinished_run(victim: Victim) -> str:
    """A deleted file of an unfinished run: manifest, recipe, metrics or lock."""
    victim.interrupt(2)
    names = ("manifest.json", "recipe.yaml", "metrics.jsonl", ".lock")
    return _delete(victim, victim.run / names[int(victim.share * len(names))])


def delete_file_of_finished_run(victim: Victim) -> str:
    """A deleted file of a finished run: adapter, status or checkpoint."""
    victim.finish()
    names = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "status.json")
    return _delete(victim, victim.run / names[int(victim.share * len(names))])


def _delete(victim: Victim, path: Path) -> str:
    path.unlink()
    return f"deleted {path.relative_to(victim.run)}"


# --- two processes --------------------------------------------------------------------------------


def kill_rank_at_moment(victim: Victim) -> str:
    """SIGKILL to one of two ranks at a random moment."""
    rank, seconds, started, pid = _start_two(victim)
    if pid is not None:
        _send(pid, signal.SIGKILL)
    started.wait()
    return f"rank {rank} after {seconds:.2f} s"


def kill_rank_at_file_call(victim: Victim) -> str:
    """SIGKILL to rank 0 before a call that changes a file of the run."""
    calls = victim.facts.file_calls
    number = int(victim.share * len(calls))
    victim.start(hook=FileCalls(victim.run, kill_at=number, rank=0).install).wait()
    return f"rank 0, {number}"


def terminate_rank(victim: Victim) -> str:
    """SIGTERM to one of two ranks at a random moment."""
    rank, seconds, started, pid = _start_two(victim)
    if pid is not None:
        _send(pid, signal.SIGTERM)
    started.wait()
    return f"rank {rank} after {seconds:.2f} s, {_read_reason(victim)}"


def _start_two(victim: Victim) -> tuple[int, float, Start, int | None]:
    rank, seconds = victim.random.randrange(2), victim.choose_moment()
    started = victim.start()
    started.wait_seconds(seconds)
    started.wait(lambda: started.find_rank(rank) is not None)
    pid = started.find_rank(rank) if started.exit_code is None else None
    return rank, seconds, started, pid


def _read_reason(victim: Victim) -> str:
    try:
        return str(json.loads((victim.run / "status.json").read_text())["exit_code"])
    except (OSError, ValueError):
        return "no status"


@dataclass(frozen=True)
class Kind:
    """A kind of attack.

    Attributes:
        attack: Attacks a victim, and returns what it did. Its docstring is the row of the table.
        processes: The number of processes that train.
        is_program: Whether to start the program and not forks. With two processes that is
            `lora-sft launch`.
        may_refuse: Whether a refusal is a right answer.
    """

    attack: Callable[[Victim], str]
    processes: int = 1
    is_program: bool = False
    may_refuse: bool = False

    @property
    def name(self) -> str:
        """The first line of the attack's docstring, without the full stop."""
        under = ", under lora-sft launch" if self.is_program and self.processes > 1 else ""
        return (self.attack.__doc__ or "").splitlines()[0].rstrip(".") + under


# The attacks are made in this order, again and again. The first ten are the most different.
CYCLE = (
    Kind(kill_at_file_call),
    Kind(kill_at_system_call),
    Kind(kill_at_moment),
    Kind(kill_rank_at_moment, processes=2),
    Kind(flip_bit_in_newest_checkpoint),
    Kind(flip_bit_in_run_file, may_refuse=True),
    Kind(flip_bit_in_adapter, may_refuse=True),
    Kind(delete_file_of_newest_checkpoint),
    Kind(terminate_at_moment),
    Kind(flip_bit_in_every_checkpoint, may_refuse=True),
    Kind(kill_again_and_again),
    Kind(delete_newest_checkpoint),
    Kind(delete_file_of_unfinished_run, may_refuse=True),
    Kind(delete_file_of_finished_run),
    Kind(kill_rank_at_file_call, processes=2),
    Kind(terminate_rank, processes=2),
    Kind(kill_rank_at_moment, processes=2, is_program=True),
    *(Kind(kill_at_file_call),) * 2,
    *(Kind(kill_at_system_call),) * 11,
)


def choose_kinds(number: int, *, has_strace: bool) -> list[Kind]:
    """Return the kinds of a number of attacks. Without strace, file calls stand for system calls.

    The kinds of a small number are those at the beginning of `CYCLE`.
    """
    chosen = [CYCLE[index % len(CYCLE)] for index in range(number)]
    return [
        Kind(kill_at_file_call) if kind.attack is kill_at_system_call and not has_strace else kind
        for kind in chosen
    ]
