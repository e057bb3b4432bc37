"""Let a worker write its exit code into a file, for the command that started the launcher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lora_sft.errors import EXIT_DONE

OUTCOME_VARIABLE = "LORA_SFT_OUTCOME"  # the environment variable with the path of that file


def leave_outcome(
    environment: Mapping[str, str], exit_code: int, *, was_told: bool = False
) -> None:
    """Write this worker's exit code for `lora-sft launch`, unless it is 0.

    The first worker that fails writes the file: later ones leave it as it is. A worker that
    succeeds writes nothing, because rank 0 may still fail after the others have ended.

    Args:
        environment: Holds the path of the file. Without it nothing is written.
        exit_code: The exit code of this worker.
        was_told: Whether a signal ended this worker at once. The user may have sent the signal, but
            a launcher also sends it to the remaining workers after one has died.
    """
    path = environment.get(OUTCOME_VARIABLE)
    if path is None or exit_code == EXIT_DONE:
        return
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            json.dump({"exit_code": exit_code, "was_told": was_told}, file)
    except OSError:
        return
