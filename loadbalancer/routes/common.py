"""What the routes share: the services behind them, reading bodies, writing answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from configs.schema import Settings
from loadbalancer.errands import Desk
from loadbalancer.errors import ApiError, BodyTooLarge, ClientClosed
from loadbalancer.hub import Hub
from loadbalancer.metrics import Metrics

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class Services:
    """What stands behind the routes."""

    settings: Settings
    hub: Hub
    desk: Desk
    metrics: Metrics
    #: What `/internal/*` asks for.
    token: str
    #: Unix time of the start.
    started: int


def answer(content: msgspec.Struct, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    """The content as JSON; bytes in it become base64 here, once."""
    return Response(_encoder.encode(content), status, headers, media_type="application/json")


def answer_error(error: ApiError) -> Response:
    """The error as a client is to see it."""
    return answer(error.body, error.status, error.headers)


async def read_body(request: Request, most: int) -> bytes:
    """The whole body. Raises `BodyTooLarge` as soon as it is known to exceed `most` bytes, and `ClientClosed`.

    Starlette's own limit is not used: it replaces the answer by a plain text.
    """
    declared = request.headers.get("content-length", "")
    parts: list[bytes] = []
    size = int(declared) if declared.isdecimal() else 0
    if size <= most:
        size = 0
        try:
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > most:
                    break
        except ClientDisconnect:
            raise ClientClosed("The client closed the connection before the end of the body.") from None
    if size > most:
        raise BodyTooLarge(most)
    return b"".join(parts)


async def first_of(request: Request, outcome: asyncio.Future[None]) -> None:
    """Wait for the outcome. Raises `ClientClosed` at once when the client hangs up before it."""
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({gone, outcome}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not outcome.done():
        raise ClientClosed("The client closed the connection.")


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_content(reference: str, **more: Any) -> dict[str, Any]:
    """OpenAPI: a JSON body of the schema with this name."""
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{reference}"}, **more}}


def answers(success: str, *errors: int, **more: Any) -> dict[int | str, dict[str, Any]]:
    """OpenAPI: the answers of a route. `more` are other content types of the success."""
    documented: dict[int | str, dict[str, Any]] = {
        200: {"description": "Success.", "content": json_content(success) | more}
    }
    for status in errors:
        documented[status] = {"description": HTTPStatus(status).phrase + ".", "content": json_content("ErrorBody")}
    return documented
