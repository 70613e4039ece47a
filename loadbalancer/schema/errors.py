"""What a client is told when it does not get what it asked for: one class per outside meaning, all in OpenAI's shape.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Rule: a message is written for the client. It names the parameter, its value and what is allowed, never an internal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from loadbalancer.scheduling.task import TaskEnded, TaskState
from wire.errors import ErrorBody, ErrorDetail


class ApiError(Exception):
    """An answer other than success. Subclasses fix status and type; `code` may be told more exactly per case."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self._retry_after_s = retry_after_s
        self._headers = headers or {}

    @property
    def body(self) -> ErrorBody:
        """What the client reads."""
        return ErrorBody(ErrorDetail(self.message, self.type, self.param, self.code))

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer; Retry-After in whole seconds, at least one."""
        retry = {} if self._retry_after_s is None else {"retry-after": str(max(math.ceil(self._retry_after_s), 1))}
        return {**self._headers, **retry}


class InvalidRequest(ApiError):
    """The client can mend it."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Unauthorized(ApiError):
    """No token, or not the right one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    """The API key is right, but not for this."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_permissions"


class NotFound(ApiError):
    """No such path."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(ApiError):
    """No such model."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class MethodNotAllowed(ApiError):
    """The path exists, for other methods."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(ApiError):
    """Not as things stand: the job has no result yet, or never will."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class KeyReused(ApiError):
    """An `Idempotency-Key` means one request."""

    status = 422
    type = "idempotency_error"
    code = "idempotency_key_reused"


class BodyTooLarge(ApiError):
    """More bytes than `server.max_body_bytes`, or `max_upload_bytes` where pictures may come.

    The connection is closed, for the rest may never end.
    """

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"

    def __init__(self, most: int, where: str = "") -> None:
        text = f"The request body is larger{where and ' '}{where} than {most} bytes, which is the most that is read."
        super().__init__(text, headers={"connection": "close"})


class ContentRefused(ApiError):
    """The model's safety checker objects to the image, and the configuration says not to send it."""

    status = 400
    type = "image_generation_user_error"
    code = "content_policy_violation"


class TooBusy(ApiError):
    """The queue is full."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class RateLimited(ApiError):
    """More requests than the API key allows, in a minute or at once."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class ClientClosed(ApiError):
    """The client hung up. Nobody reads this answer; its status (nginx's) is for logs and metrics."""

    status = 499
    code = "client_closed_request"


class TaskFailed(ApiError):
    """The image could not be made. Clients that retry by themselves are told not to: it has been tried enough."""

    status = 500
    code = "generation_failed"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"x-should-retry": "false"})


class InternalError(ApiError):
    """A bug. The log has the traceback under the request's id."""

    status = 500
    code = "internal_error"


class BadGateway(ApiError):
    """The server that stands in for a model did not do it (`cold_start_proxy`)."""

    status = 502
    code = "proxy_failed"


class Unavailable(ApiError):
    """Not now: the server is starting, or shutting down."""

    status = 503
    code = "unavailable"


class TimedOut(ApiError):
    """Not done within the request's `timeout_s`."""

    status = 504
    code = "timeout"


def shutting_down() -> Unavailable:
    """What every request is told from the signal to stop on."""
    return Unavailable("The server is shutting down. Please try again shortly.", code="shutting_down", retry_after_s=5)


def from_ended(ended: TaskEnded) -> ApiError:
    """Why there is no image."""
    if ended.state is TaskState.EXPIRED:
        return TimedOut(f"The request timed out: {ended.message}.", retry_after_s=1)
    if ended.state is TaskState.CANCELLED:  # its own client is never told, so the server itself has ended it
        return shutting_down()
    if ended.kind == "invalid":
        return InvalidRequest(ended.message)
    if ended.kind == "unsafe":
        return ContentRefused(ended.message)
    if ended.kind == "out_of_memory":
        return TaskFailed(f"The image does not fit the memory of the device: {ended.message}", code="out_of_memory")
    return TaskFailed(f"The image could not be generated: {ended.message}")
