"""Keeps the last results of a function that takes long, its errors included. Any thread may ask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from worker.engine import TaskError

T = TypeVar("T")


class RecentResults(Generic[T]):
    """The results of the last keys, least recently used first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[bytes, T | TaskError] = OrderedDict()
        #: Not held while a result is computed.
        self._lock = threading.Lock()

    def get(self, key: bytes, compute: Callable[[], T]) -> T:
        """Return what `compute` returned for this key, or raise the `TaskError` that it raised."""
        with self._lock:
            known = [self._results[key]] if key in self._results else []
        result = known[0] if known else _outcome(compute)
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            if len(self._results) > self._size:
                self._results.popitem(last=False)
        if isinstance(result, TaskError):
            raise TaskError(result.kind, result.message, result.status)
        return result


def _outcome(compute: Callable[[], T]) -> T | TaskError:
    try:
        return compute()
    except TaskError as error:
        return TaskError(error.kind, error.message, error.status)  # without the frames of its traceback
