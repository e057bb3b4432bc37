"""Turn the message dictionaries of a source row into `Message` records, in either spelling.

OpenAI's spelling is `role` and `content`, ShareGPT's `from` and `value`. A message that cannot
be understood makes its row malformed; nothing is guessed or filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from lora_sft.data.drops import MalformedRow
from lora_sft.data.examples.conversation import REASONING_KEYS, Message
from lora_sft.data.examples.thinking import find_thinking
from lora_sft.data.rows.plain_json import check_is_json_value, find_non_json_value, parse_if_string

OWN_KEYS = {"role", "from", "content", "value", "tool_calls", "function_call", "train", "weight"}

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

# What a call gives its function: OpenAI's word for it, which templates read, and Llama 3's.
ARGUMENT_KEYS = ("arguments", "parameters")
# What arguments that stand beside the function may be called; servers put much else there.
KEYS_BESIDE = frozenset((*ARGUMENT_KEYS, "input", "args", "kwargs"))
# What stands beside them in a function or a flat call, and never for them.
NEVER_ARGUMENTS = frozenset(
    ("function", "name", "type", "id", "call_id", "tool_call_id", "index", "description")
)


def read_messages(value: Any, column: str, *, sharegpt: bool = False) -> tuple[Message, ...]:
    """The messages of one source row's `column`: a list, or that list as a JSON text (a CSV's way).

    Raises: MalformedRow, with the message's index from 0 in its text.
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
        extras={key: item for key, item in value.items() if key not in OWN_KEYS},
        train=_read_train(value, index),
    )
    if message.extras:
        message = _with_one_reasoning(message, index)
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


def _with_one_reasoning(message: Message, index: int) -> Message:
    """The message without the empty ones of its reasoning fields: a template may read one of these
    alone. A thought that its content holds too stays in both: which of them a template reads is
    not known here (`Dialect.keep_one_thought`).

    Raises: MalformedRow where two places differ by more than white space around them, or one
    holds no text: a template prints a list as its code.
    """
    given = {key: item for key in REASONING_KEYS if (item := message.extras.get(key)) is not None}
    odd = next((key for key, item in given.items() if not isinstance(item, str)), None)
    if odd is not None:
        kind = type(given[odd]).__name__
        raise MalformedRow(f"the {odd} of message {index} is a {kind}, not text")
    filled = {key: thought for key, thought in given.items() if thought.strip()}
    if filled or find_thinking(message):
        message = _without_extras(message, given.keys() - filled.keys())
    block = find_thinking(message) if filled else None
    thoughts = {"its content": block[0], **filled} if block and block[0].strip() else filled
    if len({thought.strip() for thought in thoughts.values()}) > 1:
        raise MalformedRow(f"message {index} reasons differently in {' and '.join(thoughts)}")
    return message


def _without_extras(message: Message, keys: Collection[str]) -> Message:
    extras = {key: item for key, item in message.extras.items() if key not in keys}
    return replace(message, extras=extras)


def settle_extras(message: Message, index: int, is_read: Callable[[str], bool]) -> Message:
    """The message without the values of its own keys that JSON has no form for: a score of NaN,
    the bytes of a picture. A template would print a placeholder for them.

    Raises: MalformedRow for one whose key the template reads (`is_read`).
    """
    extras = message.extras
    foreign = {key: found for key, item in extras.items() if (found := find_non_json_value(item))}
    if not foreign:
        return message
    for key in filter(is_read, foreign):
        check_is_json_value({key: extras[key]}, f"message {index}")
    return _without_extras(message, foreign)


def _find_calls(value: Mapping[str, Any], index: int) -> Any:
    """The calls of a message; `function_call` is OpenAI's older form of a single one."""
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
    """The call with its arguments as an object, as servers hand them to a template.

    OpenAI writes them as a JSON text. A template that prints JSON would print that text as one
    string, and the model would learn to quote its arguments. A call without any has an empty
    object: a template would print null, or nothing, and servers parse neither.

    Raises: MalformedRow where they are no object, or where they might stand elsewhere: the model
    would learn to call without them.
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
        raise MalformedRow(f'{name} differ in "arguments" and "parameters"')
    if not given:
        _check_has_none(call, function, index)
    filled = {key: item for key, item in function.items() if key not in ARGUMENT_KEYS}
    filled["arguments"] = given[0] if given else {}
    return {**call, "function": filled} if "function" in call else filled


def _check_has_none(call: Mapping[str, Any], function: Mapping[str, Any], index: int) -> None:
    """See that nothing else in a call could be the arguments that were not found in it."""
    beside = {key: item for key, item in call.items() if key in KEYS_BESIDE}
    inside = {key: item for key, item in function.items() if key not in NEVER_ARGUMENTS}
    others = {**beside, **inside}
    odd = next((key for key, item in others.items() if _could_be_arguments(item)), None)
    if odd is not None:
        detail = f'a tool call of message {index} has no arguments where they belong, but "{odd}"'
        raise MalformedRow(detail)


def _could_be_arguments(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, Mapping | list) and bool(value)


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
    calls = parse_if_string(value, f"the function call of message {index}")
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
    tools = parse_if_string(value, "tools") or []
    if isinstance(tools, list):
        tools = [parse_if_string(tool, "a tool") for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise MalformedRow("tools is not a list of objects")
    check_is_json_value(tools, "tools")
    return tuple(tools)
