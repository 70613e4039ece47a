"""A request's thread takes turns with the loop, and ends when it is told to, whatever the pipeline makes of that."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from worker.engine import DeviceLost, OutOfMemory, TaskError
from worker.engines.diffusion.generic.pipeline_thread import Run

CPU = torch.device("cpu")


class Doubler(torch.nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample * 2


MODULE = Doubler()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name == "request"]
    for thread in left:
        thread.join(10)
    assert not [thread for thread in left if thread.is_alive()]


def asking(run: Run[float], times: int) -> Callable[[], float]:
    def work() -> float:
        value = torch.ones(1, 1)
        for _ in range(times):
            value = run.ask(MODULE, value)
        return float(value)

    return work


def answer(run: Run[Any]) -> None:
    assert run.parked is not None
    run.resume(run.parked.run())


@pytest.mark.parametrize("times", [0, 1, 5])
def test_a_run_stops_at_every_call_and_ends_with_its_result(times: int) -> None:
    run: Run[float] = Run(CPU)
    run.start(asking(run, times))
    for _ in range(times):
        assert not run.done
        answer(run)
    assert run.done
    assert run.parked is None
    assert run.result() == 2**times


def test_what_it_computes_is_never_kept_for_gradients() -> None:
    run: Run[bool] = Run(CPU)
    run.start(lambda: torch.ones(1).is_inference() and not torch.is_grad_enabled())
    assert run.result()


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


@pytest.mark.parametrize(("error", "calls", "told", "kind", "text"), ERRORS, ids=lambda value: str(value)[:20])
def test_an_error_is_told_for_what_it_is(
    error: Exception, calls: int, told: type[Exception], kind: str | None, text: str
) -> None:
    run: Run[None] = Run(CPU)

    def work() -> None:
        for _ in range(calls):
            run.ask(MODULE, torch.ones(1, 1))
        raise error

    run.start(work)
    for _ in range(calls):
        answer(run)
    assert run.done
    assert type(run.failure) is told
    assert getattr(run.failure, "kind", None) == kind
    assert text in str(run.failure)
    with pytest.raises(told):
        run.result()


def test_a_pipeline_that_handles_every_exception_does_not_handle_its_end() -> None:
    run: Run[None] = Run(CPU)
    undone = []

    def work() -> None:
        try:
            while True:
                with contextlib.suppress(Exception):
                    run.ask(MODULE, torch.ones(1, 1))
        finally:
            undone.append(True)
            run.ask(MODULE, torch.ones(1, 1))  # even so

    run.start(work)
    answer(run)
    run.cancel()
    assert undone == [True]
    with pytest.raises(TaskError, match="cancelled"):
        run.result()


def test_cancelling_twice_or_at_the_end_changes_nothing() -> None:
    run: Run[float] = Run(CPU)
    run.start(asking(run, 1))
    answer(run)
    run.cancel()
    run.cancel()
    assert run.result() == 2
    other: Run[float] = Run(CPU)
    other.start(asking(other, 1))
    other.cancel()
    other.cancel()
    assert isinstance(other.failure, TaskError)


def test_a_picture_is_made_beside_the_loop_and_a_late_call_as_well() -> None:
    run: Run[float] = Run(CPU)
    go = threading.Event()

    def work() -> float:
        value = run.ask(MODULE, torch.ones(1, 1))
        run.leave_loop()
        assert go.wait(30)
        return float(run.ask(MODULE, value))

    run.start(work)
    answer(run)
    assert run.done
    assert run.rendering
    run.cancel()  # too late for that
    go.set()
    assert run.result() == 4


def test_a_pipeline_that_does_not_come_back_is_given_up() -> None:
    run: Run[None] = Run(CPU, patience_s=0.05)
    go = threading.Event()

    def work() -> None:
        assert go.wait(30)
        run.ask(MODULE, torch.ones(1, 1))

    run.start(work)
    assert isinstance(run.failure, TaskError)
    assert "has not called its denoiser for 0.05 s" in str(run.failure)
    go.set()  # and when it does come, it is sent home
