"""Turn the message dictionaries of a row into `Message` records, in either spelling.

OpenAI's spelling is `role` and `content`, ShareGPT's `from` and `value`. A message that cannot
be understood makes its row malformed; nothing is guessed or filled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lora_sft.data.conversation import REASONING_KEYS, Message
from lora_sft.data.drops import RowDropped
from lora_sft.data.one_line import make_one_line
from lora_sft.data.plain_json import parse_json

OWN_KEYS = {"role", "from", "content", "value", "tool_calls", "function_call", "train", "weight"}

# What a call may hold beside what it gives its function.
KEYS_BESIDE_ARGUMENTS = {"name", "type", "id", "index", "description", "strict", "arguments"}
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


class MalformedRow(RowDropped):
    """A row that its format cannot read. It is counted and shown, and the others go on."""

    def __init__(self, detail: str) -> None:
        super().__init__("malformed", detail)


def read_messages(value: Any, column: str, *, sharegpt: bool = False) -> tuple[Message, ...]:
    """The messages of one row's `column`: a list, or that list as a JSON text (a CSV's way).

    Raises: MalformedRow, with the message's index from 0 in its text.
    """
    value = parse_if_text(value, f'"{column}"')
    if not isinstance(value, list) or not value:
        raise MalformedRow(f'"{column}" is not a list of messages')
    return tuple(_read_message(message, index, sharegpt) for index, message in enumerate(value))


def _read_message(value: Any, index: int, sharegpt: bool) -> Message:
    if not isinstance(value, Mapping):
        raise MalformedRow(f"message {index} is not an object")
    role = _first_given(value, "role", "from")
    if not isinstance(role, str) or not role:
        raise MalformedRow(f"message {index} has no role")
    written_content = _first_given(value, "content", "value")
    tool_calls = _read_tool_calls(_find_calls(value), index)
    if sharegpt and role.lower() in SHAREGPT_CALLS:
        tool_calls, written_content = _read_sharegpt_call(written_content, index), None
    extras = {key: item for key, item in value.items() if key not in OWN_KEYS}
    _check_reasoning(extras, index)
    check_is_plain(tool_calls, f"message {index}.tool_calls")
    check_is_plain(extras, f"message {index}")
    message = Message(
        role=_known_role(role, index) if sharegpt else role,
        content=_read_content(written_content, index),
        tool_calls=tool_calls,
        extras=extras,
        train=_read_train(value, index),
    )
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
    """Text, nothing, or a list of text parts, which are joined as templates join them."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_read_part(part, index) for part in value)
    raise MalformedRow(f"the content of message {index} is a {type(value).__name__}, not text")


def _read_part(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise MalformedRow(f'the content of message {index} has a part of type "{kind}", not text')


def _check_reasoning(extras: Mapping[str, Any], index: int) -> None:
    """Reasoning is one text: a template prints a list as its code, and reads one key of several."""
    given = {key: extras[key] for key in REASONING_KEYS if extras.get(key) is not None}
    odd = next((key for key, value in given.items() if not isinstance(value, str)), None)
    if odd is not None:
        kind = type(given[odd]).__name__
        raise MalformedRow(f"the {odd} of message {index} is a {kind}, not text")
    if len({value for value in given.values() if value}) > 1:
        detail = f"message {index} reasons differently in {' and '.join(given)}"
        raise MalformedRow(detail)


def _find_calls(value: Mapping[str, Any]) -> Any:
    """The calls of a message; `function_call` is OpenAI's older form of a single one."""
    call = value.get("function_call")
    if value.get("tool_calls") or not call:
        return value.get("tool_calls")
    return [{"type": "function", "function": call}]


def _read_tool_calls(value: Any, index: int) -> tuple[Mapping[str, Any], ...]:
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(call, Mapping) for call in value):
        raise MalformedRow(f"the tool calls of message {index} are not a list of objects")
    if not all(isinstance(find_call_name(call), str) for call in value):
        raise MalformedRow(f"a tool call of message {index} has no function name")
    return tuple(_with_arguments(call, index) for call in value)


def _with_arguments(call: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """The call with its arguments as an object, as servers hand them to a template.

    OpenAI writes them as a JSON text. A template that prints JSON would print that text as one
    string, and the model would learn to quote its arguments. Llama 3 calls them `parameters`. A
    call without any has an empty object: a template would print null, or nothing, and servers
    parse neither.
    """
    function = call.get("function", call)
    arguments = function.get("arguments")
    if isinstance(arguments, Mapping):
        return call
    name = f"the arguments of a tool call of message {index}"
    if arguments is None:
        function = dict(function)
        arguments = function.pop("parameters", None)
        if unknown := function.keys() - KEYS_BESIDE_ARGUMENTS:
            raise MalformedRow(f"{name} are not there, but {', '.join(sorted(unknown))}")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    parsed = parse_if_text(arguments, name)
    if not isinstance(parsed, dict):
        raise MalformedRow(f"{name} are not an object")
    filled = {**function, "arguments": parsed}
    return {**call, "function": filled} if "function" in call else filled


def find_call_name(call: Mapping[str, Any]) -> Any:
    """The name of the function that a tool call calls, in OpenAI's nested form or the flat one."""
    function = call.get("function", call)
    return function.get("name") if isinstance(function, Mapping) else None


def find_call_arguments(call: Mapping[str, Any]) -> Any:
    """What a tool call gives its function, in OpenAI's nested form or the flat one."""
    function = call.get("function", call)
    return function.get("arguments") if isinstance(function, Mapping) else None


def _read_sharegpt_call(value: Any, index: int) -> tuple[Mapping[str, Any], ...]:
    """ShareGPT writes a call as a message of its own: JSON with `name` and `arguments`."""
    calls = parse_if_text(value, f"the function call of message {index}")
    calls = calls if isinstance(calls, list) else [calls]
    wrapped = [{"type": "function", "function": call} for call in calls]
    return _read_tool_calls(wrapped, index)


def _read_train(value: Mapping[str, Any], index: int) -> bool | None:
    """`train: true|false`, or its other spelling `weight: 0|1`."""
    wish = _first_given(value, "train", "weight")
    if wish is None:
        return None
    if wish in (0, 1):  # False and True among them
        return bool(wish)
    raise MalformedRow(f"message {index} has a train or weight of {wish!r}, not 0 or 1")


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools column: a list of objects, it or each of them as a JSON text; empty means none."""
    tools = parse_if_text(value, "tools") if value else []
    if isinstance(tools, list):
        tools = [parse_if_text(tool, "a tool") for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise MalformedRow("tools is not a list of objects")
    check_is_plain(tools, "tools")
    return tuple(tools)


def check_is_plain(value: Any, name: str) -> None:
    """See that `value` holds only what JSON has a form for, at any depth.

    A template writes all else as a placeholder (bytes of a table as `<bytes>`, for one), and
    infinity as a word that no JSON reader takes.

    Raises: MalformedRow, with the place in `name`.
    """
    found = _find_foreign(value)
    if found is not None:
        raise MalformedRow(make_one_line(f"{name}{found}, which is no JSON value"))


def _find_foreign(value: Any) -> str | None:
    """The first value that is not JSON's: the way down to it, and what it is."""
    if value is None or isinstance(value, str | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f" is {value}"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if (found := _find_foreign(item)) is not None:
                return f".{key}{found}"
        return None
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if (found := _find_foreign(item)) is not None:
                return f"[{index}]{found}"
        return None
    return f" is of type {type(value).__name__}"


def parse_if_text(value: Any, name: str) -> Any:
    """What a text holds as JSON, and anything else as it is.

    Raises: MalformedRow, with `name` in its text.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise MalformedRow(f"{name} is not valid JSON: {error}") from error
