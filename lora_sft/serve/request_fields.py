"""The fields that the three APIs read, with their types and limits.

`read_fields` checks a body against these models. It returns the client's own values, because a
template may print a message or a tool with its keys in the client's order.

No field loads a file or a model, or replaces a template or a generation config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

MAX_TEXT_CHARACTERS = 1_000_000  # of one text
MAX_NAME_CHARACTERS = 256
MAX_MESSAGES = 1024  # also of the parts of one message
MAX_TOOLS = 128  # also of the tool calls of one message
MAX_STOP_TEXTS = 16
MAX_STOP_CHARACTERS = 256
MAX_BIASED_TOKENS = 1024
MAX_VARIABLES = 64  # of `chat_template_kwargs`
MAX_NEW_TOKENS = 2**31 - 1  # the context of the model sets the real limit
LEAST_TEMPERATURE = 0.01  # a smaller temperature makes numbers infinite
MOST_TEMPERATURE = 100
SHOWN_NAME_CHARACTERS = 60

# Fields that the handlers of transformers ignore, and the values that change nothing.
UNSUPPORTED_FIELDS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}},),
    "functions": ([],),
    "function_call": ("none",),
    "tool_choice": ("auto",),
    "modalities": (["text"],),
    "background": (False,),
    "truncation": ("disabled",),
}

# Fields that do not concern the answer: notes of the client, and its account at OpenAI.
IGNORED_FIELDS = frozenset(
    {
        "include",
        "max_tool_calls",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)


def _check_temperature(value: float) -> float:
    if 0 < value < LEAST_TEMPERATURE:
        raise PydanticCustomError("temperature", f"must be 0, or at least {LEAST_TEMPERATURE}")
    return value


def _check_arguments(text: str) -> str:
    try:
        parse_arguments(text)
    except ValueError as error:
        raise PydanticCustomError("arguments", "must be JSON") from error
    return text


def parse_arguments(text: str) -> Any:
    """Return the arguments of a tool call, which are JSON text in the OpenAI API.

    Raises: ValueError if the text is not JSON.
    """
    return from_json(text or "{}", allow_inf_nan=False)


def _find_form(value: Any) -> str | None:
    """Return the tag of a value that may be a text or a list. Tags are not shown in errors."""
    forms: dict[type, str] = {str: "<text>", list: "<list>", dict: "<object>"}
    return forms.get(type(value))


def _find_item_kind(item: Any) -> str | None:
    """Return the tag of an item of `input`, as transformers tells them apart."""
    if not isinstance(item, dict):
        return None
    kind = item.get("type")
    if kind == "reasoning":
        return "<reasoning>"
    if "role" in item:
        return "<message>"
    return f"<{kind}>" if kind in ("function_call", "function_call_output") else "<part>"


Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenCount = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)]
TextOrList = Discriminator(
    _find_form, custom_error_type="form", custom_error_message="must be a text or a list"
)


class _Part(BaseModel):
    """A part of a request that may have more fields. The template may read them."""

    model_config = ConfigDict(strict=True, extra="allow")


class ContentPart(_Part):
    """A part of a message's content. Parts without a text are refused later."""

    text: Text = ""


class ReasoningPart(_Part):
    """A part of an earlier reasoning."""

    text: Text


Content = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[list[ContentPart], Field(max_length=MAX_MESSAGES), Tag("<list>")],
    TextOrList,
]
Arguments = Annotated[
    Annotated[Text, AfterValidator(_check_arguments), Tag("<text>")]
    | Annotated[dict[str, Any], Tag("<object>")],
    Discriminator(
        _find_form, custom_error_type="form", custom_error_message="must be JSON text or an object"
    ),
]


class CalledFunction(_Part):
    """The function that a tool call names."""

    name: Name
    arguments: Arguments = ""


class ToolCall(_Part):
    """A tool call of an earlier answer. Name and arguments may also be in the call itself."""

    function: CalledFunction | None = None
    name: Name | None = None
    arguments: Arguments = ""

    @model_validator(mode="after")
    def check_has_name(self) -> ToolCall:
        """Refuse a call that names no function."""
        if self.function is None and self.name is None:
            raise PydanticCustomError("call", "must have a function with a name")
        return self


class Message(_Part):
    """A message of a conversation."""

    role: Name
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None


class ReasoningItem(_Part):
    """The reasoning of an earlier answer."""

    content: list[ReasoningPart] | None = None


class FunctionCallItem(_Part):
    """A tool call of an earlier answer."""

    call_id: Name
    name: Name
    arguments: Arguments


class FunctionOutputItem(_Part):
    """The result of a tool call."""

    call_id: Name
    output: Content


InputItem = Annotated[
    Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[Message, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")]
    | Annotated[ContentPart, Tag("<part>")],
    Discriminator(
        _find_item_kind, custom_error_type="item", custom_error_message="must be an object"
    ),
]


class Tool(_Part):
    """A tool that the model may call. The template prints it."""

    function: dict[str, Any] = Field(default_factory=dict)


class RequestFields(BaseModel):
    """The fields of every API. A field that is null counts as absent."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())

    model: Name = ""
    stream: bool = False
    temperature: Annotated[
        float, Field(ge=0, le=MOST_TEMPERATURE), AfterValidator(_check_temperature)
    ] = 0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0


class _TemplateFields(RequestFields):
    """The fields that a chat template reads."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=MAX_VARIABLES)] = Field(
        default_factory=dict
    )
    parallel_tool_calls: bool = False


class _StopFields(RequestFields):
    """The fields that end or repress parts of an answer."""

    max_tokens: TokenCount = 1
    frequency_penalty: Annotated[float, Field(gt=-1, le=2)] = 0
    stop: Annotated[
        Annotated[StopText, Tag("<text>")]
        | Annotated[list[StopText], Field(max_length=MAX_STOP_TEXTS), Tag("<list>")],
        TextOrList,
    ] = Field(default_factory=list)


class ChatFields(_TemplateFields, _StopFields):
    """The fields of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: TokenCount = 1
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASED_TOKENS)] = Field(
        default_factory=dict
    )


class CompletionFields(_StopFields):
    """The fields of `/v1/completions`."""

    prompt: Text
    suffix: Text = ""


class ResponseFields(_TemplateFields):
    """The fields of `/v1/responses`."""

    input: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), Tag("<list>")],
        TextOrList,
    ]
    instructions: Text = ""
    max_output_tokens: TokenCount = 1


def read_fields(raw: bytes, fields: type[RequestFields]) -> dict[str, Any]:
    """Return the fields of a body that are not null and have an effect.

    Raises: HTTPException (400) that names the first wrong field.
    """
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    _check_supported(given, fields)
    own = {name: value for name, value in given.items() if name in fields.model_fields}
    try:
        fields.model_validate(own)
    except ValidationError as error:
        raise HTTPException(400, _describe(error)) from error
    return own


def _check_supported(given: Mapping[str, Any], fields: type[RequestFields]) -> None:
    """Raise HTTPException (400) with the names of the fields that the server would ignore."""
    unsupported = [
        name[:SHOWN_NAME_CHARACTERS]
        for name, value in given.items()
        if name not in fields.model_fields
        and name not in IGNORED_FIELDS
        and value not in UNSUPPORTED_FIELDS.get(name, ())
    ]
    if unsupported:
        raise HTTPException(400, f"this server does not support: {', '.join(unsupported)}")


def _describe(error: ValidationError) -> str:
    """Return the first fault: the path of the field, and what it must be."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{_write_path(first['loc'])}: {first['msg']}"


def _write_path(location: Sequence[str | int]) -> str:
    """Return a path such as `messages[0].content`, without tags."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part[:SHOWN_NAME_CHARACTERS]}"
    return path.lstrip(".")
