"""`lora-sft launch`: start a run on several GPUs or machines, or write the files that start it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_sft.cli.arguments import (
    Commands,
    add_command,
    add_recipe,
    add_trust,
    add_trust_checkpoint,
    list_trust_overrides,
    positive_integer,
)
from lora_sft.errors import CapabilityError, RecipeError
from lora_sft.log import print_result
from lora_sft.run_directory import RunDirectory

if TYPE_CHECKING:
    from lora_sft.launch.commands import World

# The first option of each pair would be ignored with the second.
EXCLUSIVE_OPTIONS = (
    ("rendezvous", "hostfile"),
    ("rendezvous", "slurm"),  # the SLURM job sets its own rendezvous
    ("rendezvous", "write"),
    ("hostfile", "slurm"),
    ("hostfile", "write"),
)
# The first option of each pair would be ignored without the second.
REQUIRED_OPTIONS = (("address", "rendezvous"), ("hosts", "write"))


def add_parser(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "launch",
        run,
        "Train on several GPUs or machines.",
        "On one machine this command starts torchrun. To use several machines, run it on each of "
        "them with --rendezvous. Or run it once: --hostfile starts the processes over ssh, --slurm "
        "submits a job.",
    )
    add_recipe(parser)
    parser.add_argument(
        "--gpus",
        type=positive_integer,
        metavar="N",
        help="processes per machine (default: one per visible GPU)",
    )
    parser.add_argument(
        "--nodes",
        type=positive_integer,
        metavar="N",
        help="number of machines (default: those in --hostfile, else 1)",
    )
    parser.add_argument(
        "--rendezvous",
        metavar="HOST:PORT",
        help="one of the machines and a free port on it; give every machine the same value",
    )
    parser.add_argument(
        "--address",
        help="address of this machine, if the others cannot reach it by its host name",
    )
    parser.add_argument(
        "--hostfile",
        metavar="FILE",
        type=Path,
        help="a list of machines, to start the run with DeepSpeed's launcher",
    )
    parser.add_argument("--slurm", action="store_true", help="submit the run as a SLURM job")
    parser.add_argument(
        "--write",
        metavar="DIR",
        type=Path,
        help="write the launch files (sbatch, hostfile, accelerate) to DIR and start nothing",
    )
    parser.add_argument(
        "--hosts",
        metavar="NAMES",
        default="",
        help="with --write: host names for the hostfile, separated by commas",
    )
    parser.add_argument(
        "--resume", metavar="WHERE", default="auto", help="see lora-sft train --help"
    )
    parser.add_argument("--overwrite", action="store_true", help="see lora-sft train --help")
    add_trust(parser)
    add_trust_checkpoint(parser)


def run(arguments: argparse.Namespace) -> int:
    """Start the run and return the exit code of its processes."""
    from lora_sft.processes.stop_signal import Stopped, StopRequest

    with StopRequest().listening():  # once the run has started, it handles signals itself
        try:
            return _launch(arguments)
        except Stopped as stopped:
            print(f"{stopped} before the run started", file=sys.stderr)
            return stopped.exit_code


def _launch(arguments: argparse.Namespace) -> int:
    from lora_sft.launch.commands import World
    from lora_sft.launch.files import write_launch_files
    from lora_sft.launch.hostfile import read_hostfile
    from lora_sft.recipe import read_recipe

    _check_no_option_is_ignored(arguments)
    arguments.overrides += list_trust_overrides(arguments)
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    hosts = read_hostfile(arguments.hostfile) if arguments.hostfile is not None else {}
    world = World(arguments.nodes or len(hosts) or 1, arguments.gpus or _count_gpus())
    train = _list_train_arguments(arguments)
    if arguments.write is not None or arguments.slurm:
        _check_requeued_job_would_resume(arguments)
        folder = arguments.write or Path(recipe.output_dir) / "launch"
        names = [host for host in arguments.hosts.split(",") if host]
        files = write_launch_files(folder, world, Path(arguments.recipe), train, names)
        if arguments.write is not None:
            print_result("\n".join(str(file) for file in files))
            return 0
        return _submit(files[0])
    run = RunDirectory(Path(recipe.output_dir))
    return _start(arguments, world, hosts, ["train", *train], run)


def _check_no_option_is_ignored(arguments: argparse.Namespace) -> None:
    """Raise RecipeError if an option has no effect together with the other options."""
    for option, other in EXCLUSIVE_OPTIONS:
        if getattr(arguments, option) and getattr(arguments, other):
            raise RecipeError(
                f"--{option} would be ignored with --{other}",
                f"lora-sft launch --{option}",
                f"leave out --{option} or --{other}",
            )
    for option, other in REQUIRED_OPTIONS:
        if getattr(arguments, option) and not getattr(arguments, other):
            raise RecipeError(
                f"--{option} would be ignored without --{other}",
                f"lora-sft launch --{option}",
                f"add --{other}, or leave out --{option}",
            )


def _check_requeued_job_would_resume(arguments: argparse.Namespace) -> None:
    """Raise RecipeError if an option would stop a requeued job from continuing its run.

    SLURM runs the same command again when it requeues a job.
    """
    for option, is_given in (
        ("--overwrite", arguments.overwrite),
        (f"--resume {arguments.resume}", arguments.resume != "auto"),
    ):
        if is_given:
            raise RecipeError(
                f"{option} would be repeated each time SLURM requeues the job, and the job could "
                "not continue its run",
                "lora-sft launch --slurm, --write",
                f"leave out {option}; for a new run, set another output_dir=RUN or delete the run "
                "directory",
            )


def _start(
    arguments: argparse.Namespace,
    world: World,
    hosts: Mapping[str, int],
    train: list[str],
    run: RunDirectory,
) -> int:
    """Start the processes of a run and return their exit code.

    Args:
        arguments: The options of `launch`.
        world: How many machines and processes to start.
        hosts: The machines of the hostfile and their slots.
        train: The command line after `lora-sft`.
        run: The directory of the run.
    """
    from lora_sft.launch.commands import make_deepspeed_command, make_torchrun_command
    from lora_sft.launch.hostfile import check_programs, check_room
    from lora_sft.launch.supervision import supervise
    from lora_sft.processes.world import EXPECTED_WORLD_SIZE
    from lora_sft.user_key import KEY_FILE_VARIABLE

    asked_for = {EXPECTED_WORLD_SIZE: str(world.processes)}
    key_file = os.environ.get(KEY_FILE_VARIABLE)
    if key_file:  # every process must find the key; ssh passes on no variables
        asked_for[KEY_FILE_VARIABLE] = str(Path(key_file).absolute())
    if arguments.hostfile is not None:
        check_room(hosts, world, arguments.hostfile)
        check_programs()
        command = make_deepspeed_command(world, train, arguments.hostfile, asked_for)
    elif world.nodes > 1 and arguments.rendezvous is None:
        raise RecipeError(
            f"--nodes {world.nodes} needs --rendezvous, --hostfile or --slurm to start the other "
            "machines",
            "lora-sft launch --nodes",
            "run this command on each machine with --rendezvous HOST:PORT, or add --hostfile FILE "
            "or --slurm",
        )
    else:
        command = make_torchrun_command(world, train, arguments.rendezvous, arguments.address)
    return supervise(command, {**os.environ, **asked_for}, run)


def _list_train_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of `lora-sft train`: the recipe, the overrides and the options."""
    options = [] if arguments.resume == "auto" else ["--resume", arguments.resume]
    options += ["--overwrite"] if arguments.overwrite else []
    options += ["--trust-checkpoint"] if arguments.trust_checkpoint else []
    return [str(arguments.recipe), *arguments.overrides, *options]


def _count_gpus() -> int:
    """Return the number of visible GPUs.

    Raises: CapabilityError if no GPU is visible.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise CapabilityError(
            "no GPU is visible, so the number of processes is not known",
            "lora-sft launch --gpus",
            "give the number of processes: --gpus 2 (without a GPU they run on the CPU)",
        )
    return count


def _submit(script: Path) -> int:
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise CapabilityError(
            "the program sbatch is not on this machine",
            "lora-sft launch --slurm",
            f"run sbatch {script} on a machine with SLURM, or use --write DIR instead of --slurm",
        )
    return subprocess.run([sbatch, str(script)], check=False).returncode
