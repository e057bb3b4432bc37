"""Serve one loaded model over the OpenAI API, with the request handlers of `transformers serve`.

`transformers serve` (5.23) itself does not fit, for three reasons. It lists the models of the hub's
cache: `/v1/models` fails in an empty home folder and never lists a local folder. It loads any model
that a request names. It silently ignores fields that it does not support.

So this file takes only its request handlers (prompts, streaming, tool calls, the three APIs). The
app around them serves one model under a short name, checks the API key if there is one, and
refuses a request with an unsupported field.

Only this file imports fastapi, uvicorn and the serving modules of transformers, and only
`lora-sft serve` imports this file.
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
from lora_sft.serve.loaded_model import LoadedModel

# Request fields that the handlers accept and ignore, and the values that change nothing.
UNSUPPORTED_FIELDS: dict[str, tuple[Any, ...]] = {
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

# Errors of the chat template and of the handlers if a request has an unexpected form.
REQUEST_ERRORS = (jinja2.TemplateError, LookupError, TypeError, ValueError)


class SingleModelManager(ModelManager):
    """Returns the model that is already loaded. No request can load another model."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.loaded = loaded
        self.force_model = loaded.name

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """Return the name unchanged. transformers would append a revision."""
        return model_id

    def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Return the model and its tokenizer. `check_name` has checked the requested name."""
        return self.loaded.model, self.loaded.tokenizer


class ContextLimitedManager(GenerateManager):
    """Generates answers that never exceed the model's context."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self._loaded = loaded

    def generate_streaming(self, *arguments: Any, **named: Any) -> Any:
        """Generate a stream within the context.

        The positional arguments are those of transformers: model, tokenizer, inputs, config.
        """
        self._limit_new_tokens(*arguments[2:4])
        return super().generate_streaming(*arguments, **named)

    async def generate_non_streaming(self, *arguments: Any, **named: Any) -> Any:
        """Generate a whole answer within the context. Arguments as in `generate_streaming`."""
        self._limit_new_tokens(*arguments[2:4])
        return await super().generate_non_streaming(*arguments, **named)

    def _limit_new_tokens(self, inputs: Any, gen_config: Any) -> None:
        """Lower `max_new_tokens` to the tokens of the context that remain after the prompt.

        Raises: ModelError if no token remains. The client receives it as status 400.
        """
        room = self._loaded.count_free_tokens(inputs["input_ids"].shape[-1])
        if room is not None:
            gen_config.max_new_tokens = min(gen_config.max_new_tokens, room)


class SingleManagerState(GenerationState):
    """Generates for one request at a time, on one thread, with one `ContextLimitedManager`."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self._manager = ContextLimitedManager(loaded)

    def get_manager(self, model_id: str, use_cb: bool = False) -> GenerateManager:
        """Return the manager of the served model."""
        return self._manager


class _StrictHandler:
    """Changes a request handler of transformers so that it ignores nothing in a request."""

    def _validate_request(self, body: dict[str, Any]) -> None:
        check_fields_are_supported(body)
        super()._validate_request(body)  # type: ignore[misc]

    def _build_generation_config(self, body: dict[str, Any], *more: Any, **named: Any) -> Any:
        """Switch sampling on if the request sets a temperature or top_p. transformers does not."""
        config = super()._build_generation_config(body, *more, **named)  # type: ignore[misc]
        if body.get("temperature") or (body.get("top_p") and body.get("temperature") is None):
            config.do_sample = True
        return config

    @staticmethod
    def get_processor_inputs_from_messages(
        messages: list[dict[str, Any]], modality: Any
    ) -> list[dict[str, Any]]:
        """Return the messages for the chat template. transformers keeps only role and content."""
        return [make_template_message(message) for message in messages]


class StrictChatHandler(_StrictHandler, ChatCompletionHandler):
    """Answers requests to `/v1/chat/completions`."""


class StrictCompletionHandler(_StrictHandler, CompletionHandler):
    """Answers requests to `/v1/completions`."""


class StrictResponseHandler(_StrictHandler, ResponseHandler):
    """Answers requests to `/v1/responses`."""


def check_fields_are_supported(body: Mapping[str, Any]) -> None:
    """Raise HTTPException (400) with the names of the fields that the server would ignore."""
    unsupported = [
        name
        for name, harmless in UNSUPPORTED_FIELDS.items()
        if body.get(name) is not None and body[name] not in harmless
    ]
    if unsupported:
        raise HTTPException(400, f"this server does not support: {', '.join(unsupported)}")


def make_template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return an OpenAI message in the form that chat templates read.

    The content becomes one text. The arguments of a tool call, which are JSON text in the OpenAI
    API, become a mapping.

    Raises: HTTPException (400) if a part of the content is not text.
    """
    plain = copy.deepcopy(dict(message))
    content = plain.get("content")
    if isinstance(content, list):
        if any("text" not in part for part in content):
            raise HTTPException(400, "this model reads only text")
        plain["content"] = "\n".join(part["text"] for part in content)
    plain["content"] = plain.get("content") or ""
    for call in plain.get("tool_calls") or []:
        function = call.get("function") or call
        if isinstance(function.get("arguments"), str):
            function["arguments"] = json.loads(function["arguments"] or "{}")
    return plain


def build_app(loaded: LoadedModel, api_key: str | None = None) -> FastAPI:
    """Return the web app. It has only these routes: chat, completions, responses, models, health.

    Args:
        loaded: The model to serve.
        api_key: The key that clients must send; None asks for no key.
    """
    app = FastAPI(title="lora-sft", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", lambda: {"status": "ok"})
    app.include_router(_build_routes(loaded, api_key))
    app.add_exception_handler(StarletteHTTPException, _answer_http_error)
    app.add_exception_handler(LoraSftError, _answer_lora_sft_error)
    return app


def _build_routes(loaded: LoadedModel, api_key: str | None) -> APIRouter:
    manager, state = SingleModelManager(loaded), SingleManagerState(loaded)
    handlers: dict[str, Any] = {
        "/v1/chat/completions": StrictChatHandler(manager, state),
        "/v1/completions": StrictCompletionHandler(manager, state),
        "/v1/responses": StrictResponseHandler(manager, state),
    }
    model = {"id": loaded.name, "object": "model", "created": int(time.time())}
    model["owned_by"] = "lora-sft"

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise HTTPException(401, "the API key is missing or wrong")

    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    def get_model(name: str) -> dict[str, Any]:
        check_name(loaded, name)
        return model

    async def answer(request: Request, body: dict[str, Any] = Body(...)) -> Any:  # noqa: B008
        check_name(loaded, body.get("model"))
        body.setdefault("stream", False)  # transformers streams `/v1/responses` by default
        path = request.url.path
        if path != "/v1/completions" and not loaded.tokenizer.chat_template:
            raise HTTPException(400, "the model has no chat template; use /v1/completions")
        try:
            return await handlers[path].handle_request(body, str(uuid.uuid4()))
        except LoraSftError:
            raise
        except REQUEST_ERRORS as error:
            message = f"the request cannot be processed: {type(error).__name__}: {error}"
            raise HTTPException(400, message) from error

    router = APIRouter(dependencies=[Depends(check_key)])
    router.add_api_route("/v1/models", list_models)
    router.add_api_route("/v1/models/{name}", get_model)
    for path in handlers:
        router.add_api_route(path, answer, methods=["POST"], response_model=None)
    return router


def check_name(loaded: LoadedModel, name: str | None) -> None:
    """Raise HTTPException (404) if a request names a model that is not served here."""
    if name not in (None, loaded.name):
        raise HTTPException(404, f"there is no model {name!r}; this server has {loaded.name!r}")


def _answer_http_error(request: Request, error: Any) -> JSONResponse:
    return _make_error(error.status_code, str(error.detail))


def _answer_lora_sft_error(request: Request, error: Any) -> JSONResponse:
    return _make_error(400, f"{error.what}; {error.fix}")


def _make_error(status: int, message: str) -> JSONResponse:
    """Return an error in OpenAI's format, so that OpenAI clients show its message."""
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address.

    Call this before the model is loaded. A port in use is then reported at once, and not after
    minutes of loading.

    Raises: CapabilityError if the address cannot be used.
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
            f"cannot listen on this address: {error.strerror}",
            f"--host {host} --port {port}",
            "give another --port (0 takes any free port)",
        ) from error
    return listener


def run_endpoint(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM. Running requests then have 5 seconds to finish."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listener])
