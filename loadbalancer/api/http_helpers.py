"""What the routes share: the services behind them, reading bodies, writing answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from configs.settings import Settings
from loadbalancer.access.api_keys import Authenticator, Caller, KeyRing
from loadbalancer.generation.in_flight import RequestTracker
from loadbalancer.generation.validation import GenerationSpec, ModelCapabilities
from loadbalancer.jobs.manager import JobManager
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.proxy.upstream import UpstreamClient
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.schema.errors import ApiError, BodyTooLarge, ClientClosed
from loadbalancer.storage.database import Database
from wire.messages import LORA_NAME

_encoder = msgspec.json.Encoder()
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Requests with the same key are one request: all get its answer, and another one is refused.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"},
}


@dataclass(frozen=True)
class Services:
    """What stands behind the routes."""

    settings: Settings
    scheduler: SchedulerService
    tracker: RequestTracker
    metrics: Metrics
    jobs: JobManager
    database: Database
    authenticator: Authenticator
    control: ControlPlane
    upstream: UpstreamClient
    #: The API keys in force; None while there are none and nobody needs one.
    ring: Callable[[], KeyRing | None]
    #: Unix time of the start.
    started: int


def json_response(
    content: msgspec.Struct, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None
) -> Response:
    """The content as JSON; bytes in it become base64 here, once."""
    return Response(_encoder.encode(content), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """The error as a client is to see it."""
    return json_response(error.body, error.status, error.headers)


def caller(request: Request) -> Caller:
    """Who sent the request, as the gate found."""
    found = request.state.caller
    assert isinstance(found, Caller)
    return found


def with_owner(job: GenerationSpec, request: Request) -> GenerationSpec:
    """The job in its caller's name."""
    sender = caller(request)
    return replace(job, owner=sender.owner, weight=sender.weight)


def limit_body(request: Request, most: int) -> Request:
    """The request with a body of which no more is read than `most` bytes. Raises `BodyTooLarge`, now or in reading.

    Starlette's own limit is not used: it replaces the answer by a plain text.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise BodyTooLarge(most)
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > most:
            raise BodyTooLarge(most)
        return message

    return Request(request.scope, receive)


async def read_body(request: Request, most: int) -> bytes:
    """The whole body. Raises `BodyTooLarge` as soon as it is known to exceed `most` bytes, and `ClientClosed`."""
    try:
        return await limit_body(request, most).body()
    except ClientDisconnect:
        raise client_disconnected() from None


def client_disconnected() -> ClientClosed:
    """What becomes of a request whose body does not come to its end."""
    return ClientClosed("The client closed the connection before the end of the body.")


async def model_capabilities(services: Services, model: str, *, loras: bool) -> ModelCapabilities:
    """What is known of the model; its adapters are looked up where the request names any (`loras`)."""
    folder = services.settings.models[model].loras if loras else None
    return ModelCapabilities(
        services.scheduler.engine_info(model), await asyncio.to_thread(list_loras, folder) if folder else ()
    )


def list_loras(folder: Path) -> list[str]:
    """Names of the LoRA adapters in the folder, sorted. A folder that cannot be read holds none."""
    try:
        files = [path.stem for path in folder.iterdir() if path.suffix == ".safetensors" and path.is_file()]
    except OSError:
        return []
    return sorted(name for name in files if LORA_NAME.fullmatch(name))


async def wait_first(request: Request, outcome: asyncio.Future[Any]) -> None:
    """Wait for the outcome. Raises `ClientClosed` at once when the client hangs up before it."""
    gone = asyncio.create_task(wait_disconnect(request.receive))
    try:
        await asyncio.wait({gone, outcome}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
    if not outcome.done():
        raise ClientClosed("The client closed the connection.")


async def wait_disconnect(receive: Receive) -> None:
    """Returns when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


def request_body(reference: str, media_type: str = "application/json") -> dict[str, Any]:
    """OpenAPI: a request body of the schema with this name, and the header that says whether it came before."""
    return {
        "requestBody": {"required": True, "content": content_schema(reference, media_type)},
        "parameters": [_IDEMPOTENCY_KEY],
    }


def content_schema(reference: str, media_type: str = "application/json") -> dict[str, Any]:
    """OpenAPI: content of the schema with this name."""
    return {media_type: {"schema": schema_ref(reference)}}


def schema_ref(name: str) -> dict[str, str]:
    """OpenAPI: the schema with this name."""
    return {"$ref": f"#/components/schemas/{name}"}


def responses(success: str, *errors: int, **more: Any) -> dict[int | str, dict[str, Any]]:
    """OpenAPI: the answers of a route. `more` are other content types of the success."""
    documented: dict[int | str, dict[str, Any]] = {
        200: {"description": "Success.", "content": content_schema(success) | more}
    }
    return documented | {status: error_schema(status) for status in errors}


def event_stream_schema(*names: str) -> dict[str, Any]:
    """OpenAPI: content that is a stream of the events with these names. The schema is that of each."""
    told = {"oneOf": [schema_ref(name) for name in names]}
    properties = {
        "event": {"type": "string", "description": "The `type` of what `data` holds."},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": told},
    }
    schema = {"type": "object", "properties": properties, "required": ["event", "data"]}
    return {"text/event-stream": {"schema": schema}}


def error_schema(status: int) -> dict[str, Any]:
    """OpenAPI: an answer that is an error."""
    return {"description": HTTPStatus(status).phrase + ".", "content": content_schema("ErrorBody")}
