"""Helpers of the routes: read request bodies, write responses, detect disconnects."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from loadbalancer.access.api_keys import Caller
from loadbalancer.schema.errors import ApiError, BodyTooLarge, ClientClosed

_encoder = msgspec.json.Encoder()


def json_response(
    content: msgspec.Struct, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> Response:
    """The content as JSON. Bytes become base64."""
    return Response(_encoder.encode(content), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    return json_response(error.body, error.status, error.headers)


def caller(request: Request) -> Caller:
    """The caller that `AuthMiddleware` has set."""
    found = request.state.caller
    assert isinstance(found, Caller)
    return found


def limit_body(request: Request, max_bytes: int) -> Request:
    """The request with its body limited to `max_bytes`. Raises `BodyTooLarge`, at once or while it is read.

    Starlette's own limit is not used, because it answers with plain text.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLarge(max_bytes)
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise BodyTooLarge(max_bytes)
        return message

    return Request(request.scope, receive)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the complete body. Raises `BodyTooLarge` and `ClientClosed`."""
    try:
        return await limit_body(request, max_bytes).body()
    except ClientDisconnect:
        raise client_disconnected() from None


def client_disconnected() -> ClientClosed:
    """The error of a request whose body ends early."""
    return ClientClosed("The client closed the connection before the end of the body.")


async def wait_first(request: Request, outcome: asyncio.Future[Any]) -> None:
    """Wait for the outcome. Raises `ClientClosed` as soon as the client disconnects before it."""
    disconnected = asyncio.create_task(wait_disconnect(request.receive))
    try:
        await asyncio.wait({disconnected, outcome}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnected.cancel()
    if not outcome.done():
        raise ClientClosed("The client closed the connection.")


async def wait_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
