"""The errors of the HTTP API, in OpenAI's shape.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Messages are written for the client: they name the parameter, its value and the allowed values, and no internals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from configs.text import printable
from loadbalancer.scheduling.task import TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from wire.errors import ErrorBody, ErrorDetail

#: Of a parameter's name in an error. Names come from clients and may be of any length.
MAX_PARAM_CHARS = 80


class ApiError(Exception):
    """An error response. Subclasses set status and type; an instance may set a more specific `code`."""

    status: int = 500
    type: str = "server_error"
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
        self.param = None if param is None else printable(param, MAX_PARAM_CHARS)
        self.code = code or type(self).code
        self._retry_after_s = retry_after_s
        self._headers = headers or {}

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(ErrorDetail(self.message, self.type, self.param, self.code))

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response. Retry-After is in whole seconds, at least one."""
        retry = {} if self._retry_after_s is None else {"retry-after": str(max(math.ceil(self._retry_after_s), 1))}
        return {**self._headers, **retry}


class InvalidRequest(ApiError):
    """The request is invalid; the client can correct it."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class EngineError(ApiError):
    """A user's engine ended a call with an HTTP status of its own."""

    def __init__(self, message: str, status: int, param: str | None = None) -> None:
        super().__init__(message, param=param, code="call_refused" if status < 500 else "call_failed")
        self.status = status
        self.type = "invalid_request_error" if status < 500 else "server_error"


class Unauthorized(ApiError):
    """No API key, or an unknown one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    """The API key lacks the required scope."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_permissions"


class NotFound(ApiError):
    """The path or object does not exist."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(ApiError):
    """The model is not served."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class MethodNotAllowed(ApiError):
    """The path allows other methods only."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(ApiError):
    """The job has no result yet, or never will."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class KeyReused(ApiError):
    """The `Idempotency-Key` was used for a different request."""

    status = 422
    type = "idempotency_error"
    code = "idempotency_key_reused"


class BodyTooLarge(ApiError):
    """The body exceeds `server.max_body_bytes`, or `max_upload_bytes` where images are allowed.

    The connection is closed, because the rest of the body may never end.
    """

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"

    def __init__(self, max_bytes: int, where: str = "") -> None:
        text = f"The request body is larger{where and ' '}{where} than {max_bytes} bytes, the maximum."
        super().__init__(text, headers={"connection": "close"})


class NotAcceptable(ApiError):
    """The response cannot be of a media type that the header Accept allows."""

    status = 406
    type = "invalid_request_error"
    code = "not_acceptable"


class UnsupportedMediaType(ApiError):
    """The body has a content type or coding that this path does not take."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class ContentRefused(ApiError):
    """The model's safety checker rejects the image, and the configuration withholds such images."""

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
    """The client disconnected. The status (nginx's 499) is only for logs and metrics."""

    status = 499
    code = "client_closed_request"


class TaskFailed(ApiError):
    """Generation failed. The header stops automatic retries of clients, because the server has already retried."""

    status = 500
    code = "generation_failed"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"x-should-retry": "false"})


class InternalError(ApiError):
    """An unexpected exception. The log has the traceback with the request id."""

    status = 500
    code = "internal_error"


class BadGateway(ApiError):
    """The upstream server of a model failed (`cold_start_proxy`)."""

    status = 502
    code = "proxy_failed"


class Unavailable(ApiError):
    """The server is starting or shutting down, or lacks a resource."""

    status = 503
    code = "unavailable"


class TimedOut(ApiError):
    """The request did not finish within its `timeout_s`."""

    status = 504
    code = "timeout"


def model_cannot_start(model: str, reason: str) -> Unavailable:
    """The error of requests to a model that has no worker, and whose workers fail to start."""
    text = f"The model '{model}' cannot start: {reason}. Its start is tried again every minute."
    return Unavailable(text, code="model_cannot_start", retry_after_s=60)


def shutting_down() -> Unavailable:
    """The error of every request after the signal to stop."""
    return Unavailable("The server is shutting down. Please try again shortly.", code="shutting_down", retry_after_s=5)


def from_ended(ended: TaskEnded) -> ApiError:
    """The error of a task that ended without an image."""
    if ended.state is TaskState.EXPIRED:
        return TimedOut(f"The request timed out: {ended.message}.", retry_after_s=1)
    if ended.state is TaskState.CANCELLED:  # by the server: a client that cancels gets no response
        return shutting_down()
    if ended.kind in ("invalid", "context_length"):
        return InvalidRequest(ended.message)
    if ended.kind == "unsafe":
        return ContentRefused(ended.message)
    if ended.kind == "out_of_memory":
        return TaskFailed(f"The image does not fit the memory of the device: {ended.message}", code="out_of_memory")
    return TaskFailed(f"The image could not be generated: {ended.message}")


def from_ended_call(ended: TaskEnded, param: str = "") -> ApiError:
    """The error of a call that ended without a result. `param` is the place of its input in the request."""
    place = param and f"{param}: "
    if ended.state in (TaskState.EXPIRED, TaskState.CANCELLED):
        return from_ended(ended)
    if ended.status >= 400:  # a worker may send any number
        return EngineError(f"{place}{ended.message}", ended.status, param or None)
    if ended.kind in ("invalid", "context_length"):
        return InvalidRequest(f"{place}{ended.message}", param=param or None)
    if ended.kind == "out_of_memory":
        text = f"{place}the call does not fit the memory of the device: {ended.message}"
        return TaskFailed(text, code="out_of_memory")
    return TaskFailed(f"{place}the call failed: {ended.message}", code="call_failed")
