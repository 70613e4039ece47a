"""Errors of HTTP itself, found before a request reaches the application. Their codes are labels in `/metrics`."""

from __future__ import annotations

from loadbalancer.schema.errors import ApiError

_CLOSE = {"connection": "close"}


class HttpError(ApiError):
    """A request that the HTTP server refuses; the connection is closed afterwards."""

    status = 400
    type = "invalid_request_error"
    code = "malformed_request"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s, headers=_CLOSE)


class MalformedRequest(HttpError):
    """The bytes are no HTTP/1.1 request."""


class IncompleteRequest(HttpError):
    """The client has closed its side before the end of the headers or of the body."""

    code = "incomplete_request"


class UnsupportedMethod(HttpError):
    """A method that no path takes, or CONNECT: this server is no proxy."""

    status = 501
    code = "unsupported_method"


class RequestTimeout(HttpError):
    """The headers or the body arrive too slowly."""

    status = 408
    code = "request_timeout"


class UriTooLong(HttpError):
    """The request line exceeds `server.max_request_line_bytes`."""

    status = 414
    code = "uri_too_long"


class ExpectationFailed(HttpError):
    """The header Expect asks for something else than 100-continue."""

    status = 417
    code = "expectation_failed"


class HeadersTooLarge(HttpError):
    """The headers exceed `server.max_header_bytes` or `server.max_headers`."""

    status = 431
    code = "headers_too_large"


class UnknownTransferCoding(HttpError):
    """A Transfer-Encoding other than chunked."""

    status = 501
    code = "unsupported_transfer_encoding"


class UnknownHttpVersion(HttpError):
    """Another version than HTTP/1.0 and HTTP/1.1."""

    status = 505
    code = "unsupported_http_version"


class TooManyConnections(HttpError):
    """More connections than `server.max_connections`, or than one address may have."""

    status = 503
    type = "server_error"
    code = "too_many_connections"


class InputMemoryFull(HttpError):
    """Incomplete requests of all connections hold too much memory."""

    status = 503
    type = "server_error"
    code = "input_memory_full"
