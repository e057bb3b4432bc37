"""What a rule finds: settings that cannot stand together, why, and the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lora_sft.recipe.resolved import Recipe


@dataclass(frozen=True)
class Finding:
    """Settings that cannot stand together, why, and the fix."""

    paths: tuple[str, ...]
    what: str
    fix: str


Rule = Callable[[Recipe], Iterator[Finding]]
