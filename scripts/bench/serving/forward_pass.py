"""Step times by batch size: the denoiser's forward pass alone, and the engine's step.

Both are measured alternately, so that noise affects them equally. Noise only adds time, so the minimum counts. On a
CPU, the thread's CPU time counts, which other programs do not increase.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import torch

from scripts.bench.serving.random_weight_models import denoiser_of
from wire.inputs import ImageInputs
from worker.engine import EngineRequest, OutOfMemory, Row, StepEngine, TaskError

_SWEEPS = 3
_REPEATS = 4
#: Steps per measurement on a GPU: a single step would include the launch latency.
_STEPS_PER_TURN = 4
#: Passes before a CUDA graph capture.
_WARM_UP_PASSES = 3


class DenoiserInputs(NamedTuple):
    """The engine's arguments of a denoiser call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def sample(self) -> torch.Tensor:
        """The latents among the arguments, `(passes, ...)`."""
        sample: torch.Tensor = (*self.args, *self.kwargs.values())[0]
        return sample


@dataclass(frozen=True)
class StepTiming:
    """Times of one batch size."""

    batch: int
    #: Rows of the forward pass; a guided request takes two.
    passes: int
    #: Seconds of the fastest variant of the forward pass alone.
    forward_s: float
    #: Seconds of the engine's step.
    step_s: float

    def fastest(self, other: StepTiming) -> StepTiming:
        """Return the minimum of both times."""
        fastest = min(self.forward_s, other.forward_s), min(self.step_s, other.step_s)
        return StepTiming(self.batch, self.passes, *fastest)

    @property
    def overhead(self) -> float:
        """The step's time beyond the forward pass, as a fraction of the latter."""
        return self.step_s / self.forward_s - 1


@dataclass(frozen=True)
class ForwardBench:
    """An engine and its pipeline."""

    engine: StepEngine
    pipe: Any
    #: The same weights without compilation, to observe the denoiser's arguments.
    plain: StepEngine
    plain_pipe: Any
    device: torch.device

    def points(self, base: ImageInputs, batches: Sequence[int], budget_s: float) -> list[StepTiming]:
        """Measure these batch sizes in ascending order, within memory and budget.

        Several sweeps are made, because a machine may be slower for some seconds.
        """
        ends = time.perf_counter() + budget_s
        best: dict[int, StepTiming] = {}
        for point in self._sweep(base, batches, ends):
            best[point.batch] = point
        for _ in range(_SWEEPS - 1):
            for again in self._sweep(base, list(best), ends):
                best[again.batch] = best[again.batch].fastest(again)
        return list(best.values())

    def _sweep(self, base: ImageInputs, batches: Sequence[int], ends: float) -> Iterator[StepTiming]:
        for batch in batches:
            started = time.perf_counter()
            try:
                yield self._point(base, batch)
            except (OutOfMemory, torch.OutOfMemoryError):
                return
            now = time.perf_counter()
            if now + 2 * (now - started) > ends:
                return

    def call(self, base: ImageInputs, batch: int) -> DenoiserInputs:
        """Return the denoiser's arguments in a step of this batch size."""
        rows = self._rows(self.plain, base, batch)
        calls: list[DenoiserInputs] = []
        hook = denoiser_of(self.plain_pipe).register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(DenoiserInputs(args, kwargs)), with_kwargs=True
        )
        try:
            self.plain.step(rows)
        finally:
            hook.remove()
            _release(self.plain, rows)
        return calls[-1]

    def _point(self, base: ImageInputs, batch: int) -> StepTiming:
        call = self.call(base, batch)
        rows = self._rows(self.engine, base, batch)
        try:
            forwards = [self._timer(way) for way in self._ways(call)]
            step = self._timer(lambda: self.engine.step(rows))
            for timed in (*forwards, step):
                timed()
            turns = [(*(forward() for forward in forwards), step()) for _ in range(_REPEATS)]
        finally:
            _release(self.engine, rows)
        *forward_only, steps = zip(*turns, strict=True)
        return StepTiming(batch, len(call.sample), forward_s=min(map(min, forward_only)), step_s=min(steps))

    def _ways(self, call: DenoiserInputs) -> list[Callable[[], object]]:
        """Return variants of the forward pass: as in the engine and, on a GPU, as a CUDA graph."""
        denoiser = denoiser_of(self.pipe)
        variants: list[Callable[[], object]] = [lambda: denoiser(*call.args, **call.kwargs)]
        return [*variants, _cuda_graph(variants[0])] if self.device.type == "cuda" else variants

    def _rows(self, engine: StepEngine, base: ImageInputs, batch: int) -> list[Row]:
        steps = (_REPEATS + 1) * _STEPS_PER_TURN + 1
        return admitted(engine, [msgspec.structs.replace(base, steps=steps, seed=seed) for seed in range(batch)])

    def _timer(self, work: Callable[[], object]) -> Callable[[], float]:
        """Return a function that runs the work and returns the seconds until the device finished."""
        times, clock = _STEPS_PER_TURN if self.device.type == "cuda" else 1, clock_of(self.device)

        @torch.inference_mode()
        def timed() -> float:
            self.engine.synchronize()
            started = clock()
            for _ in range(times):
                work()
            self.engine.synchronize()
            return (clock() - started) / times

        return timed


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return the clock for work that this thread queues on the device."""
    return time.perf_counter if device.type == "cuda" else time.thread_time


def admitted(engine: StepEngine, requests: Sequence[ImageInputs]) -> list[Row]:
    """Return rows for these requests. Raises the `TaskError` of a rejected one."""
    rows: list[Row] = []
    for row in engine.admit([EngineRequest(inputs) for inputs in requests]):
        if isinstance(row, TaskError):
            raise row
        rows.append(row)
    return rows


def _release(engine: StepEngine, rows: Sequence[Row]) -> None:
    for row in rows:
        engine.release(row)


@torch.inference_mode()
def _cuda_graph(work: Callable[[], object]) -> Callable[[], object]:
    """Capture the work as a CUDA graph; return it unchanged on failure."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_PASSES):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            output = work()
    except RuntimeError:
        return work

    def replay() -> object:
        graph.replay()
        return output

    return replay
