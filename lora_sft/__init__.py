"""Fine-tune causal language models with LoRA and QLoRA, and verify the results.

Each public name is imported on its first use, so `import lora_sft` and `read_recipe` import no
torch. `docs/python.md` has an example.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lora_sft.versions import __version__

if TYPE_CHECKING:
    from lora_sft.api import (
        evaluate_run,
        merge_adapter,
        preview_rows,
        train_recipe,
    )
    from lora_sft.recipe import Recipe, read_recipe

__all__ = [
    "Recipe",
    "__version__",
    "evaluate_run",
    "merge_adapter",
    "preview_rows",
    "read_recipe",
    "train_recipe",
]

_MODULES = {
    "Recipe": "lora_sft.recipe",
    "read_recipe": "lora_sft.recipe",
    "evaluate_run": "lora_sft.api",
    "merge_adapter": "lora_sft.api",
    "preview_rows": "lora_sft.api",
    "train_recipe": "lora_sft.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
