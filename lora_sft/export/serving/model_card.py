"""Make the README of an adapter or a merged model: what it is, how it was made, how to load it.

The card has no placeholders and no paths of this machine. A local path is cut to its last part. A
URL is written without its password and its query, which may hold a key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lora_sft.export.public_text import name_base
from lora_sft.export.serving.card_text import (
    write_markdown_code,
    write_markdown_text,
    write_yaml_text,
)

if TYPE_CHECKING:
    from lora_sft.export.adapter_origin import AdapterOrigin

PROJECT_URL = "https://pypi.org/project/lora-sft/"
# The sections of a recipe that decide the result.
SHOWN_SECTIONS = ("quantization", "adapter", "data", "train")
# These settings do not change the result, or the card shows them elsewhere.
HIDDEN_SETTINGS = (
    "train.logging_",
    "train.save_",
    "train.eval_",
    "train.report_to",
    "train.run_name",
)


ADAPTER_USE = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # this folder, or its id on the hub
model = AutoPeftModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""

MERGED_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its id on the hub
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


def make_adapter_card(origin: AdapterOrigin, licence: Mapping[str, str] | None = None) -> str:
    """Return the card of an adapter."""
    base = origin.model_name_or_path
    return _join(
        _front_matter(base, "peft", licence or {}),
        [
            f"# LoRA adapter for {write_markdown_text(name_base(base))}",
            "",
            f"Trained with [lora-sft]({PROJECT_URL}).",
        ],
        ["## Use", "", ADAPTER_USE],
        _describe_training(origin),
    )


def make_merged_card(
    origin: AdapterOrigin, report: Mapping[str, Any], licence: Mapping[str, str] | None = None
) -> str:
    """Return the card of a merged model.

    Args:
        report: The report of the merge, as in `merge_report.json`.
    """
    base = origin.model_name_or_path
    made = f"Merged with [lora-sft]({PROJECT_URL}) onto the {report['onto']} base."
    return _join(
        _front_matter(base, "transformers", licence or {}),
        [f"# {write_markdown_text(name_base(base))} with a merged LoRA adapter", "", made],
        ["## Verification", "", *_describe_verification(report)],
        ["## Use", "", MERGED_USE],
        _describe_training(origin),
    )


def _join(*parts: list[str]) -> str:
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _front_matter(base: str, library: str, licence: Mapping[str, str]) -> list[str]:
    """Return the metadata for the hub. `base_model` is only written if the base model is there."""
    is_hub_id = name_base(base) == base and base.count("/") == 1
    return [
        "---",
        *([f"base_model: {write_yaml_text(base)}"] if is_hub_id else []),
        *(f"{name}: {write_yaml_text(value)}" for name, value in licence.items()),
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        "tags: [lora, sft, lora-sft]",
        "---",
    ]


def _describe_verification(report: Mapping[str, Any]) -> list[str]:
    checked = report.get("correctness")
    if not checked:
        return ["Not verified (the merge was run with `--verify none`)."]
    rows = [("against", checked.get("against")), ("method", checked.get("method"))]
    rows += [
        (name.replace("_", " "), _shorten(checked[name]))
        for name in ("prompts", "mean_kl", "top1_agreement", "max_abs_logit_difference")
        if checked.get(name) is not None
    ]
    if tensors := checked.get("tensors"):
        rows.append(("tensors compared", str(tensors["compared"])))
        rows.append(("largest distance in units in the last place", str(tensors["largest_ulps"])))
    rows.append(("verdict", "passed" if checked.get("passed") else "failed"))
    shift = report.get("shift")
    if shift:
        rows.append((f"mean kl to {shift['against']}", _shorten(shift["mean_kl"])))
    return _table(("measured", "value"), rows)


def _describe_training(origin: AdapterOrigin) -> list[str]:
    """Return the sections about data and recipe; empty if the adapter does not record them."""
    lines = []
    if origin.account:
        account = origin.account
        lines += [
            "## Data",
            "",
            f"{account['kept']:,} of {account['read']:,} source rows were used for training. "
            f"{account['target_tokens']:,} of {account['tokens']:,} tokens were learned.",
        ]
        dropped = {reason: count for reason, count in account.get("dropped", {}).items() if count}
        if dropped:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
            lines += ["", f"Dropped: {write_markdown_text(counts)}."]
        lines.append("")
    if origin.recipe:
        settings = [
            (write_markdown_code(name), write_markdown_code(_shorten(value)))
            for name, value in _list_settings(
                {key: origin.recipe.get(key) for key in SHOWN_SECTIONS}
            )
            if not name.startswith(HIDDEN_SETTINGS)
        ]
        lines += ["## Recipe", "", *_table(("setting", "value"), settings)]
    return lines


def _list_settings(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of every setting that is not empty."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _list_settings(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _list_settings(item, f"{path}.{index}")
    elif value not in (None, "", []):
        yield path, value


def _table(head: tuple[str, str], rows: list[tuple[str, Any]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]


def _shorten(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text.replace("\n", " ")
    return f"{value:.4g}"
