"""Serve one loaded model over the OpenAI API.

This file has the web app and its routes. Only `lora-sft serve` imports it. Only this file and the
files that it imports need the packages of the extra `serve`: fastapi, uvicorn and the serving
modules of transformers.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import Response

from lora_sft.serve.api_errors import add_error_handlers
from lora_sft.serve.loaded_model import LoadedModel
from lora_sft.serve.prompt_workers import PromptWorkers
from lora_sft.serve.request_body import read_body
from lora_sft.serve.request_guards import AnswerWhenStopped, LoopbackNamesOnly
from lora_sft.serve.request_handlers import (
    ChatHandler,
    OneThreadGenerator,
    ResponsesHandler,
    TextHandler,
    check_name,
)

HANDLERS = {
    "/v1/chat/completions": ChatHandler,
    "/v1/completions": TextHandler,
    "/v1/responses": ResponsesHandler,
}


def build_app(
    loaded: LoadedModel, api_key: str | None = None, *, loopback_names_only: bool = True
) -> FastAPI:
    """Return the web app. It has only these routes: chat, completions, responses, models, health.

    Args:
        loaded: The model to serve.
        api_key: The key that clients must send; None asks for no key.
        loopback_names_only: Whether to refuse a request that calls the server by another name than
            localhost.
    """
    app = FastAPI(title="lora-sft", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", _report_health)
    app.include_router(_build_routes(loaded, api_key))
    add_error_handlers(app)
    if loopback_names_only:
        app.add_middleware(LoopbackNamesOnly)
    app.add_middleware(AnswerWhenStopped)
    return app


async def _report_health() -> dict[str, str]:
    return {"status": "ok"}


def _build_routes(loaded: LoadedModel, api_key: str | None) -> APIRouter:
    generator, workers = OneThreadGenerator(), PromptWorkers()
    handlers = {path: kind(loaded, generator) for path, kind in HANDLERS.items()}
    model = {"id": loaded.name, "object": "model", "created": int(time.time())}
    model["owned_by"] = "lora-sft"

    async def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key and not hmac.compare_digest(given.encode(), api_key.encode()):
            raise HTTPException(401, "the API key is missing or wrong")

    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    async def get_model(name: str) -> dict[str, Any]:
        check_name(loaded, name)
        return model

    async def answer(request: Request) -> Response:
        handler = handlers[request.url.path]
        raw = await read_body(request)

        async def prepare_and_answer() -> Response:
            return await handler.answer(*await workers.run(handler.prepare, raw))

        return await _answer_unless_client_leaves(request, prepare_and_answer())

    router = APIRouter(dependencies=[Depends(check_key)])
    router.add_api_route("/v1/models", list_models)
    router.add_api_route("/v1/models/{name}", get_model)
    for path in handlers:
        router.add_api_route(path, answer, methods=["POST"], response_model=None)
    return router


async def _answer_unless_client_leaves(
    request: Request, work: Coroutine[Any, Any, Response]
) -> Response:
    """Return the answer. Cancel its work if the client leaves, because the next client waits.

    Call this after the body is read. The next message of the client can then only be its end.
    """
    answer, end = asyncio.create_task(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answer, end), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise HTTPException(400, "the client left before the answer")
    finally:
        answer.cancel()
        end.cancel()
