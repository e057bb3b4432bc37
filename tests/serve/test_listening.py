"""A connection whose client does not read its answer."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="THE SERVER IS NOT TESTED: install the extra `serve`")

from lora_sft.serve import listening

PIECE = b"x" * 2**16


async def serve_until_left(read: bool) -> list[str]:
    """Serve an endless answer to one client, and return what happened in order.

    Args:
        read: Whether the client reads. If so, it leaves after two seconds.
    """
    import uvicorn

    happened: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def stream() -> None:
            while True:
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                await asyncio.sleep(0.01)

        writing = asyncio.create_task(stream())
        await receive()  # the request
        await receive()  # the end of the connection
        happened.append("disconnected")
        writing.cancel()

    listener = listening.open_listener("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
    listener.listen()
    config = uvicorn.Config(
        app, http=listening.LimitedConnection, lifespan="off", log_level="error"
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname()[:2], limit=2**16)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    end = time.monotonic() + (2 if read else 8)
    while time.monotonic() < end and not happened:
        await (reader.read(2**16) if read else asyncio.sleep(0.1))
    happened.append("client left")
    writer.close()
    server.should_exit = True
    await running
    return happened


def test_a_client_that_reads_nothing_is_disconnected(monkeypatch):
    monkeypatch.setattr(listening, "UNREAD_SECONDS", 0.5)
    assert asyncio.run(serve_until_left(read=False))[0] == "disconnected"


def test_a_client_that_reads_is_not_disconnected(monkeypatch):
    monkeypatch.setattr(listening, "UNREAD_SECONDS", 0.5)
    assert asyncio.run(serve_until_left(read=True))[0] == "client left"
