"""Keep what was learned if an evaluation during training fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_sft.errors import LoraSftError, TrainingError
from lora_sft.file_names import CHECKPOINT_PREFIX
from lora_sft.processes.failed_files import explain_failed_files
from lora_sft.processes.watch import is_about_others
from lora_sft.train.checkpoints.sealing import read_manifest

CONTINUES = "start the same command again: it continues"
NO_EVALUATIONS = "train.eval_strategy: no switches evaluations off"


def save_and_explain(trainer: Any, error: Exception) -> Exception:
    """Save a checkpoint of the present step, and return the error that ends the run.

    If the connection to another process broke, it is the error itself: the watch finds its cause.

    Several processes save a checkpoint together. If one of them fails in an evaluation, the others
    wait for it there, so nothing can be saved.

    Args:
        trainer: The trainer, in whose evaluation the error was raised.
        error: What the evaluation raised.

    Raises: TrainingError if the save met a full disk, or a file that cannot be written.
    """
    if trainer.args.world_size > 1 and is_about_others(error):
        return error
    step = trainer.state.global_step
    what = f"the evaluation at step {step} failed: {type(error).__name__}: {error}"
    problem = _save(trainer, step)
    where = f"{trainer.args.output_dir} (optimizer step {step})"
    if problem:
        fix = f"{CONTINUES} from the last checkpoint; {NO_EVALUATIONS}"
        return TrainingError(f"{what}; {problem}", where, fix)
    failed = TrainingError(what, where, f"{CONTINUES} after step {step}; {NO_EVALUATIONS}")
    failed.state_saved = True
    return failed


def _save(trainer: Any, step: int) -> str:
    """Save the present step if it is not on disk; return why that is not possible, or ""."""
    checkpoint = Path(str(trainer.args.output_dir)) / f"{CHECKPOINT_PREFIX}{step}"
    if step == 0:
        return "nothing was trained yet"
    if read_manifest(checkpoint) is not None:
        return ""
    if trainer.args.world_size > 1:
        return "a run of several processes cannot save its state then"
    try:
        with explain_failed_files(trainer.job.run.path):
            trainer._save_checkpoint(trainer.model, None)
    except LoraSftError:
        raise
    except Exception as error:  # the reason of the first failure may break the save too
        return f"the state could not be saved: {type(error).__name__}: {error}"
    return ""
