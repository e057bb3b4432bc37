"""Write the files for other launchers: an sbatch script, a hostfile, an accelerate file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_sft.launch.commands import World
from lora_sft.run_directory import write_recorded_text

SBATCH = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --chdir={folder}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
# Three minutes before the time limit SLURM sends USR1. The run then saves its state and ends with
# exit code 75, and this script queues the job again. The same command continues from the
# checkpoint. Add --partition, --account, --time and --cpus-per-task if your cluster needs them.
set -uo pipefail

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
# Since SLURM 22.05 srun does not read --cpus-per-task of the job.
if [ -n "${{SLURM_CPUS_PER_TASK:-}}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

srun --kill-on-bad-exit=0 {command} --rendezvous "$head_node:$port" &
step=$!
trap 'scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
wait "$step"; code=$?
# A trapped signal ends the wait, but the step still runs.
while [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done

if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
"""

ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
num_machines: {nodes}
num_processes: {processes}
machine_rank: 0
main_process_ip: {host}
main_process_port: 29500
main_training_function: main
rdzv_backend: static
same_network: true
mixed_precision: 'no'
use_cpu: false
"""


def write_launch_files(
    folder: Path, world: World, recipe: Path, train: Sequence[str], hosts: Sequence[str]
) -> list[Path]:
    """Write `job.sbatch`, `hostfile` and `accelerate.yaml`, and return their paths.

    Args:
        folder: The folder to write to.
        world: The machines, and the processes on each.
        recipe: The path of the recipe; its name becomes part of the job's name.
        train: The recipe and the overrides, as given on the command line.
        hosts: The names of the machines. A missing name becomes node-1, node-2 and so on, for the
            user to replace.
    """
    names = [*hosts, *(f"node-{number + 1}" for number in range(len(hosts), world.nodes))]
    launch = ["launch", *train, f"--nodes={world.nodes}", f"--gpus={world.gpus}"]
    command = shlex.join([sys.executable, "-m", "lora_sft", *launch])
    texts = {
        "job.sbatch": SBATCH.format(
            name=shlex.quote(f"lora-sft-{recipe.stem}"),
            folder=shlex.quote(str(Path.cwd())),  # the command line may have paths relative to it
            nodes=world.nodes,
            gpus=world.gpus,
            command=command,
        ),
        "hostfile": "".join(f"{name} slots={world.gpus}\n" for name in names),
        "accelerate.yaml": ACCELERATE.format(
            kind="MULTI_GPU" if world.processes > 1 else "'NO'",
            nodes=world.nodes,
            processes=world.processes,
            host=json.dumps(names[0]),
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_recorded_text(folder / name, text)
    return [folder / name for name in texts]
