"""The result of a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lora_sft.recipe.resolved import Recipe


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    Attributes:
        paths: The settings that contradict each other, or the one setting that is wrong.
        what: The error message.
        fix: The change that corrects it.
    """

    paths: tuple[str, ...]
    what: str
    fix: str


Rule = Callable[[Recipe], Iterator[Finding]]
