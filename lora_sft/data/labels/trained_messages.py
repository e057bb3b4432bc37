"""Choose the messages of a conversation that are learned.

`data.loss_on` chooses them. A message of the source row may exclude itself with `train: false`.
"""

from __future__ import annotations

from lora_sft.data.examples.conversation import TRAINED_ROLE, Conversation
from lora_sft.errors import DataError

SYSTEM_ROLES = ("system", "developer")


def find_trained_messages(conversation: Conversation, loss_on: str, where: str) -> list[int]:
    """Return the indices of the assistant messages to learn; for `all` the list is empty.

    An assistant message that opens the conversation is context: no message asked for it.

    Raises: DataError if `loss_on` does not suit the conversation.
    """
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
    begin = max(begin, _find_first_answer(conversation))
    answers = [
        index
        for index, message in enumerate(conversation.messages)
        if message.role == TRAINED_ROLE and index >= begin
    ]
    chosen = answers[-1:] if loss_on == "last_assistant" else answers
    return [index for index in chosen if conversation.messages[index].train is not False]


def _find_first_answer(conversation: Conversation) -> int:
    """Return the index from which messages may be learned.

    This is the message after the first user or tool message, or the start of the source row's
    completion.
    """
    roles = (message.role for message in conversation.messages)
    not_asking = (*SYSTEM_ROLES, TRAINED_ROLE)
    questions = (index for index, role in enumerate(roles) if role not in not_asking)
    first_question = next(questions, len(conversation.messages))
    start = conversation.completion_start
    return first_question + 1 if start is None else min(first_question + 1, max(start, 1))


def _check_no_untrained(conversation: Conversation, where: str) -> None:
    if any(message.train is False for message in conversation.messages):
        raise DataError(
            "loss_on: all learns every token, but a message of the row has train: false",
            where,
            "set data.loss_on: assistant, or remove train and weight from the messages",
        )
