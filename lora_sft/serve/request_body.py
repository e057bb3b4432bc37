"""Read the body of a request: JSON of a limited size."""

from __future__ import annotations

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

MAX_BODY_BYTES = 8 * 1024**2


async def read_body(request: Request) -> bytes:
    """Return the body. It is not parsed here.

    Raises: HTTPException (413) if the body is too large. The length that the client declares is
        checked first, so that no byte of such a body is read. HTTPException (400) if the body is
        not declared as JSON. A browser then asks the server before it sends a page's request.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(400, "the body must be JSON; send Content-Type: application/json")
    _check_size(int(request.headers.get("content-length", 0)))
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            _check_size(len(body))
    except ClientDisconnect as error:
        raise HTTPException(400, "the client left before the end of the body") from error
    return bytes(body)


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES:,} bytes")
