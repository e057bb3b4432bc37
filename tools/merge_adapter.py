"""Merge a LoRA adapter into its base: `python tools/merge_adapter.py ADAPTER OUT [--base PATH]`.

The same as `lora-sft merge` with the same options (`--help`), for a checkout that is not installed.
What it does is in `docs/merging.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_sft.cli.app import main

if __name__ == "__main__":
    main(["merge", *sys.argv[1:]])
