"""Find the folder in which prepared data is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_FOLDER_VARIABLE = "LORA_SFT_CACHE"


def find_cache_folder() -> Path:
    """Return `$LORA_SFT_CACHE`, or by default `lora-sft` in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_FOLDER_VARIABLE) or Path(user) / "lora-sft")
