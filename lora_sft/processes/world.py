"""Check that the launcher started the processes that the user asked for.

A launcher may start fewer processes than asked for, or several that do not work together. Such a
run gives no error, but it trains with another batch. The check only reads the environment, so it
runs before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_sft.errors import RecipeError

# A launcher sets these for each worker. A Kubernetes pod may have them before a launcher runs.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
EXPECTED_WORLD_SIZE = "LORA_SFT_WORLD_SIZE"  # set by `lora-sft launch` for its workers
# With `--num_processes 2 --cpu` accelerate 1.15 starts only one process (`simple_launcher`), and
# sets these three variables, but not WORLD_SIZE. With `--num_processes 1` it sets only the last
# one; the other two can come from the user's shell.
ACCELERATE_VARIABLES = frozenset({"MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"})
# Programs that start independent copies of a command, by the variable with the number of copies.
COPYING_PROGRAMS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}


def check_world(environment: Mapping[str, str]) -> None:
    """Check that the number of processes is the number that the user asked for.

    Raises: RecipeError if it is not, or if a variable of the launcher is not an integer.
    """
    for name in RANK_VARIABLES:
        read_number(environment, name, 1)
    started = read_number(environment, "WORLD_SIZE", 1)
    expected = read_number(environment, EXPECTED_WORLD_SIZE, started)
    if expected != started:
        _refuse(
            f"{expected} processes were asked for, but the world size is {started}",
            EXPECTED_WORLD_SIZE,
        )
    if "WORLD_SIZE" in environment:
        return
    if environment.keys() >= ACCELERATE_VARIABLES:
        _refuse(
            "accelerate was asked for several processes but started one; or the shell sets "
            "MASTER_ADDR and MASTER_PORT",
            "accelerate launch",
            "to train with one process: unset MASTER_ADDR MASTER_PORT; with several: ",
        )
    for variable, program in COPYING_PROGRAMS.items():
        copies = read_number(environment, variable, 1) if environment.get(variable) else 1
        if copies > 1:
            _refuse(
                f"{program} started {copies} processes, and each would train by itself", variable
            )


def read_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """Return the integer in an environment variable, or `default` if the variable is not set.

    Raises: RecipeError if the value is not an integer, the empty string included. The libraries
        that read the same variables would end with a traceback.
    """
    text = environment.get(name)
    try:
        return default if text is None else int(text)
    except ValueError:
        raise RecipeError(
            f"the environment variable {name} is {text!r}, which is not an integer",
            name,
            f"unset {name}, or let a launcher set it: lora-sft launch RECIPE --gpus N",
        ) from None


def _refuse(what: str, where: str, fix: str = "") -> None:
    raise RecipeError(
        what,
        where,
        f"{fix}start the run with lora-sft launch RECIPE --gpus N, or on each machine with "
        "torchrun --nproc-per-node N -m lora_sft train RECIPE",
    )
