"""Exceptions of user code as errors of one task, of the batch or of the device."""

from __future__ import annotations

import traceback

from configs.text import exception_line, exception_text, printable
from muster import Failed
from worker.engine import DeviceLost, OutOfMemory, TaskError
from worker.engines.user.device import free_cached_memory

#: Longer texts are cut, so that an exception cannot send an array's contents to a client.
_MAX_CHARS = 500


def is_failure(value: object) -> bool:
    """Return whether an engine returned this in place of a result."""
    return isinstance(value, Exception)


def task_error(error: BaseException) -> TaskError:
    """Return the error that the client gets for its task. Of any exception: user code may raise `KeyboardInterrupt`."""
    if isinstance(error, TaskError):
        return error
    if isinstance(error, Failed):
        return _with_status(error.status, f"{error.param}: {error.message}" if error.param else error.message)
    status, detail = getattr(error, "status_code", None), getattr(error, "detail", None)
    if isinstance(status, int) and detail is not None:  # an HTTPException of FastAPI or Starlette
        return _with_status(status, detail if isinstance(detail, str) else repr(detail))
    return TaskError("error", _clip(exception_line(error)))


def call_error(error: BaseException) -> TaskError:
    """Return the error of a call that has failed alone. Raises `DeviceLost`: no other call can succeed there."""
    known = batch_error(error)
    if isinstance(known, DeviceLost):
        raise known from error
    return known if isinstance(known, TaskError) else TaskError("out_of_memory", str(known))


def batch_error(error: BaseException) -> Exception:
    """Return what the step loop expects for an exception that ended a whole batch."""
    name, text = type(error).__name__, exception_text(error)
    if isinstance(error, DeviceLost | OutOfMemory):
        return error
    if name == "OutOfMemoryError" or isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        # The frames of the failed attempt hold tensors, whose memory the next attempt needs.
        traceback.clear_frames(error.__traceback__)
        free_cached_memory()
        return OutOfMemory(_clip(f"the engine did not fit into memory: {text}"))
    if name == "AcceleratorError" or "CUDA error" in text:
        return DeviceLost(_clip(text))
    return task_error(error)


def _with_status(status: int, text: str) -> TaskError:
    """Return an error with the status that the engine chose, if it is one of errors."""
    own = status if 400 < status <= 599 and status != 500 else 0
    return TaskError("invalid" if 400 <= status < 500 else "error", _clip(text), own)


def _clip(text: str) -> str:
    return printable(text, _MAX_CHARS)
