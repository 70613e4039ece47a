"""Overheads beside the forward pass: the step loop and the samplers."""

from __future__ import annotations

import queue
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import torch

from configs.model_settings import Model
from scripts.bench.serving.forward_pass import clock_of
from scripts.bench.serving.servers import StepBatching
from scripts.bench.serving.workloads import BenchRequest
from wire.inputs import ImageInputs
from worker.batch_size import BatchSizer
from worker.engine import Row, StepEngine, TaskError
from worker.engines.diffusion.sampling import batched_step
from worker.engines.diffusion.sampling.plan import SamplingPlan, get_plan
from worker.engines.diffusion.sampling.sampler import RecurrenceSampler, Sampler
from worker.engines.diffusion.sampling.scheduler_sampler import SchedulerSampler
from worker.engines.diffusion.sampling.schedulers import SchedulerSetup

#: One-step and multistep samplers, with and without noise.
_SAMPLERS = ("default", "euler_ancestral", "dpmpp_2m", "unipc")
_ROWS = (1, 12, 32)
_TICKS = 20
#: Steps of the requests in the step loop measurement.
_STEPS = 60
_TIMEOUT_S = 300.0


class TimedEngine:
    """Wraps an engine and records start and end of its steps."""

    def __init__(self, engine: StepEngine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        #: Start, end and number of rows of each step.
        self.steps: list[tuple[float, float, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, rows: Sequence[Row]) -> None:
        started = self._clock()
        self._engine.step(rows)
        self.steps.append((started, self._clock(), len(rows)))


@dataclass(frozen=True)
class LoopTiming:
    """Median seconds of the step loop's ticks while no row joins or leaves."""

    batch: int
    tick_s: float
    step_s: float

    @property
    def loop_share(self) -> float:
        """The step loop's share of a tick."""
        return 1 - self.step_s / self.tick_s


def measure_loop(
    engine: StepEngine, model: Model, base: ImageInputs, batch: int, clock: Callable[[], float]
) -> LoopTiming:
    """Measure the step loop with this batch size; `clock` is read in its thread."""
    watched, ended = TimedEngine(engine, clock), queue.SimpleQueue[BenchRequest]()
    sizer = BatchSizer(batch, fixed=True, min_gain=0.0, max_step_s=None)
    server = StepBatching(cast("StepEngine", watched), model, sizer, threads=1)
    server.start(ended.put)
    try:
        for seed in range(batch):
            server.submit(BenchRequest(str(seed), msgspec.structs.replace(base, steps=_STEPS, seed=seed)))
        for _ in range(batch):
            ended.get(timeout=_TIMEOUT_S)
    finally:
        server.stop()
    full = [
        (after[0] - started, end - started)
        for (started, end, rows), after in zip(watched.steps, watched.steps[1:], strict=False)
        if rows == after[2] == batch
    ]
    return LoopTiming(batch, statistics.median(tick for tick, _ in full), statistics.median(step for _, step in full))


@dataclass(frozen=True)
class SamplerCost:
    """Median microseconds of a step of this number of samplers."""

    sampler: str
    #: `together`: as recurrences; `one by one`: each with a diffusers scheduler.
    path: str
    rows: int
    us: float


def sampler_costs(pipe: Any, sample: torch.Tensor, steps: int) -> Iterator[SamplerCost]:
    """Measure samplers by path; `sample` `(rows, ...)` has the shape of the denoiser's input."""
    for name in _SAMPLERS:
        try:
            plan = get_plan(name, pipe.scheduler, SchedulerSetup(max(steps, _TICKS), options={"mu": 1.0}))
        except TaskError:
            continue  # incompatible with this checkpoint
        paths: dict[str, type[RecurrenceSampler | SchedulerSampler]] = {"one by one": SchedulerSampler}
        if plan.recurrence is not None:
            paths["together"] = RecurrenceSampler
        for path, kind in paths.items():
            for rows in _ROWS:
                yield SamplerCost(name, path, rows, 1e6 * _tick_s(plan, kind, rows, sample))


@torch.inference_mode()
def _tick_s(
    plan: SamplingPlan, kind: type[RecurrenceSampler | SchedulerSampler], rows: int, sample: torch.Tensor
) -> float:
    samplers: list[Sampler] = [kind(plan, torch.Generator().manual_seed(seed)) for seed in range(rows)]
    outputs = [torch.randn_like(sample[:1]) for _ in samplers]
    for sampler, noise in zip(samplers, outputs, strict=True):
        sampler.start(noise)
    clock = clock_of(sample.device)
    times: list[float] = []
    for _ in range(_TICKS):
        _synchronize(sample)
        started = clock()
        for sampler in samplers:
            sampler.model_input()
        batched_step.advance(samplers, outputs)
        _synchronize(sample)
        times.append(clock() - started)
    for sampler in samplers:
        if sampler.failure is not None:
            raise sampler.failure
    return statistics.median(times)


def _synchronize(tensor: torch.Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
