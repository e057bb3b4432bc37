"""Write errors in OpenAI's format, so that OpenAI clients show their message."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lora_sft.errors import LoraSftError

MOST_MESSAGE_CHARACTERS = 1000  # a message may quote the request
KINDS = {401: "authentication_error", 500: "server_error", 503: "server_error"}


def make_error(status: int, message: str) -> JSONResponse:
    """Return an error in OpenAI's format."""
    error = {
        "message": message[:MOST_MESSAGE_CHARACTERS],
        "type": KINDS.get(status, "invalid_request_error"),
        "code": status,
    }
    return JSONResponse({"error": error}, status)


def add_error_handlers(app: FastAPI) -> None:
    """Make the app answer every error in OpenAI's format."""
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(LoraSftError, _answer_lora_sft_error)
    app.add_exception_handler(Exception, _answer_defect)


async def _answer_http_error(request: Request, error: Any) -> JSONResponse:
    # transformers gives a malformed request status 422, and OpenAI gives it status 400.
    return make_error(400 if error.status_code == 422 else error.status_code, str(error.detail))


async def _answer_lora_sft_error(request: Request, error: Any) -> JSONResponse:
    return make_error(400, f"{error.what}; {error.fix}")


async def _answer_defect(request: Request, error: Exception) -> JSONResponse:
    """Hide the details of a defect from the client. The log has the traceback."""
    return make_error(500, "the server has a defect; its log has the details")
