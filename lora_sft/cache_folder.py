"""Where prepared data is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "LORA_SFT_CACHE"


def find_cache_folder() -> Path:
    """`$LORA_SFT_CACHE`, else `lora-sft` in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(VARIABLE) or Path(user) / "lora-sft")
