"""The body of an unsuccessful answer, in the shape that OpenAI clients read."""

from __future__ import annotations

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True):
    """The error of an `ErrorBody`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every unsuccessful answer."""

    error: ErrorDetail
