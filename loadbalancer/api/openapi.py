"""The OpenAPI document: building blocks for the routes' declarations, and the schemas of all bodies."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from pydantic.json_schema import models_json_schema

from loadbalancer.access.api_keys import Authenticator
from loadbalancer.jobs.requests import JobRequest
from loadbalancer.jobs.views import JobList, JobView
from loadbalancer.schema.call_events import PredictionChunk, PredictionCompleted
from loadbalancer.schema.inference import InferInput, InferOutput, InferRequest
from loadbalancer.schema.inference_metadata import (
    InferAnswer,
    ModelMetadata,
    ModelReady,
    ProtocolError,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from loadbalancer.schema.predictions import PredictionsAnswer, PredictionsRequest
from loadbalancer.schema.requests import EditRequest, ImageRequest, JsonEditRequest, PredictRequest
from loadbalancer.schema.responses import Health, ImagesAnswer, ModelCard, ModelList, PredictAnswer
from loadbalancer.schema.scaling import PauseRequest, ReloadRequest, ResumeRequest, ScaleRequest, WorkerRequest
from loadbalancer.schema.stream_events import (
    CompletedImage,
    EditCompletedImage,
    EditPartialImage,
    EditProgress,
    ErrorEvent,
    PartialImage,
    Progress,
)
from loadbalancer.schema.text.chat_answer import ChatAnswer, ChatChunk
from loadbalancer.schema.text.chat_request import ChatRequest
from loadbalancer.schema.text.completion_answer import CompletionAnswer
from loadbalancer.schema.text.completion_request import CompletionRequest
from loadbalancer.schema.text.embeddings import EmbeddingsAnswer, EmbeddingsRequest
from loadbalancer.schema.text.response_answer import ResponseAnswer
from loadbalancer.schema.text.response_events import RESPONSE_EVENTS
from loadbalancer.schema.text.response_request import ResponseRequest
from wire.errors import ErrorBody
from wire.scaling import ControllerReport, DecisionPage, OrderDone

DESCRIPTION = """\
Generative models on every GPU of a machine, batched between denoising steps.

Any OpenAI client works with `base_url` set to this server's `/v1`. Every response carries `x-request-id`, every error
is `{"error": {"message", "type", "param", "code"}}`.
"""
_REFERENCE = "#/components/schemas/{name}"
_REQUESTS = (
    ImageRequest,
    EditRequest,
    JsonEditRequest,
    PredictRequest,
    JobRequest,
    ScaleRequest,
    PauseRequest,
    ResumeRequest,
    ReloadRequest,
    WorkerRequest,
)
#: Structs of requests and responses.
_STRUCTS = (
    ImagesAnswer,
    PredictAnswer,
    ChatRequest,
    ChatAnswer,
    ChatChunk,
    CompletionRequest,
    CompletionAnswer,
    EmbeddingsRequest,
    EmbeddingsAnswer,
    ResponseRequest,
    ResponseAnswer,
    *RESPONSE_EVENTS,
    PredictionsRequest,
    PredictionsAnswer,
    PredictionChunk,
    PredictionCompleted,
    InferRequest,
    InferInput,
    InferOutput,
    InferAnswer,
    ServerMetadata,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerReady,
    ProtocolError,
    ModelCard,
    ModelList,
    JobView,
    JobList,
    Health,
    ErrorBody,
    Progress,
    PartialImage,
    CompletedImage,
    EditProgress,
    EditPartialImage,
    EditCompletedImage,
    ErrorEvent,
    ControllerReport,
    DecisionPage,
    OrderDone,
)
#: Any JSON: inputs and outputs of engines.
_VALUES = {"Value": {"description": "Any JSON that the engine takes or returns."}}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Requests with the same key run once and get the same response. A different body is rejected.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"},
}


def request_body(schema: str, **others: Any) -> dict[str, Any]:
    """A JSON request body of the named schema, and the `Idempotency-Key` header. `others` are other content types."""
    return {
        "requestBody": {"required": True, "content": content(schema) | others},
        "parameters": [_IDEMPOTENCY_KEY],
    }


def content(schema: str, media_type: str = "application/json") -> dict[str, Any]:
    return {media_type: {"schema": schema_ref(schema)}}


def schema_ref(name: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=name)}


def responses(success: str, *errors: int, **more: Any) -> dict[int | str, dict[str, Any]]:
    """The responses of a route. `more` are other content types of the success."""
    documented: dict[int | str, dict[str, Any]] = {200: {"description": "Success.", "content": content(success) | more}}
    return documented | {status: error_response_schema(status) for status in errors}


def error_response_schema(status: int) -> dict[str, Any]:
    return {"description": HTTPStatus(status).phrase + ".", "content": content("ErrorBody")}


def event_stream(*events: str) -> dict[str, Any]:
    """A stream of the named events. The schema is that of one event."""
    data = {"oneOf": [schema_ref(name) for name in events]}
    properties = {
        "event": {"type": "string", "description": "The `type` of the object in `data`."},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data},
    }
    schema = {"type": "object", "properties": properties, "required": ["event", "data"]}
    return {"text/event-stream": {"schema": schema}}


#: The balancer writes its own traces and logs. Those of FastAPI would hold the texts of errors, and cost each request
#: that takes the way through it.
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


class DocumentedApp(FastAPI):
    """Its OpenAPI document is made when it is asked for first: that takes a tenth of the CPU time of a start."""

    def __init__(self, authenticator: Authenticator, **options: Any) -> None:
        super().__init__(telemetry=_NO_TELEMETRY, **options)
        self._authenticator = authenticator

    def openapi(self) -> dict[str, Any]:
        is_made = self.openapi_schema is not None
        document: dict[str, Any] = super().openapi()
        if not is_made:
            _complete(document, self._authenticator)
        return document


def _complete(document: dict[str, Any], authenticator: Authenticator) -> None:
    """Add the schemas that the routes refer to, because the routes read and write bodies themselves.

    Also removes FastAPI's 422, because invalid requests get 400, and adds the responses of the middlewares.
    """
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            if authenticator.required_scope(path) != "nothing":
                operation["security"] = [{"key": []}, {}]  # the second: while no keys exist
                operation["responses"] |= {str(status): error_response_schema(status) for status in (401, 403)}
    _, requests = models_json_schema(
        [(model, "validation") for model in _REQUESTS], ref_template=_REFERENCE.format(name="{model}")
    )
    _, answers = msgspec.json.schema_components(_STRUCTS, ref_template=_REFERENCE)
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    document["components"] = {"schemas": requests["$defs"] | answers | _VALUES, "securitySchemes": schemes}
