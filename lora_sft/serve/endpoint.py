"""An OpenAI-compatible endpoint over one loaded model, by transformers' own server.

`transformers serve` (5.23) cannot be started for this as it is: it serves models of the hub's
cache, so its `/v1/models` fails in an empty home folder and never names a local folder, it loads
whatever model a request names, and it passes over what it does not support without a word. So its
request handlers are used (prompts, streaming, tool calls, the three APIs) behind an app that knows
one model by a short name, holds a key where one is set, and refuses what would be ignored.

The only file that knows fastapi, uvicorn and transformers' serving modules, none of which is
imported unless `lora-sft serve` runs.
"""

from __future__ import annotations

import copy
import hmac
import json
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jinja2
import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState

from lora_sft.errors import CapabilityError, LoraSftError
from lora_sft.serve.speaker import Speaker

# What the handlers would take and not act on, with the values that ask for nothing.
IGNORED_FIELDS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("none",),
    "tool_choice": ("auto",),
    "reasoning_effort": (),
    "audio": (),
    "prediction": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "previous_response_id": (),
    "background": (False,),
}

# What a request that the chat template did not expect makes it, or its reader, raise.
REQUEST_FAULTS = (jinja2.TemplateError, LookupError, TypeError, ValueError)


class OneModel(ModelManager):
    """The model that is loaded already, under its name; no request loads another."""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__()
        self.speaker = speaker
        self.force_model = speaker.name

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """A name is a name here; upstream appends a revision."""
        return model_id

    def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The one model and its tokenizer, whatever is asked: `_resolve_model` checked the name."""
        return self.speaker.model, self.speaker.tokenizer


class WithinContext(GenerateManager):
    """Generation that never runs past the model's context."""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__()
        self._speaker = speaker

    def generate_streaming(self, *arguments: Any, **named: Any) -> Any:
        """As upstream (model, tokenizer, inputs, generation config), within the context."""
        self._limit(*arguments[2:4])
        return super().generate_streaming(*arguments, **named)

    async def generate_non_streaming(self, *arguments: Any, **named: Any) -> Any:
        """As upstream, within the context."""
        self._limit(*arguments[2:4])
        return await super().generate_non_streaming(*arguments, **named)

    def _limit(self, inputs: Any, gen_config: Any) -> None:
        """Raises: ModelError where the prompt leaves no room; the client is told, as a 400."""
        room = self._speaker.count_room(inputs["input_ids"].shape[-1])
        if room is not None:
            gen_config.max_new_tokens = min(gen_config.max_new_tokens, room)


class OneGeneration(GenerationState):
    """One generation at a time, on one thread, within the model's context."""

    def __init__(self, speaker: Speaker) -> None:
        super().__init__()
        self._manager = WithinContext(speaker)

    def get_manager(self, model_id: str, use_cb: bool = False) -> GenerateManager:
        """The manager of the one model."""
        return self._manager


class _Strict:
    """What a handler of transformers does, without passing anything over."""

    def _validate_request(self, body: dict[str, Any]) -> None:
        check_asks_for_nothing_ignored(body)
        super()._validate_request(body)  # type: ignore[misc]

    def _build_generation_config(self, body: dict[str, Any], *more: Any, **named: Any) -> Any:
        """Upstream leaves greedy decoding on when a request asks for a temperature."""
        config = super()._build_generation_config(body, *more, **named)  # type: ignore[misc]
        if body.get("temperature") or (body.get("top_p") and body.get("temperature") is None):
            config.do_sample = True
        return config

    @staticmethod
    def get_processor_inputs_from_messages(
        messages: list[dict[str, Any]], modality: Any
    ) -> list[dict[str, Any]]:
        """Messages as the template was trained on them; upstream keeps role and content only."""
        return [make_template_message(message) for message in messages]


class StrictChat(_Strict, ChatCompletionHandler):
    """`/v1/chat/completions`."""


class StrictCompletion(_Strict, CompletionHandler):
    """`/v1/completions`."""


class StrictResponse(_Strict, ResponseHandler):
    """`/v1/responses`."""


def check_asks_for_nothing_ignored(body: Mapping[str, Any]) -> None:
    """Raises: HTTPException (400) naming the fields that would not be acted on."""
    ignored = [
        name
        for name, harmless in IGNORED_FIELDS.items()
        if body.get(name) is not None and body[name] not in harmless
    ]
    if ignored:
        raise HTTPException(400, f"not supported by this server: {', '.join(ignored)}")


def make_template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAI message as chat templates read it: text for content, arguments as mappings.

    Raises: HTTPException (400) for a part that is no text.
    """
    plain = copy.deepcopy(dict(message))
    content = plain.get("content")
    if isinstance(content, list):
        if any("text" not in part for part in content):
            raise HTTPException(400, "only text can be read by this model")
        plain["content"] = "\n".join(part["text"] for part in content)
    plain["content"] = plain.get("content") or ""
    for call in plain.get("tool_calls") or []:
        function = call.get("function") or call
        if isinstance(function.get("arguments"), str):
            function["arguments"] = json.loads(function["arguments"] or "{}")
    return plain


def build_app(speaker: Speaker, api_key: str | None = None) -> FastAPI:
    """The app: chat, completions, responses, models and health; nothing else is reachable."""
    app = FastAPI(title="lora-sft", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", lambda: {"status": "ok"})
    app.include_router(_build_routes(speaker, api_key))
    app.add_exception_handler(StarletteHTTPException, _say_http_error)
    app.add_exception_handler(LoraSftError, _say_our_error)
    return app


def _build_routes(speaker: Speaker, api_key: str | None) -> APIRouter:
    manager, state = OneModel(speaker), OneGeneration(speaker)
    handlers: dict[str, Any] = {
        "/v1/chat/completions": StrictChat(manager, state),
        "/v1/completions": StrictCompletion(manager, state),
        "/v1/responses": StrictResponse(manager, state),
    }
    model = {"id": speaker.name, "object": "model", "created": int(time.time())}
    model["owned_by"] = "lora-sft"

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise HTTPException(401, "the API key is missing or wrong")

    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    def get_model(name: str) -> dict[str, Any]:
        check_name(speaker, name)
        return model

    async def answer(request: Request, body: dict[str, Any] = Body(...)) -> Any:  # noqa: B008
        check_name(speaker, body.get("model"))
        body.setdefault("stream", False)  # upstream streams responses unless told otherwise
        path = request.url.path
        if path != "/v1/completions" and not speaker.tokenizer.chat_template:
            raise HTTPException(400, "the model has no chat template; use /v1/completions")
        try:
            return await handlers[path].handle_request(body, str(uuid.uuid4()))
        except LoraSftError:
            raise
        except REQUEST_FAULTS as error:
            message = f"the request cannot be rendered: {type(error).__name__}: {error}"
            raise HTTPException(400, message) from error

    router = APIRouter(dependencies=[Depends(check_key)])
    router.add_api_route("/v1/models", list_models)
    router.add_api_route("/v1/models/{name}", get_model)
    for path in handlers:
        router.add_api_route(path, answer, methods=["POST"], response_model=None)
    return router


def check_name(speaker: Speaker, name: str | None) -> None:
    """Raises: HTTPException (404) for another model than the one served."""
    if name not in (None, speaker.name):
        raise HTTPException(404, f"no model {name!r} here; this server has {speaker.name!r}")


def _say_http_error(request: Request, error: Any) -> JSONResponse:
    return _make_error(error.status_code, str(error.detail))


def _say_our_error(request: Request, error: Any) -> JSONResponse:
    return _make_error(400, f"{error.what}; {error.fix}")


def _make_error(status: int, message: str) -> JSONResponse:
    """An error in OpenAI's shape, which every client of it shows to the person."""
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


def open_listener(host: str, port: int) -> socket.socket:
    """The bound socket: before a model is loaded for minutes, it is known that the port is free.

    Raises: CapabilityError where it cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise CapabilityError(
            f"cannot listen there: {error.strerror}",
            f"--host {host} --port {port}",
            "give another --port (0 takes a free one)",
        ) from error
    return listener


def run_endpoint(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, which let the requests under way come to their end."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])
