"""What clients send as a job: an endpoint's path and its request, and what is to become of the result.

The request is read by the very schema of its endpoint, byte by byte as it came, so that a job is refused for what the
endpoint would refuse, in the same words.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from pydantic import ConfigDict, Field

from loadbalancer.jobs.webhooks import problem, signing_key
from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest
from loadbalancer.schema.parsing import parse, parse_with_images
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest, StrictModel

JobPath = Literal["/v1/images/generations", "/v1/images/edits", "/predict"]
Text = Annotated[str, Field(max_length=512)]
_RawMembers = dict[str, msgspec.Raw]


class WebhookRequest(StrictModel):
    """Where the end of a job is told."""

    url: Annotated[str, Field(max_length=2048)]
    """An http or https URL: it gets the job's view by POST, again and again until it answers with a 2xx status."""
    secret: Annotated[str, Field(min_length=16, max_length=256)] | None = None
    """Signs the message as Standard Webhooks do (`whsec_` and base64, or any text). Without it, it goes unsigned."""


class JobRequest(StrictModel):
    """`POST /v1/jobs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"path": "/v1/images/generations", "body": {"prompt": "a handwritten seven", "n": 2}}]
        }
    )

    path: JobPath
    """The endpoint that the request is for."""
    body: dict[str, Any]
    """Its request. For `/v1/images/edits`: the form as JSON, with `image` and `mask` as data URLs."""
    webhook: WebhookRequest | None = None
    """Where the end of the job is told."""
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Text], Field(max_length=16)] | None = None
    """The client's own words, returned with the job."""


class ParsedJob(NamedTuple):
    """A job as it was asked for; the pictures of an edit are data URLs beside it."""

    job: JobRequest
    request: ImageRequest | EditRequest | PredictRequest
    image: str | None = None
    mask: str | None = None


def parse_job(body: bytes, most: int, *, webhook_private: bool) -> ParsedJob:
    """The job in the body. Raises `InvalidRequest`, and `BodyTooLarge` for more than `most` bytes beside pictures."""
    members = _members(body)
    inner = bytes(members.get("body", b""))
    if inner[:1] == b"{":  # read below, by the endpoint's own schema
        members = members | {"body": msgspec.Raw(b"{}")}
    job = parse(JobRequest, msgspec.json.encode(members) if members else body)
    if len(body) - len(inner) > most:
        raise BodyTooLarge(most, "beside the request of its endpoint")
    if job.webhook is not None:
        _check(job.webhook, private=webhook_private)
    if job.path == "/v1/images/edits":
        return _edit(job, inner, most)
    if job.path == "/predict":
        if len(inner) > most:
            raise BodyTooLarge(most)
        return ParsedJob(job, parse(PredictRequest, inner))
    asked = parse_with_images(ImageRequest, inner, most)
    return ParsedJob(job, asked, asked.image, asked.mask)


def _members(body: bytes) -> _RawMembers:
    """The members of the object, unread; none where it is no object, which `parse` explains."""
    try:
        return msgspec.json.decode(body, type=_RawMembers)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}


def _edit(job: JobRequest, inner: bytes, most: int) -> ParsedJob:
    members = _members(inner)
    pictures = {name: _text(name, members.pop(name)) for name in ("image", "mask") if name in members}
    rest = msgspec.json.encode(members)
    if len(rest) > most:
        raise BodyTooLarge(most, "beside its images")
    return ParsedJob(job, parse(EditRequest, rest if members else inner), **pictures)


def _text(name: str, raw: msgspec.Raw) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str | None)
    except (msgspec.MsgspecError, UnicodeError):
        text = f"Invalid type for '{name}': expected a data URL."
        raise InvalidRequest(text, param=name, code="invalid_type") from None


def _check(webhook: WebhookRequest, *, private: bool) -> None:
    wrong = problem(webhook.url, private=private)
    if wrong is not None:
        raise InvalidRequest(f"Invalid value for 'webhook.url': {wrong}.", param="webhook.url")
    try:
        signing_key(webhook.secret or "")
    except ValueError:
        text = "Invalid value for 'webhook.secret': Must be 24 to 64 bytes in base64 after 'whsec_'."
        raise InvalidRequest(text, param="webhook.secret") from None
