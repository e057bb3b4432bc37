"""Is the world that was launched the one that was asked for?

A launcher that starts fewer processes than it was told, or that starts several which know nothing
of each other, leaves a run that looks right and is another one. Only the environment is read, so
the answer comes before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_sft.errors import RecipeError

# What a launcher tells each process. A pod may have them too, before there is a launcher.
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
ASKED_FOR = "LORA_SFT_WORLD_SIZE"  # set by `lora-sft launch` for its workers
# accelerate 1.15 announces a group with these and starts one process (`simple_launcher`). For one
# process it sets only the last; the other two it takes over from a shell that has them.
ACCELERATE = frozenset({"MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"})
# How many copies other starters make of a command, each without a word about the others.
COPIES = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}


def check_world(environment: Mapping[str, str]) -> None:
    """Raises: RecipeError where the processes that run are not those that were asked for, or the
    environment does not say in numbers which this is."""
    for name in PLACE:
        read_number(environment, name, 1)
    world = read_number(environment, "WORLD_SIZE", 1)
    wanted = read_number(environment, ASKED_FOR, world)
    if wanted != world:
        _refuse(f"{wanted} processes were asked for, and this is one of {world}", ASKED_FOR)
    if "WORLD_SIZE" in environment:
        return
    if environment.keys() >= ACCELERATE:
        _refuse(
            "accelerate was asked for several processes and started one, or this shell has "
            "MASTER_ADDR and MASTER_PORT",
            "accelerate launch",
            "where one was meant: unset MASTER_ADDR MASTER_PORT; for several, ",
        )
    for variable, starter in COPIES.items():
        copies = read_number(environment, variable, 1) if environment.get(variable) else 1
        if copies > 1:
            _refuse(f"{starter} started {copies} processes that each train alone", variable)


def read_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A whole number that a launcher set; `default` where it set none.

    Raises: RecipeError for anything else, the empty string too: the libraries that read the same
    variables would end with a traceback.
    """
    text = environment.get(name)
    try:
        return default if text is None else int(text)
    except ValueError:
        raise RecipeError(
            f"{name} is {text!r} in the environment, and no number",
            name,
            f"unset {name}, or let a launcher set it: lora-sft launch RECIPE --gpus N",
        ) from None


def _refuse(what: str, where: str, fix: str = "") -> None:
    raise RecipeError(
        what,
        where,
        f"{fix}start it with lora-sft launch RECIPE --gpus N, or torchrun --nproc-per-node N "
        "-m lora_sft train RECIPE (one torchrun a machine)",
    )
