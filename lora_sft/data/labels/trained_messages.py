"""Which messages of a conversation are learned: `loss_on`, and what the source row says itself."""

from __future__ import annotations

from lora_sft.data.examples.conversation import TRAINED_ROLE, Conversation
from lora_sft.errors import DataError

SYSTEM_ROLES = ("system", "developer")


def find_trained_messages(conversation: Conversation, loss_on: str, where: str) -> list[int]:
    """The indices of the assistant turns to learn; an opening one is context, as none asked it."""
    if loss_on == "all":
        _check_no_untrained(conversation, where)
        return []
    start = conversation.completion_start
    if loss_on == "completion" and start is None:
        raise DataError(
            "loss_on: completion, but the row is a conversation without a completion",
            where,
            "set data.loss_on: assistant, last_assistant or auto",
        )
    begin = start or 0 if loss_on in ("auto", "completion") else 0
    begin = max(begin, _find_first_asked(conversation))
    answers = [
        index
        for index, message in enumerate(conversation.messages)
        if message.role == TRAINED_ROLE and index >= begin
    ]
    chosen = answers[-1:] if loss_on == "last_assistant" else answers
    return [index for index in chosen if conversation.messages[index].train is not False]


def _find_first_asked(conversation: Conversation) -> int:
    """The first message that answers another, or a completion that the source row set apart."""
    roles = (message.role for message in conversation.messages)
    unasked = (*SYSTEM_ROLES, TRAINED_ROLE)
    asked = (index for index, role in enumerate(roles) if role not in unasked)
    opening = next(asked, len(conversation.messages))
    start = conversation.completion_start
    return opening + 1 if start is None else min(opening + 1, max(start, 1))


def _check_no_untrained(conversation: Conversation, where: str) -> None:
    if any(message.train is False for message in conversation.messages):
        raise DataError(
            "loss_on: all learns every token, and a message of the row says train: false",
            where,
            "set data.loss_on: assistant, or take train and weight out of the messages",
        )
