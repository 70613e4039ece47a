"""`PipelineThread`: turns with the step loop, errors and cancellation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from scripts.harness.processes import PATIENCE_S
from worker.engine import DeviceLost, OutOfMemory, TaskError
from worker.engines.diffusion.generic.pipeline_thread import PipelineThread

CPU = torch.device("cpu")


class Doubler(torch.nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample * 2


MODULE = Doubler()


@pytest.fixture(autouse=True)
def no_thread_remains() -> Iterator[None]:
    yield
    left = [other_thread for other_thread in threading.enumerate() if other_thread.name == "request"]
    for other_thread in left:
        other_thread.join(PATIENCE_S)
    assert not [other_thread for other_thread in left if other_thread.is_alive()]


def calls_denoiser(thread: PipelineThread[float], times: int) -> Callable[[], float]:
    def work() -> float:
        value = torch.ones(1, 1)
        for _ in range(times):
            value = thread.call_denoiser(MODULE, value)
        return float(value)

    return work


def answer(thread: PipelineThread[Any]) -> None:
    assert thread.pending_call is not None
    thread.resume(thread.pending_call.forward())


@pytest.mark.parametrize("times", [0, 1, 5])
def test_thread_stops_at_each_call_and_returns_result(times: int) -> None:
    thread: PipelineThread[float] = PipelineThread(CPU)
    thread.start(calls_denoiser(thread, times))
    for _ in range(times):
        assert not thread.is_done
        answer(thread)
    assert thread.is_done
    assert thread.pending_call is None
    assert thread.result() == 2**times


def test_thread_runs_in_inference_mode() -> None:
    thread: PipelineThread[bool] = PipelineThread(CPU)
    thread.start(lambda: torch.ones(1).is_inference() and not torch.is_grad_enabled())
    assert thread.result()


ERRORS = [
    (ValueError("no such size"), 0, TaskError, "invalid", "no such size"),
    (TypeError("no such argument"), 0, TaskError, "invalid", "no such argument"),
    (ValueError("singular matrix"), 1, TaskError, "error", "the pipeline failed: singular matrix"),
    (RuntimeError("broken"), 0, TaskError, "error", "the pipeline failed: broken"),
    (TaskError("unsafe", "as it says"), 1, TaskError, "unsafe", "as it says"),
    (torch.OutOfMemoryError("9 GiB"), 0, OutOfMemory, None, "9 GiB"),
    (torch.OutOfMemoryError("9 GiB"), 1, TaskError, "out_of_memory", "9 GiB"),
    (RuntimeError("CUDA error: an illegal memory access"), 1, DeviceLost, None, "illegal memory access"),
]


@pytest.mark.parametrize(("error", "calls", "reported", "kind", "text"), ERRORS, ids=lambda value: str(value)[:20])
def test_errors_translated(
    error: Exception, calls: int, reported: type[Exception], kind: str | None, text: str
) -> None:
    thread: PipelineThread[None] = PipelineThread(CPU)

    def work() -> None:
        for _ in range(calls):
            thread.call_denoiser(MODULE, torch.ones(1, 1))
        raise error

    thread.start(work)
    for _ in range(calls):
        answer(thread)
    assert thread.is_done
    assert type(thread.failure) is reported
    assert getattr(thread.failure, "kind", None) == kind
    assert text in str(thread.failure)
    with pytest.raises(reported):
        thread.result()


def test_pipeline_cannot_suppress_cancellation() -> None:
    thread: PipelineThread[None] = PipelineThread(CPU)
    undone = []

    def work() -> None:
        try:
            while True:
                with contextlib.suppress(Exception):
                    thread.call_denoiser(MODULE, torch.ones(1, 1))
        finally:
            undone.append(True)
            thread.call_denoiser(MODULE, torch.ones(1, 1))  # a cleanup may call it as well

    thread.start(work)
    answer(thread)
    thread.cancel()
    assert undone == [True]
    with pytest.raises(TaskError, match="cancelled"):
        thread.result()


def test_cancel_is_idempotent_and_ignored_after_end() -> None:
    thread: PipelineThread[float] = PipelineThread(CPU)
    thread.start(calls_denoiser(thread, 1))
    answer(thread)
    thread.cancel()
    thread.cancel()
    assert thread.result() == 2
    other: PipelineThread[float] = PipelineThread(CPU)
    other.start(calls_denoiser(other, 1))
    other.cancel()
    other.cancel()
    assert isinstance(other.failure, TaskError)


def test_decode_and_late_calls_run_beside_the_loop() -> None:
    thread: PipelineThread[float] = PipelineThread(CPU)
    proceed = threading.Event()

    def work() -> float:
        value = thread.call_denoiser(MODULE, torch.ones(1, 1))
        thread.leave_step_loop()
        assert proceed.wait(PATIENCE_S)
        return float(thread.call_denoiser(MODULE, value))

    thread.start(work)
    answer(thread)
    assert thread.is_done
    assert thread.is_rendering
    thread.cancel()  # too late to have an effect
    proceed.set()
    assert thread.result() == 4


def test_pipeline_without_call_times_out() -> None:
    thread: PipelineThread[None] = PipelineThread(CPU, timeout_s=0.05)
    proceed = threading.Event()

    def work() -> None:
        assert proceed.wait(PATIENCE_S)
        thread.call_denoiser(MODULE, torch.ones(1, 1))

    thread.start(work)
    assert isinstance(thread.failure, TaskError)
    assert "has not called its denoiser for 0.05 s" in str(thread.failure)
    proceed.set()  # its late call is cancelled
