"""A rendered conversation: its text, and which parts of it are learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LearnedText:
    """One learned span in character positions of the rendered text."""

    role: str
    message: int | None
    start: int
    end: int


@dataclass(frozen=True)
class RenderedChat:
    """A text to be tokenised once into a labelled row, and the parts of it that are learned.

    `built`: `rendered` where the text is the template's own, else `spliced` or `escaped`.
    `stand_ins`: private characters of the text, and the strings that they stand for.
    """

    where: str
    text: str
    learned: tuple[LearnedText, ...]
    built: str = "rendered"
    stand_ins: Mapping[str, str] = field(default_factory=dict)
