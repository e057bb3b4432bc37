"""The rendered text of a conversation, and the parts of it that are learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LearnedText:
    """One learned span, in character positions of the rendered text; `end` is exclusive."""

    role: str
    message: int | None
    start: int
    end: int


@dataclass(frozen=True)
class RenderedChat:
    """One text that becomes one labelled row, and the parts of it that are learned.

    Attributes:
        built: `rendered` if the text is exactly the template's, else `spliced` or `escaped`.
        placeholders: Private-use characters of the text, and the strings that they replace.
    """

    where: str
    text: str
    learned: tuple[LearnedText, ...]
    built: str = "rendered"
    placeholders: Mapping[str, str] = field(default_factory=dict)
