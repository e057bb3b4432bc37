"""The reasons why a source row is dropped, each with a fix that the user can apply."""

from __future__ import annotations

from dataclasses import dataclass

from lora_sft.shown_text import make_one_line

# The most bytes that a source row may have in its file, in MiB and in bytes. Its tokens need up to
# 360 times the memory.
LARGEST_ROW_MIB = 4
LARGEST_ROW_BYTES = LARGEST_ROW_MIB * 2**20

# The fix for each reason. `{longest}` and `{max_length}` are filled in before it is shown.
FIXES = {
    "malformed": "correct the rows, or choose another format or rename_columns",
    "too_large": f"shorten the rows or remove them: a row may have at most {LARGEST_ROW_MIB} MiB",
    "template_refused": "correct the rows that the template refuses, or name another "
    "data.chat_template",
    "special_tokens": "remove the special tokens from the rows, or set "
    "data.special_tokens_in_content: allow",
    "not_prefix_stable": "name a data.chat_template in which each answer follows its generation "
    "prompt directly",
    "no_stop_token": "use a chat template that ends its turns with a special token "
    "(data.chat_template); if an ordinary token ends them, name it in data.stop_tokens",
    "content_lost": "name a data.chat_template that renders everything in the answers",
    "no_target": "check data.loss_on; a row needs an assistant turn after another message",
    "overlong": "set data.max_length to {longest} (it is {max_length}), or data.overlong: "
    "keep_start",
    "subsampled": "set a larger repeat for the data set",
    "duplicate": "set data.duplicates: keep",
    "overlap": "use training rows that are not in the validation or test data",
}


@dataclass(frozen=True)
class Drop:
    """Why one source row was dropped: a key of `FIXES`, and a detail to show to the user."""

    reason: str
    detail: str = ""


TOO_LARGE = Drop("too_large", f"more than {LARGEST_ROW_BYTES:,} bytes")


class RowDropped(ValueError):
    """A source row that cannot be used. The code that counts dropped rows catches it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.drop = Drop(reason, make_one_line(detail))
        super().__init__(self.drop.detail)


class MalformedRow(RowDropped):
    """A source row that its format cannot read. It is counted, and the other rows are read."""

    def __init__(self, detail: str) -> None:
        super().__init__("malformed", detail)
