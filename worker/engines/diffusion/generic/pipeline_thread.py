"""`PipelineThread`: runs one request's pipeline in turns with the step loop.

    pending --resume--> pending | rendering | ended          any of these --cancel--> ended

Between `start` or `resume` and their return, only the request's thread computes; otherwise only the step loop does.
Pipeline code between denoiser calls therefore needs no lock. The final decode is the exception: after
`leave_step_loop`, the thread runs in parallel to the loop.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch

from worker.engine import DeviceLost, OutOfMemory, TaskError
from worker.engines.diffusion.generic.call_batching import DenoiserCall, TensorContents, describe_call
from worker.engines.torch_device import translate_device_errors

T = TypeVar("T")

#: Maximum seconds between two denoiser calls. Encoding long texts on a slow CPU takes minutes.
_CALL_TIMEOUT_S = 600.0
#: A cancelled thread ends at its pending call, unless the pipeline has cleanup to do.
_JOIN_TIMEOUT_S = 10.0


class Cancelled(BaseException):
    """The request was cancelled. Not an `Exception`, so that pipelines do not catch it."""


class PipelineThread(Generic[T]):
    """One request's thread, which calls `call_denoiser` and `leave_step_loop`.

    All other methods are called by the step loop's thread, after the preparing thread if there is one.
    """

    def __init__(self, device: torch.device, timeout_s: float = _CALL_TIMEOUT_S) -> None:
        self._device = device
        self._timeout_s = timeout_s
        self._contents = TensorContents()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        #: The thread's messages to the loop: a denoiser call, or None when the loop need not wait.
        self._calls: queue.SimpleQueue[DenoiserCall | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._has_called = False
        self._cancelled = False
        self._has_ended = False
        self._result: T | None = None
        self.pending_call: DenoiserCall | None = None
        #: True while the image is decoded in parallel to the loop.
        self.is_rendering = False
        self.failure: Exception | None = None

    # ---- called by the step loop

    def start(self, work: Callable[[], T]) -> None:
        """Start the work and run it to its first denoiser call, or to its end."""
        self._thread = threading.Thread(target=self._main, args=(work,), name="request", daemon=True)
        self._thread.start()
        self._wait()

    def resume(self, answer: Any) -> None:
        """Return the result of the pending call; wait for the next call or the end."""
        self.pending_call = None
        self._answers.put(answer)
        self._wait()

    @property
    def is_cancelled(self) -> bool:
        """True if the request has ended without a result."""
        return self._cancelled

    @property
    def is_done(self) -> bool:
        """True if the loop need not resume the thread again."""
        return self.is_rendering or self._has_ended

    def result(self) -> T:
        """Wait for the work's result. Raises its failure. Callable from any thread."""
        assert self._thread is not None
        self._thread.join(self._timeout_s)
        if self._thread.is_alive():
            raise TaskError("error", f"the image was not finished after {self._timeout_s:g} s")
        if self.failure is not None:
            raise self.failure
        return cast("T", self._result)

    def cancel(self) -> None:
        """End the thread at its pending call. A thread that renders is left to finish."""
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
            self._cancelled = True  # the thread ends at its next denoiser call
            self.failure = TaskError("error", f"the pipeline has not called its denoiser for {self._timeout_s:g} s")
        else:
            self._has_ended = self.pending_call is None

    # ---- called by the request's thread

    def call_denoiser(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replace `module(*args, **kwargs)`. Raises `Cancelled`."""
        self._has_called = True
        if self.is_rendering:
            return module(*args, **kwargs)  # a late call; the loop no longer waits for this thread
        if not self._cancelled:
            self._calls.put(describe_call(module, args, kwargs, self._contents))
            answer = self._answers.get()
        if self._cancelled:
            raise Cancelled
        return answer

    def leave_step_loop(self) -> None:
        """Let the loop continue: the denoiser will not be called again."""
        if not self.is_rendering:
            self.is_rendering = True
            self._calls.put(None)

    def _main(self, work: Callable[[], T]) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        try:
            with torch.inference_mode(), translate_device_errors(self._device, "the pipeline code of a request"):
                self._result = work()
        except Cancelled:
            self.failure = TaskError("error", "cancelled")
        except Exception as error:
            self.failure = self._translate(error)
        finally:
            self._calls.put(None)

    def _translate(self, error: Exception) -> Exception:
        """Return the error for the loop and the client. Its frames are cleared, because they hold tensors."""
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, TaskError | DeviceLost):
            return error
        if isinstance(error, OutOfMemory):
            return TaskError("out_of_memory", str(error)) if self._has_called else error
        if isinstance(error, ValueError | TypeError) and not self._has_called:
            translated = TaskError("invalid", str(error))  # the pipeline's own argument check
        else:
            translated = TaskError("error", f"the pipeline failed: {error}")
        translated.__cause__ = error
        return translated
