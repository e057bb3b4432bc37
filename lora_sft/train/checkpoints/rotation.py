"""Delete old checkpoints after a save, so that at most `train.save_total_limit` are left.

The Trainer counts every folder and keeps the one with the highest step (transformers 5.23
`rotate_checkpoints`). That may be an unfinished or a damaged one, and then the last good one is
deleted. Here only sealed checkpoints count.
"""

from __future__ import annotations

from pathlib import Path

from lora_sft.log import say
from lora_sft.run_directory import RunDirectory
from lora_sft.train.checkpoints.sealing import is_unfinished, read_manifest
from lora_sft.written_files import remove_checkpoint


def rotate_checkpoints(run: RunDirectory, saved: Path, limit: int | None, best: str | None) -> None:
    """Delete unfinished checkpoints, then the oldest sealed ones, until `limit` are left.

    Two kinds stay and are not counted. The weights of a checkpoint with a damaged manifest may be
    good. A checkpoint of a later step was damaged when this start looked for the last good one.

    Args:
        run: The run directory.
        saved: The checkpoint that was sealed just now. It always stays.
        limit: How many sealed checkpoints to keep; None or 0 for all.
        best: The path of the best checkpoint, which always stays; None if there is none.
    """
    if not limit or limit < 0:
        return
    checkpoints = run.list_checkpoints()
    until_now = checkpoints[: checkpoints.index(saved) + 1]
    sealed = [each for each in until_now if read_manifest(each) is not None]
    kept = {saved.name, Path(best or saved).name}
    older = [each for each in sealed if each.name not in kept]
    num_kept = len(sealed) - len(older)
    num_surplus = len(sealed) - max(limit, num_kept)
    unfinished = [each for each in checkpoints if is_unfinished(each)]
    for checkpoint in (*unfinished, *older[: max(num_surplus, 0)]):
        try:
            remove_checkpoint(checkpoint)
        except OSError as error:
            say(f"warning: cannot delete {error.filename or checkpoint}: {error.strerror}")
