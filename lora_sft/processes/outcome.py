"""The file in which a worker leaves its exit code for the process that started the launcher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lora_sft.errors import EXIT_DONE

OUTCOME = "LORA_SFT_OUTCOME"  # names a file in which a worker leaves its exit code


def leave_outcome(
    environment: Mapping[str, str], exit_code: int, *, was_told: bool = False
) -> None:
    """Called by a worker: keep its exit code for whoever started the launcher.

    The first that is no success counts: the main process may fail after the others are done.
    `was_told`: it left at once because of a signal. That is the run's end where somebody asked for
    it; a launcher sends the same signal to whoever is left when a process has died.
    """
    path = environment.get(OUTCOME)
    if path is None or exit_code == EXIT_DONE:
        return
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            json.dump({"exit_code": exit_code, "was_told": was_told}, file)
    except OSError:
        return
