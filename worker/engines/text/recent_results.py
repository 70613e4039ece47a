"""Keeps the last results of a function that takes long, its errors included."""

from __future__ import annotations

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

    def get(self, key: bytes, compute: Callable[[], T]) -> T:
        """Return what `compute` returned for this key, or raise the `TaskError` that it raised."""
        if key not in self._results:
            self._results[key] = _outcome(compute)
            if len(self._results) > self._size:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        result = self._results[key]
        if isinstance(result, TaskError):
            raise TaskError(result.kind, result.message, result.status)
        return result


def _outcome(compute: Callable[[], T]) -> T | TaskError:
    try:
        return compute()
    except TaskError as error:
        return TaskError(error.kind, error.message, error.status)  # without the frames of its traceback
