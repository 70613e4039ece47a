"""The error responses of an unavailable disk."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from loadbalancer.schema.errors import ApiError, Unavailable
from loadbalancer.storage.database import StorageUnavailable

Result = TypeVar("Result")


async def stored(work: Awaitable[Result]) -> Result:
    """Return the result of the work. Raises `Unavailable` when the storage fails."""
    try:
        return await work
    except StorageUnavailable as error:
        raise storage_error(error) from None


def storage_error(error: StorageUnavailable) -> ApiError:
    if error.full:
        text = "The disk is full, so that jobs and results cannot be stored. Other requests are still answered."
        return Unavailable(text, code="storage_full", retry_after_s=10)
    if error.removed:
        text = (
            "Jobs and results cannot be stored: the data directory of the server was removed while it runs. Other "
            "requests are still answered. Its operator has to restart it."
        )
        return Unavailable(text, code="storage_unavailable", retry_after_s=60)
    if error.damaged:
        text = (
            "The database of jobs is damaged, so that nothing can be stored. Other requests are still answered. The "
            "server's log says what its operator can do."
        )
        return Unavailable(text, code="storage_damaged", retry_after_s=60)
    text = "Jobs and results cannot be stored at the moment. Other requests are still answered."
    return Unavailable(text, code="storage_unavailable", retry_after_s=10)
