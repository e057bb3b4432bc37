"""Listen on an address, and close connections whose clients are too slow."""

from __future__ import annotations

import asyncio
import socket

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lora_sft.errors import CapabilityError

SILENCE_SECONDS = 20  # between two pieces of a request
REQUEST_SECONDS = 120  # for a whole request, so that single bytes do not keep a connection open
UNREAD_SECONDS = 60  # while the client reads nothing of an answer
STOP_SECONDS = 5  # for running requests after SIGINT or SIGTERM


class LimitedConnection(H11Protocol):
    """A connection that is closed if its client is too slow.

    uvicorn (0.54) limits only the time between an answer and the next request.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        super().connection_made(transport)
        self._watch_request()

    def data_received(self, data: bytes) -> None:
        """Read a piece of a request."""
        super().data_received(data)
        self._watch_request()

    def on_response_complete(self) -> None:
        """Go on with the next request. Its first part may have arrived already."""
        super().on_response_complete()
        self._watch_request()

    def pause_writing(self) -> None:
        """Wait until the client has read enough of the answer."""
        super().pause_writing()
        self._start("unread", UNREAD_SECONDS)

    def resume_writing(self) -> None:
        """Go on with the answer."""
        super().resume_writing()
        self._cancel("unread")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for name in tuple(self._timers):
            self._cancel(name)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP.

        uvicorn would raise an error if an answer has begun, or if the app answers later.
        """
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        super().send_400_response(msg)

    def _watch_request(self) -> None:
        """Limit the time in which the client sends the rest of its request."""
        self._cancel("silence")
        if self.transport.is_closing() or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._cancel("request")
            return
        self._start("silence", SILENCE_SECONDS)
        if "request" not in self._timers:
            self._start("request", REQUEST_SECONDS)

    def _start(self, name: str, seconds: float) -> None:
        self._cancel(name)
        self._timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def _cancel(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()


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
    """Serve until SIGINT or SIGTERM. Running requests then have a few seconds to finish."""
    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listener])
