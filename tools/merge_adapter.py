"""Merge a LoRA adapter into its base: `python tools/merge_adapter.py ADAPTER OUT [--base PATH]`.

It does the same as `lora-sft merge` and has the same options (`--help`). Use it in a clone of the
repository if the package is not installed. `docs/merging.md` explains the merge.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lora_sft.cli.app import main

if __name__ == "__main__":
    main(["merge", *sys.argv[1:]])
