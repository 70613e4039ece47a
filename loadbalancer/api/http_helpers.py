"""Helpers of the routes: read request bodies, write responses, detect disconnects."""

from __future__ import annotations

import asyncio
import codecs
import io
from collections.abc import AsyncGenerator, Coroutine
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from loadbalancer.api.body_budget import body_reservation
from loadbalancer.api.content_coding import check_json, decode_body
from loadbalancer.context.request_context import CURRENT
from loadbalancer.schema.errors import ApiError, BodyTooLarge, ClientClosed
from loadbalancer.schema.inference_metadata import ProtocolError

JSON = "application/json"
#: Key in a scope's state: the code of the error response, where the response is one.
ERROR_CODE = "error_code"
Result = TypeVar("Result")

#: Encodes a structure as JSON.
encode_json = msgspec.json.Encoder().encode


def json_response(
    content: msgspec.Struct, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> Response:
    """The content as JSON. Bytes become base64."""
    return Response(encode_json(content), status, headers, media_type=JSON)


class ErrorResponse(Response):
    """An error as JSON. It notes its code in the scope, for metrics and logs."""

    def __init__(self, content: msgspec.Struct, error: ApiError) -> None:
        super().__init__(encode_json(content), error.status, error.headers, media_type=JSON)
        self.code = error.code or ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[ERROR_CODE] = self.code
        await super().__call__(scope, receive, send)


def error_response(error: ApiError, path: str) -> ErrorResponse:
    """The error in OpenAI's shape, or in that of the Open Inference Protocol on its paths."""
    context = CURRENT.get()
    if context is not None:
        context.on_error(error.code or error.type)
    return ErrorResponse(ProtocolError(error.message) if path.startswith("/v2/") else error.body, error)


async def read_json(request: Request, max_bytes: int) -> bytes:
    """Read a body that is JSON, and undo its Content-Encoding.

    Raises what `read_body` and `decode_body` raise, `TooBusy` where the memory for bodies is full,
    `UnsupportedMediaType` for a form, `InvalidRequest` unless it is UTF-8.
    """
    if request.headers.get("content-type", JSON) != JSON:
        check_json(request.headers["content-type"])
    return (await read_whole(request, max_bytes)).removeprefix(codecs.BOM_UTF8)


async def read_whole(request: Request, max_bytes: int) -> bytes:
    """Read a body and undo its Content-Encoding. Raises what `read_body` and `decode_body` raise, and `TooBusy`."""
    received = io.BytesIO()  # its value is not a copy, unlike that of a join
    async for chunk in read_body(request, max_bytes):
        received.write(chunk)
    body = received.getvalue()
    if "content-encoding" in request.headers:
        body = await decode_body(request.headers, body, max_bytes, body_reservation(request).add)
    return body


async def read_body(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it is sent, in chunks. Raises `BodyTooLarge`, at once or while it is read, and `ClientClosed`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise BodyTooLarge(max_bytes)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise BodyTooLarge(max_bytes)
            yield chunk
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


async def run_while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of the work. When the client disconnects, cancel it and raise `ClientClosed`."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it any more
    try:
        await wait_first(request, task)
        return task.result()
    finally:
        task.cancel()


async def wait_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
