"""The README of an adapter or merged model: what it is, how it was made, how to load it.

Nothing in it is a placeholder and nothing is a path of the machine that made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sft.export.check_summary import AGAINST, describe_check

ADAPTER_USE = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""

MERGED_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""


def name_base(model_name_or_path: str) -> str:
    """A base's public name: the hub id, or only the folder's name for a local one."""
    path = Path(model_name_or_path)
    return path.name if path.is_absolute() or path.exists() else model_name_or_path


def make_adapter_card(
    base: str, train: Mapping[str, Any], lora: Mapping[str, Any], account: Mapping[str, Any]
) -> str:
    """The card of an adapter: base, data account and the settings that decide the result."""
    settings = {**{f"adapter.{key}": value for key, value in lora.items()}, **train}
    return "\n".join(
        [
            *_front_matter(base, "peft"),
            f"# LoRA adapter for {name_base(base)}",
            "",
            "Trained with [lora-sft](https://pypi.org/project/lora-sft/).",
            "",
            "## Use",
            "",
            ADAPTER_USE,
            "",
            "## Data",
            "",
            f"{account['kept']:,} of {account['read']:,} rows read were trained on "
            f"({account['target_tokens']:,} learned of {account['tokens']:,} tokens).",
            "",
            "## Settings",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| `{name}` | `{value}` |" for name, value in settings.items() if value is not None),
            "",
        ]
    )


def make_merged_card(base: str, report: Mapping[str, Any]) -> str:
    """The card of a merged model: its base and how it was verified."""
    checked = report.get("correctness")
    verdict = (
        f"Verified against the {AGAINST}: {describe_check(checked)}."
        if checked
        else "Not verified (the merge was run with `--verify none`)."
    )
    return "\n".join(
        [
            *_front_matter(base, "transformers"),
            f"# {name_base(base)} with a merged LoRA adapter",
            "",
            "Merged with [lora-sft](https://pypi.org/project/lora-sft/) onto the "
            f"{report['onto']} base. {verdict}",
            "",
            "## Use",
            "",
            MERGED_USE,
            "",
        ]
    )


def _front_matter(base: str, library: str) -> list[str]:
    """Hub metadata; a local base has no public name to point to."""
    is_hub_id = name_base(base) == base and base.count("/") == 1
    return [
        "---",
        *([f"base_model: {base}"] if is_hub_id else []),
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        "tags: [lora, sft, lora-sft]",
        "---",
        "",
    ]
