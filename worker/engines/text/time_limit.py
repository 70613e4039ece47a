"""Runs pure Python that may not end, such as a template, for a bounded time."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class TimeLimitExceeded(BaseException):
    """Raised inside the function after its time: not an `Exception`, so that it does not catch it by chance."""


def call_within(seconds: float, function: Callable[[], T]) -> T:
    """Return what the function returns. Raises `TimeLimitExceeded` after the time, or what the function raises.

    It runs in a thread of its own. One operation that takes long without a step of the interpreter ends first.
    """
    outcome = _Outcome()
    thread = threading.Thread(target=outcome.run, args=(function,), name="time-limit", daemon=True)
    thread.start()
    thread.join(seconds)
    while thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeLimitExceeded)
        )
        thread.join(seconds)
    if outcome.error is not None:
        raise outcome.error
    result: T = outcome.value
    return result


class _Outcome:
    """What a call returned or raised."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self, function: Callable[[], Any]) -> None:
        try:
            try:
                self.value = function()
            except BaseException as error:
                self.error = error
        except TimeLimitExceeded:  # it came when the function had ended
            return
