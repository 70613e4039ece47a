"""Parses job requests: an endpoint's path, its request, the webhook and metadata.

The inner request is parsed by the schema of its endpoint, so a job gets the same errors as the endpoint would return.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

import msgspec
from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from configs.text import printable
from loadbalancer.jobs.webhooks import problem, signing_key
from loadbalancer.schema.body_limits import RawMembers, check_size_without_images
from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest
from loadbalancer.schema.parsing import parse
from loadbalancer.schema.predictions import Instances, parse_instances
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest, StrictModel
from loadbalancer.schema.text.text_requests import TEXT_PATHS, TextRequest, parse_text

_IMAGE_PATHS = ("/v1/images/generations", "/v1/images/edits", "/predict")
_CALL_PATH = re.compile(r"/v1/models/(.{1,100}):predict")


def _known_path(path: str) -> str:
    if path not in (*_IMAGE_PATHS, *TEXT_PATHS) and not _CALL_PATH.fullmatch(path):
        expected = ", ".join(map(repr, (*_IMAGE_PATHS, *TEXT_PATHS, "/v1/models/{model}:predict")))
        raise PydanticCustomError("literal_error", "unknown path", {"expected": expected})
    return path


JobPath = Annotated[str, AfterValidator(_known_path), Field(max_length=200)]
Text = Annotated[str, Field(max_length=512)]


class WebhookRequest(StrictModel):
    """The webhook that is notified of the end of a job."""

    url: Annotated[str, Field(max_length=2048)]
    """An http or https URL: it receives the job by POST, with retries until it returns a 2xx status."""
    secret: Annotated[str, Field(min_length=16, max_length=256)] | None = None
    """Signs the message by Standard Webhooks (`whsec_` and base64, or any text). Without it messages are unsigned."""


class JobRequest(StrictModel):
    """`POST /v1/jobs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"path": "/v1/images/generations", "body": {"prompt": "a handwritten seven", "n": 2}}]
        }
    )

    path: JobPath
    """The endpoint of the request."""
    body: dict[str, Any]
    """The request body. For `/v1/images/edits`: the form as JSON, with `image` and `mask` as data URLs.

    For `/v1/models/{model}:predict`: the instances. For texts: `stream` has no effect."""
    webhook: WebhookRequest | None = None
    """The webhook that is notified of the end of the job."""
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Text], Field(max_length=16)] | None = None
    """Metadata of the client, returned with the job."""


class ParsedJob(NamedTuple):
    """A validated job request; `image` and `mask` are data URLs."""

    job: JobRequest
    request: ImageRequest | EditRequest | PredictRequest | Instances | TextRequest
    image: str | None = None
    mask: str | None = None


def called_model(path: str) -> str | None:
    """Return the model of a path for calls; None for any other path."""
    found = _CALL_PATH.fullmatch(path)
    return None if found is None else found[1]


def parse_job(
    body: bytes, max_bytes: int, *, webhook_private: bool, max_instances: int = 1, max_text_bytes: int = 0
) -> ParsedJob:
    """Parse the body. Raises `InvalidRequest`, and `BodyTooLarge` above `max_bytes` without images or instances.

    `max_text_bytes` limits the request of a text.
    """
    inner = _inner_request(body)
    if len(body) - len(inner) > max_bytes:
        raise BodyTooLarge(max_bytes, "beside the request of its endpoint")
    members = _members(body)
    if bytes(inner[:1]) == b"{":  # parsed below by the endpoint's schema
        members = members | {"body": msgspec.Raw(b"{}")}
    job = parse(JobRequest, msgspec.json.encode(members) if members else body)
    if job.webhook is not None:
        _check(job.webhook, private=webhook_private)
    if job.path == "/v1/images/edits":
        return _image_job(job, EditRequest, inner, max_bytes)
    if job.path == "/v1/images/generations":
        return _image_job(job, ImageRequest, inner, max_bytes)
    if called_model(job.path) is not None:
        return ParsedJob(job, parse_instances(bytes(inner), max_instances))
    limit = max_text_bytes if job.path in TEXT_PATHS else max_bytes
    if len(inner) > limit:
        raise BodyTooLarge(limit)
    own = bytes(inner)
    return ParsedJob(job, parse_text(job.path, own) if job.path in TEXT_PATHS else parse(PredictRequest, own))


#: In place of a data URL, for the schema: the URL itself is decoded apart.
_STANDS_FOR_IMAGE = msgspec.Raw(b'""')


class _InnerRequest(msgspec.Struct):
    """The member of a job request that may be large. Others are skipped without building an object of each."""

    body: msgspec.Raw = msgspec.Raw()


def _inner_request(body: bytes) -> memoryview:
    """The undecoded request of the endpoint, as a part of the body; empty if there is none."""
    try:
        return memoryview(msgspec.json.decode(body, type=_InnerRequest).body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return memoryview(b"")


def _members(body: bytes | memoryview) -> RawMembers:
    """Split the object into raw members; empty for anything else, which `parse` then rejects."""
    try:
        return msgspec.json.decode(body, type=RawMembers)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}


def _image_job(job: JobRequest, kind: type[EditRequest | ImageRequest], inner: memoryview, max_bytes: int) -> ParsedJob:
    """Parse the request without its images, which are decoded once and not copied with the rest."""
    if len(inner) > max_bytes:
        check_size_without_images(inner, max_bytes)
    members = _members(inner)
    images = {name: _text(name, members.pop(name)) for name in ("image", "mask") if name in members}
    if kind is ImageRequest:  # its schema knows these members
        members |= {name: _STANDS_FOR_IMAGE for name, image in images.items() if image is not None}
    own = msgspec.json.encode(members) if members or images else bytes(inner)
    return ParsedJob(job, parse(kind, own), **images)


def _text(name: str, raw: msgspec.Raw) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str | None)
    except (msgspec.MsgspecError, UnicodeError):
        text = f"Invalid type for '{name}': expected a data URL."
        raise InvalidRequest(text, param=name, code="invalid_type") from None


def _check(webhook: WebhookRequest, *, private: bool) -> None:
    wrong = problem(webhook.url, private=private)
    if wrong is not None:
        text = f"Invalid value for 'webhook.url': {printable(wrong, 100)}."
        raise InvalidRequest(text, param="webhook.url")
    try:
        signing_key(webhook.secret or "")
    except ValueError:
        text = "Invalid value for 'webhook.secret': Must be 24 to 64 bytes in base64 after 'whsec_'."
        raise InvalidRequest(text, param="webhook.secret") from None
