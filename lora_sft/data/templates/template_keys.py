"""Find which keys of its input a chat template can read: those whose names are in its text.

A template that prints whole messages does not name their keys, and a key that is not named counts
as not read. Two rows that differ only in such a key then count as the same example. The mistake is
on the safe side: it keeps a test row out of the training rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

WORD = re.compile(r"\w+")


class TemplateKeys:
    """The words in one tokenizer's chat template, or in all its named templates."""

    def __init__(self, template: str | Mapping[str, str] | None) -> None:
        texts = template.values() if isinstance(template, Mapping) else [template or ""]
        self._text = "\n".join(texts)
        self._words = frozenset(WORD.findall(self._text))

    def is_read(self, key: str) -> bool:
        """Return whether `key` is a whole word in the template."""
        if WORD.fullmatch(key):
            return key in self._words
        pattern = rf"(?<!\w){re.escape(key)}(?!\w)"
        # The search is slow and may run for every message, so a plain look-up comes first.
        return key in self._text and re.search(pattern, self._text) is not None

    def select_read(
        self, values: Mapping[str, Any], exclude: Collection[str] = ()
    ) -> dict[str, Any]:
        """Return the values that the template reads, except nulls, empty texts and `exclude`."""
        return {
            key: value
            for key, value in values.items()
            if value not in (None, "") and key not in exclude and self.is_read(key)
        }
