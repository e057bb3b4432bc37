"""`lora-sft launch`: the same run on several GPUs or machines, or the files that start it there."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_sft.cli.arguments import Commands, add_command, add_recipe, positive
from lora_sft.errors import CapabilityError, RecipeError
from lora_sft.run_directory import RunDirectory

if TYPE_CHECKING:
    from lora_sft.launch.commands import World

EITHER = (
    ("rendezvous", "hostfile"),
    ("rendezvous", "slurm"),  # the job makes its own
    ("rendezvous", "write"),
    ("hostfile", "slurm"),
    ("hostfile", "write"),
)
NEEDS = (("address", "rendezvous"), ("hosts", "write"))


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "launch",
        run,
        "Train on several GPUs or machines.",
        "On one machine it starts torchrun. On several, run it on each with --rendezvous, give "
        "--hostfile to reach them over ssh, or --slurm to submit a job.",
    )
    add_recipe(parser)
    parser.add_argument("--gpus", type=positive, help="processes a machine (default: its GPUs)")
    parser.add_argument(
        "--nodes", type=positive, help="machines (default: those of --hostfile, else 1)"
    )
    parser.add_argument(
        "--rendezvous", metavar="HOST:PORT", help="one of the machines, the same on all of them"
    )
    parser.add_argument(
        "--address", help="this machine's, if the others do not find it by its host name"
    )
    parser.add_argument("--hostfile", type=Path, help="machines, for DeepSpeed's launcher")
    parser.add_argument("--slurm", action="store_true", help="submit it as a SLURM job")
    parser.add_argument("--write", metavar="DIR", type=Path, help="only write the files")
    parser.add_argument("--hosts", default="", help="with --write: names for the hostfile")
    parser.add_argument("--resume", metavar="WHERE", default="auto", help="as of train")
    parser.add_argument("--overwrite", action="store_true", help="as of train")


def run(arguments: argparse.Namespace) -> int:
    """Start the run, and return the exit code of its processes."""
    from lora_sft.processes.stop_signal import Stopped, StopRequest

    with StopRequest().listening():  # until the run has started, and takes signals itself
        try:
            return _launch(arguments)
        except Stopped as stopped:
            print(f"{stopped} before the run had started", file=sys.stderr)
            return stopped.exit_code


def _launch(arguments: argparse.Namespace) -> int:
    from lora_sft.launch.commands import World
    from lora_sft.launch.files import write_launch_files
    from lora_sft.launch.hostfile import read_hostfile
    from lora_sft.recipe import read_recipe

    _refuse_what_would_be_ignored(arguments)
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    hosts = read_hostfile(arguments.hostfile) if arguments.hostfile is not None else {}
    world = World(arguments.nodes or len(hosts) or 1, arguments.gpus or _count_gpus())
    train = _list_train_arguments(arguments)
    if arguments.write is not None or arguments.slurm:
        _refuse_what_a_requeue_would_repeat(arguments)
        folder = arguments.write or Path(recipe.output_dir) / "launch"
        names = [host for host in arguments.hosts.split(",") if host]
        files = write_launch_files(folder, world, Path(arguments.recipe), train, names)
        if arguments.write is not None:
            print("\n".join(str(file) for file in files))
            return 0
        return _submit(files[0])
    run = RunDirectory(Path(recipe.output_dir))
    return _start(arguments, world, hosts, ["train", *train], run)


def _refuse_what_would_be_ignored(arguments: argparse.Namespace) -> None:
    """Options of one way to start a run say nothing in another."""
    for option, other in EITHER:
        if getattr(arguments, option) and getattr(arguments, other):
            raise RecipeError(
                f"--{option} would be ignored beside --{other}",
                f"lora-sft launch --{option}",
                f"leave out --{option} or --{other}",
            )
    for option, other in NEEDS:
        if getattr(arguments, option) and not getattr(arguments, other):
            raise RecipeError(
                f"--{option} would be ignored without --{other}",
                f"lora-sft launch --{option}",
                f"add --{other}, or leave out --{option}",
            )


def _refuse_what_a_requeue_would_repeat(arguments: argparse.Namespace) -> None:
    """A job that is queued again runs the same command: it must go on with the run."""
    for option, is_given in (
        ("--overwrite", arguments.overwrite),
        (f"--resume {arguments.resume}", arguments.resume != "auto"),
    ):
        if is_given:
            raise RecipeError(
                f"{option} would be repeated each time the job is queued again, and lose the run",
                "lora-sft launch --slurm, --write",
                "leave it out and the job goes on by itself; to begin anew, give another "
                "output_dir=RUN or remove the run directory",
            )


def _start(
    arguments: argparse.Namespace,
    world: World,
    hosts: Mapping[str, int],
    train: list[str],
    run: RunDirectory,
) -> int:
    """`hosts`: of the hostfile. `train`: what follows `lora-sft`."""
    from lora_sft.launch.commands import make_deepspeed_command, make_torchrun_command
    from lora_sft.launch.hostfile import check_programs, check_room
    from lora_sft.launch.supervision import supervise
    from lora_sft.processes.world import EXPECTED_WORLD_SIZE

    asked_for = {EXPECTED_WORLD_SIZE: str(world.processes)}
    if arguments.hostfile is not None:
        check_room(hosts, world, arguments.hostfile)
        check_programs()
        command = make_deepspeed_command(world, train, arguments.hostfile, asked_for)
    elif world.nodes > 1 and arguments.rendezvous is None:
        raise RecipeError(
            f"{world.nodes} machines, and no way to reach the others",
            "lora-sft launch --nodes",
            "run it on each with --rendezvous HOST:PORT, or give --hostfile FILE, or --slurm",
        )
    else:
        command = make_torchrun_command(world, train, arguments.rendezvous, arguments.address)
    return supervise(command, {**os.environ, **asked_for}, run)


def _list_train_arguments(arguments: argparse.Namespace) -> list[str]:
    """What follows `lora-sft train`: the same recipe and overrides."""
    options = [] if arguments.resume == "auto" else ["--resume", arguments.resume]
    options += ["--overwrite"] if arguments.overwrite else []
    return [str(arguments.recipe), *arguments.overrides, *options]


def _count_gpus() -> int:
    """Raises: CapabilityError where there is none to count: a number is then to be given."""
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise CapabilityError(
            "no GPU is visible, so it is not known how many processes to start",
            "lora-sft launch --gpus",
            "give the number: --gpus 2 (without a GPU they run on the processor)",
        )
    return count


def _submit(script: Path) -> int:
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise CapabilityError(
            "no sbatch on this machine",
            "lora-sft launch --slurm",
            f"add --write DIR for the files alone, or run sbatch {script} where SLURM is",
        )
    return subprocess.run([sbatch, str(script)], check=False).returncode
