"""Is the world that was launched the one that was asked for?

A launcher that starts fewer processes than it was told, or that starts several which know nothing
of each other, leaves a run that looks right and is another one. Only the environment is read, so
the answer comes before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_sft.errors import RecipeError

ASKED_FOR = "LORA_SFT_WORLD_SIZE"  # set by `lora-sft launch` for its workers
# How many copies other starters make of a command, each without a word about the others.
COPIES = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}


def check_world(environment: Mapping[str, str]) -> None:
    """Raises: RecipeError where the processes that run are not those that were asked for."""
    world = environment.get("WORLD_SIZE")
    wanted = environment.get(ASKED_FOR)
    if wanted is not None and wanted != (world or "1"):
        _refuse(f"{wanted} processes were asked for, and this is one of {world or 1}", ASKED_FOR)
    if world is not None:
        return
    if "MASTER_ADDR" in environment and "ACCELERATE_MIXED_PRECISION" in environment:
        # accelerate 1.15 announces a group and starts one process (`simple_launcher`)
        _refuse("accelerate was asked for several processes and started one", "accelerate launch")
    for variable, starter in COPIES.items():
        if int(environment.get(variable) or 1) > 1:
            copies = environment[variable]
            _refuse(f"{starter} started {copies} processes that each train alone", variable)


def _refuse(what: str, where: str) -> None:
    raise RecipeError(
        what,
        where,
        "start it with lora-sft launch RECIPE --gpus N, or torchrun --nproc-per-node N -m lora_sft "
        "train RECIPE (one torchrun a machine)",
    )
