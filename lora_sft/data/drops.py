"""Why a source row is not learned from: the reasons, each with what a person can do about it."""

from __future__ import annotations

from dataclasses import dataclass

from lora_sft.data.one_line import make_one_line

# reason -> the lever that brings such source rows back; `{longest}`, `{max_length}` are filled in.
LEVERS = {
    "malformed": "mend the rows, or choose another format or rename_columns",
    "template_refused": "change what the template refuses, or name another data.chat_template",
    "special_tokens": "clean the rows, or set data.special_tokens_in_content: allow",
    "not_prefix_stable": "name a data.chat_template whose answer begins where its prompt ends",
    "no_stop_token": "use a chat template that ends its turns (data.chat_template); where an "
    "ordinary token ends them, name it in data.stop_tokens",
    "content_lost": "name a data.chat_template that renders what the answers hold",
    "no_target": "check data.loss_on, and that rows hold an assistant turn after another message",
    "overlong": "set data.max_length to {longest} (it is {max_length}), or overlong: keep_start",
    "subsampled": "raise the data set's repeat",
    "duplicate": "set data.duplicates: keep",
    "overlap": "name training rows that are not held out",
}


@dataclass(frozen=True)
class Drop:
    """Why one source row was left out: the reason it is counted under, and what was seen."""

    reason: str
    detail: str = ""


class RowDropped(ValueError):
    """Raised where a source row turns out to be unusable; caught where they are counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.drop = Drop(reason, make_one_line(detail))
        super().__init__(self.drop.detail)


class MalformedRow(RowDropped):
    """A source row that its format cannot read. It is counted and shown, and the others go on."""

    def __init__(self, detail: str) -> None:
        super().__init__("malformed", detail)
