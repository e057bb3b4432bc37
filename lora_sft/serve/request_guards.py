"""Refuse requests to a foreign name, and answer those that a stopping server cancels.

Both are ASGI apps around another app. They see a request before any route does.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lora_sft.serve.api_errors import make_error

LOOPBACK_NAME = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)


class LoopbackNamesOnly:
    """Refuses a request whose `Host` header is not a name of this computer.

    A web page can let its own domain name point to 127.0.0.1. The browser of a visitor then sends
    the page's requests to this server, and gives the page the answers. These requests have the
    page's domain name in their `Host` header.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer status 421 for a foreign name, else call the app."""
        app = self._app
        if scope["type"] == "http":
            name = Headers(scope=scope).get("host", "")
            if not LOOPBACK_NAME.fullmatch(name):
                app = make_error(421, "this server answers only to localhost; see --host")
        await app(scope, receive, send)


class AnswerWhenStopped:
    """Answers a request that the stopping server cancels, so that no traceback is logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app. Answer status 503 if it is cancelled before it has answered."""
        has_begun = False

        async def note_and_send(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, note_and_send)
        except asyncio.CancelledError:
            if scope["type"] == "http" and not has_begun:
                await make_error(503, "the server is stopping")(scope, receive, send)
