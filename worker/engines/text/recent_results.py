"""Keeps the last results of a function that takes long, its errors included. Any thread may ask."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from worker.engine import TaskError

T = TypeVar("T")
#: The choices of one request ask within this time.
_TRANSIENT_S = 10.0


class TransientError(TaskError):
    """The error of a busy moment. A later attempt may succeed."""


class RecentResults(Generic[T]):
    """The results of the last keys, least recently used first. Transient errors are kept for seconds only."""

    def __init__(self, size: int, *, transient_s: float = _TRANSIENT_S) -> None:
        self._size, self._transient_s = size, transient_s
        #: With the time until which they hold.
        self._results: OrderedDict[bytes, tuple[T | TaskError, float]] = OrderedDict()
        #: Not held while a result is computed.
        self._lock = threading.Lock()

    def get(self, key: bytes, compute: Callable[[], T]) -> T:
        """Return what `compute` returned for this key, or raise the `TaskError` that it raised."""
        with self._lock:
            known = self._results.get(key)
        if known is None or time.monotonic() >= known[1]:
            result = _outcome(compute)
            is_transient = isinstance(result, TransientError)
            known = result, time.monotonic() + self._transient_s if is_transient else math.inf
        with self._lock:
            self._results[key] = known
            self._results.move_to_end(key)
            if len(self._results) > self._size:
                self._results.popitem(last=False)
        result, _ = known
        if isinstance(result, TaskError):
            raise _copy(result)
        return result


def _outcome(compute: Callable[[], T]) -> T | TaskError:
    try:
        return compute()
    except TaskError as error:
        return _copy(error)


def _copy(error: TaskError) -> TaskError:
    """Return the error without the frames of its traceback."""
    return type(error)(error.kind, error.message, error.status)
