"""A request's run through a pipeline, in a thread of its own that takes turns with the step loop.

    parked --resume--> parked | rendering | over          any of these --cancel--> over

Between `start` or `resume` and their return only the request's thread computes, and otherwise only the loop: what a
pipeline does between two calls of its denoiser needs no lock. The picture is the exception. A run that says
`leave_loop` goes on beside the loop, with one turn less to wait for it.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch

from worker.engine import DeviceLost, OutOfMemory, TaskError
from worker.engines.diffusion.device import translate_device_errors
from worker.engines.diffusion.generic.call_batching import DenoiserCall, TensorContents, describe_call

T = TypeVar("T")

#: How long a pipeline may take from one call of its denoiser to the next: long texts on a slow CPU take minutes.
_CALL_TIMEOUT_S = 600.0
#: A cancelled run is at a call of the denoiser, where it ends at once, unless the pipeline has something to undo.
_JOIN_TIMEOUT_S = 10.0


class Cancelled(BaseException):
    """Nobody waits for this run any more. No `Exception`, so that no pipeline takes it for something it can handle."""


class PipelineThread(Generic[T]):
    """One request's thread. All methods but `ask` and `leave_loop` are called from the loop's thread."""

    def __init__(self, device: torch.device, timeout_s: float = _CALL_TIMEOUT_S) -> None:
        self._device = device
        self._timeout_s = timeout_s
        self._contents = TensorContents()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        #: What the thread says when it stops: a call, or None once the loop need not wait for it any more.
        self._calls: queue.SimpleQueue[DenoiserCall | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._has_called = False
        self._cancelled = False
        self._has_ended = False
        self._result: T | None = None
        #: The call that waits for an answer.
        self.pending_call: DenoiserCall | None = None
        #: Whether it makes its picture beside the loop.
        self.is_rendering = False
        #: Why it ended without a result.
        self.failure: Exception | None = None

    # ---- for the loop

    def start(self, work: Callable[[], T]) -> None:
        """Run the work until its first call of the denoiser, or its end."""
        self._thread = threading.Thread(target=self._main, args=(work,), name="request", daemon=True)
        self._thread.start()
        self._wait()

    def resume(self, answer: Any) -> None:
        """Answer the parked call, and wait until there is another one or none will come."""
        self.pending_call = None
        self._answers.put(answer)
        self._wait()

    @property
    def is_done(self) -> bool:
        """Whether it needs the loop no more."""
        return self.is_rendering or self._has_ended

    def result(self) -> T:
        """What the work returned; waits for it. Raises why there is nothing. May be called from any thread."""
        assert self._thread is not None
        self._thread.join(self._timeout_s)
        if self._thread.is_alive():
            raise TaskError("error", f"the picture was not there after {self._timeout_s:g} s")
        if self.failure is not None:
            raise self.failure
        return cast("T", self._result)

    def cancel(self) -> None:
        """End the thread at the call where it waits. One that makes its picture, or has, is left to finish."""
        if self.is_done:
            return
        self._cancelled = True
        self.pending_call = None
        self._answers.put(None)
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)

    def _wait(self) -> None:
        try:
            self.pending_call = self._calls.get(timeout=self._timeout_s)
        except queue.Empty:
            self._cancelled = True  # it ends at its next call of the denoiser, if it ever gets there
            self.failure = TaskError("error", f"the pipeline has not called its denoiser for {self._timeout_s:g} s")
        else:
            self._has_ended = self.pending_call is None

    # ---- for the request's thread

    def call_denoiser(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands in for `module(*args, **kwargs)`. Raises `Cancelled`."""
        self._has_called = True
        if self.is_rendering:
            return module(*args, **kwargs)  # unforeseen, and the loop is not there any more
        if not self._cancelled:
            self._calls.put(describe_call(module, args, kwargs, self._contents))
            answer = self._answers.get()
        if self._cancelled:
            raise Cancelled
        return answer

    def leave_step_loop(self) -> None:
        """The denoiser will not be called any more: the loop can go on at once."""
        if not self.is_rendering:
            self.is_rendering = True
            self._calls.put(None)

    def _main(self, work: Callable[[], T]) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        try:
            with torch.inference_mode(), translate_device_errors(self._device, "a request's own part of a step"):
                self._result = work()
        except Cancelled:
            self.failure = TaskError("error", "cancelled")
        except Exception as error:
            self.failure = self._translate(error)
        finally:
            self._calls.put(None)

    def _translate(self, error: Exception) -> Exception:
        """The error as the loop and the client get to know it. Without its frames, which hold tensors."""
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, TaskError | DeviceLost):
            return error
        if isinstance(error, OutOfMemory):
            return TaskError("out_of_memory", str(error)) if self._has_called else error
        if isinstance(error, ValueError | TypeError) and not self._has_called:
            translated = TaskError("invalid", str(error))  # the pipeline's own check of what it was given
        else:
            translated = TaskError("error", f"the pipeline failed: {error}")
        translated.__cause__ = error
        return translated
