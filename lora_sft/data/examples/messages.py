"""Turn the messages of a source row into `Message` records.

Two spellings are read: `role` and `content` (OpenAI), and `from` and `value` (ShareGPT). A message
that cannot be understood makes its row malformed. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from lora_sft.data.drops import MalformedRow
from lora_sft.data.examples.conversation import REASONING_KEYS, Message
from lora_sft.data.examples.thinking import split_thinking_block
from lora_sft.data.rows.plain_json import check_is_json_value, find_non_json_value, parse_if_string

# Keys that `_read_message` reads. All others go to `Message.extras`.
HANDLED_KEYS = {
    "role",
    "from",
    "content",
    "value",
    "tool_calls",
    "function_call",
    "train",
    "weight",
}

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "claude": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "ipython": "tool",
}
SHAREGPT_CALLS = frozenset(("function_call", "tool_call"))

# The keys for the arguments of a call: OpenAI's, which templates read, and Llama 3's.
ARGUMENT_KEYS = ("arguments", "parameters")
# Keys beside the object `function` that may hold arguments in the wrong place. All other keys are
# accepted there, because servers add many.
MISPLACED_ARGUMENT_KEYS = frozenset((*ARGUMENT_KEYS, "input", "args", "kwargs"))
# Keys inside `function`, or inside a flat call, that never hold arguments.
NON_ARGUMENT_KEYS = frozenset(
    ("function", "name", "type", "id", "call_id", "tool_call_id", "index", "description")
)


def read_messages(value: Any, column: str, *, sharegpt: bool = False) -> tuple[Message, ...]:
    """Return the messages in `column` of one source row.

    Args:
        value: A list of messages, or the same list as a JSON string, as in a CSV file.
        column: The name of the column, for errors.
        sharegpt: Whether the roles are ShareGPT's.

    Raises: MalformedRow, with the index of the message from 0, if a message cannot be read.
    """
    value = parse_if_string(value, f'"{column}"')
    if not isinstance(value, list) or not value:
        raise MalformedRow(f'"{column}" is not a list of messages')
    return tuple(_read_message(message, index, sharegpt) for index, message in enumerate(value))


def _read_message(value: Any, index: int, sharegpt: bool) -> Message:
    if not isinstance(value, Mapping):
        raise MalformedRow(f"message {index} is not an object")
    role = _first_given(value, "role", "from")
    if not isinstance(role, str) or not role:
        raise MalformedRow(f"message {index} has no role")
    content = _first_given(value, "content", "value")
    tool_calls = _read_tool_calls(_find_calls(value, index), index)
    if sharegpt and role.lower() in SHAREGPT_CALLS:
        tool_calls, content = _read_sharegpt_call(content, index), None
    check_is_json_value(tool_calls, f"message {index}.tool_calls")
    message = Message(
        role=_known_role(role, index) if sharegpt else role,
        content=_read_content(content, index),
        tool_calls=tool_calls,
        extras={key: item for key, item in value.items() if key not in HANDLED_KEYS},
        train=_read_train(value, index),
    )
    if message.extras:
        message = _without_empty_reasoning(message, index)
    if message.content is None and not message.tool_calls and not message.reasoning:
        raise MalformedRow(f"message {index} has neither content nor tool calls")
    return message


def _first_given(value: Mapping[str, Any], *keys: str) -> Any:
    for key in keys:
        if (given := value.get(key)) is not None:
            return given
    return None


def _known_role(role: str, index: int) -> str:
    known = SHAREGPT_ROLES.get(role.lower())
    if known is None:
        raise MalformedRow(f'message {index} has the unknown role "{role}"')
    return known


def _read_content(value: Any, index: int) -> str | None:
    """Return the content as text, or None. A list of text parts is joined as templates do it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_read_part(part, index) for part in value)
    raise MalformedRow(
        f"the content of message {index} has the type {type(value).__name__}, not text"
    )


def _read_part(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise MalformedRow(f'the content of message {index} has a part of type "{kind}", not text')


def _without_empty_reasoning(message: Message, index: int) -> Message:
    """Return the message without its empty reasoning fields, and check the others.

    Empty fields are removed, because some templates read only one of the fields. Reasoning that is
    both in a field and in the content stays in both places: only the template decides which place
    it reads (see `Dialect.remove_repeated_reasoning`).

    Raises: MalformedRow if two places hold different reasoning, apart from white space around it,
        or if a field does not hold text. A template would print a list as Python code.
    """
    given = {key: item for key in REASONING_KEYS if (item := message.extras.get(key)) is not None}
    odd = next((key for key, item in given.items() if not isinstance(item, str)), None)
    if odd is not None:
        kind = type(given[odd]).__name__
        raise MalformedRow(f"the {odd} of message {index} has the type {kind}, not text")
    filled = {key: reasoning for key, reasoning in given.items() if reasoning.strip()}
    if filled or split_thinking_block(message):
        message = _without_extras(message, given.keys() - filled.keys())
    block = split_thinking_block(message) if filled else None
    places = {"its content": block[0], **filled} if block and block[0].strip() else filled
    if len({reasoning.strip() for reasoning in places.values()}) > 1:
        raise MalformedRow(f"message {index} holds different reasoning in {' and '.join(places)}")
    return message


def _without_extras(message: Message, keys: Collection[str]) -> Message:
    extras = {key: item for key, item in message.extras.items() if key not in keys}
    return replace(message, extras=extras)


def remove_non_json_extras(message: Message, index: int, is_read: Callable[[str], bool]) -> Message:
    """Return the message without extra keys whose values JSON cannot hold, such as NaN or bytes.

    A template would print a placeholder for such a value.

    Args:
        message: The message.
        index: Its index in the conversation, for errors.
        is_read: Returns whether the chat template reads a key.

    Raises: MalformedRow if the template reads one of these keys.
    """
    extras = message.extras
    foreign = {key: found for key, item in extras.items() if (found := find_non_json_value(item))}
    if not foreign:
        return message
    for key in filter(is_read, foreign):
        check_is_json_value({key: extras[key]}, f"message {index}")
    return _without_extras(message, foreign)


def _find_calls(value: Mapping[str, Any], index: int) -> Any:
    """Return the calls of a message. `function_call` is OpenAI's older form for a single call."""
    calls = parse_if_string(value.get("tool_calls"), f"the tool calls of message {index}")
    call = value.get("function_call")
    return [{"type": "function", "function": call}] if call and not calls else calls


def _read_tool_calls(value: Any, index: int) -> tuple[Mapping[str, Any], ...]:
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(call, Mapping) for call in value):
        raise MalformedRow(f"the tool calls of message {index} are not a list of objects")
    if not all(isinstance(find_call_name(call), str) for call in value):
        raise MalformedRow(f"a tool call of message {index} has no function name")
    return tuple(_with_arguments(call, index) for call in value)


def _with_arguments(call: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """Return the call with its arguments as an object, as servers pass them to a template.

    OpenAI writes arguments as a JSON string. A template that prints JSON would print this string
    in quotes, and the model would learn to quote its arguments. A call without arguments gets an
    empty object. Otherwise a template would print null or nothing, and servers can parse neither.

    Raises: MalformedRow if the arguments are not an object, or may be under another key. In the
        second case the model would learn to call the function without arguments.
    """
    function = call.get("function", call)
    if isinstance(function.get("arguments"), Mapping) and "parameters" not in function:
        return call
    name = f"the arguments of a tool call of message {index}"
    parsed = [parse_if_string(function.get(key), name) for key in ARGUMENT_KEYS]
    given = [arguments for arguments in parsed if arguments is not None]
    if not all(isinstance(arguments, Mapping) for arguments in given):
        raise MalformedRow(f"{name} are not an object")
    if any(arguments != given[0] for arguments in given):
        raise MalformedRow(f'{name} are different in "arguments" and "parameters"')
    if not given:
        _check_none_misplaced(call, function, index)
    filled = {key: item for key, item in function.items() if key not in ARGUMENT_KEYS}
    filled["arguments"] = given[0] if given else {}
    return {**call, "function": filled} if "function" in call else filled


def _check_none_misplaced(call: Mapping[str, Any], function: Mapping[str, Any], index: int) -> None:
    """Check that no other key of a call without arguments may hold them.

    Raises: MalformedRow if a key does.
    """
    beside = {key: item for key, item in call.items() if key in MISPLACED_ARGUMENT_KEYS}
    inside = {key: item for key, item in function.items() if key not in NON_ARGUMENT_KEYS}
    others = {**beside, **inside}
    odd = next((key for key, item in others.items() if _could_be_arguments(item)), None)
    if odd is not None:
        detail = f'a tool call of message {index} has no "arguments", but has "{odd}"'
        raise MalformedRow(detail)


def _could_be_arguments(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, Mapping | list) and bool(value)


def find_call_name(call: Mapping[str, Any]) -> Any:
    """Return the name of the function in a tool call, in OpenAI's nested form or the flat form."""
    function = call.get("function", call)
    return function.get("name") if isinstance(function, Mapping) else None


def find_call_arguments(call: Mapping[str, Any]) -> Any:
    """Return the arguments of a tool call, in OpenAI's nested form or the flat form."""
    function = call.get("function", call)
    return function.get("arguments") if isinstance(function, Mapping) else None


def _read_sharegpt_call(value: Any, index: int) -> tuple[Mapping[str, Any], ...]:
    """Return the calls in a ShareGPT message, which is JSON with `name` and `arguments`."""
    calls = parse_if_string(value, f"the function call of message {index}")
    calls = calls if isinstance(calls, list) else [calls]
    wrapped = [{"type": "function", "function": call} for call in calls]
    return _read_tool_calls(wrapped, index)


def _read_train(value: Mapping[str, Any], index: int) -> bool | None:
    """Return whether the row asks to learn the message: by `train`, or by `weight` 0 or 1."""
    given = _first_given(value, "train", "weight")
    if given is None:
        return None
    if given in (0, 1):  # also False and True, which equal 0 and 1
        return bool(given)
    raise MalformedRow(f"message {index} has a train or weight of {given!r}, not 0 or 1")


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of one source row. An empty value means that it has no tools.

    The value is a list of objects. The list, or each object, may also be a JSON string.

    Raises: MalformedRow if it is anything else.
    """
    tools = parse_if_string(value, "tools") or []
    if isinstance(tools, list):
        tools = [parse_if_string(tool, "a tool") for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise MalformedRow("tools is not a list of objects")
    check_is_json_value(tools, "tools")
    return tuple(tools)
