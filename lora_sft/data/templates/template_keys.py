"""Which keys a chat template can read of what it is given: those that its text names.

A template that prints whole messages names no key of theirs. What stands under another key then
counts as unread: two rows that differ only there are the same, which keeps a test row out of
training rather than in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

WORD = re.compile(r"\w+")


class TemplateKeys:
    """The words of one tokenizer's chat template, or of all of its named ones."""

    def __init__(self, template: str | Mapping[str, str] | None) -> None:
        texts = template.values() if isinstance(template, Mapping) else [template or ""]
        self._text = "\n".join(texts)
        self._words = frozenset(WORD.findall(self._text))

    def is_read(self, key: str) -> bool:
        """Whether `key` is a whole word of the template."""
        if WORD.fullmatch(key):
            return key in self._words
        pattern = rf"(?<!\w){re.escape(key)}(?!\w)"  # slow, and a key may come with every message
        return key in self._text and re.search(pattern, self._text) is not None

    def keep_read(self, values: Mapping[str, Any], but: Collection[str] = ()) -> dict[str, Any]:
        """What of `values` the template reads and is neither null nor an empty text, save the keys
        in `but`."""
        return {
            key: value
            for key, value in values.items()
            if value not in (None, "") and key not in but and self.is_read(key)
        }
