"""Setup of the engine benchmark: pipeline, engine, and the best variant of each baseline."""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from configs.model_sections import Batching, Defaults, Limits, WarmUp
from configs.model_settings import Model
from scripts.bench.serving.forward_pass import ForwardBench, admitted
from scripts.bench.serving.random_weight_models import denoiser_of, pipeline, twin
from scripts.bench.serving.servers import PipelineCalls, Server, StepBatching, draw
from scripts.bench.serving.workloads import Steps, best_batch
from wire.inputs import ImageInputs
from worker.batch_size import BUCKETS, BatchSizer
from worker.calibration import measure
from worker.engine import StepEngine
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.loading import dtype_of

#: Usual image side in pixels and guidance scale of each family.
USUAL = {"digits": (64, 3.0), "sd15": (512, 7.5), "sdxl": (1024, 5.0), "sd3": (1024, 7.0), "flux": (1024, 3.5)}
_TINY_SIZE = 64
_PIPELINES = {
    "digits": "StableDiffusionPipeline",
    "sd15": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}


@dataclass(frozen=True)
class PipelineTiming:
    """The pipeline's call times in one variant."""

    #: `as it is`, or the compile mode of the denoiser.
    way: str
    pipe: Any
    #: Seconds of a call by number of prompts.
    seconds: dict[int, float]

    def cap(self, min_gain: float) -> int:
        """Return the best batch size."""
        return best_batch(self.seconds, min_gain)


@dataclass(frozen=True)
class BenchSetup:
    """Everything loaded on its device."""

    bench: ForwardBench
    model: Model
    base: ImageInputs
    steps: Steps
    sizer: BatchSizer
    threads: int

    @property
    def cap(self) -> int:
        """Maximum number of requests in a step."""
        return self.sizer.limit_and_points(self.base.shape, time.monotonic())[0]

    def servers(self, single: PipelineTiming, request_batching: PipelineTiming, window_s: float) -> list[Server]:
        """Return the servers, step batching first."""
        cap = request_batching.cap(self.model.batching.min_gain)
        return [
            StepBatching(self.bench.engine, self.model, self.sizer, self.threads),
            PipelineCalls("one at a time", single.pipe, 1, 0.0, self.threads),
            PipelineCalls("whole batches", request_batching.pipe, cap, window_s, self.threads),
        ]


def set_up(args: argparse.Namespace) -> BenchSetup:
    """Build and load what the command line selects."""
    diffusers.utils.logging.set_verbosity_error()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        # One core per worker slot. Otherwise the step loop alone would decode images on other cores.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    dtype = dtype_of(Model(path=f"random:{args.family}"), device, _PIPELINES[args.family])
    steps = Steps.parse(args.steps)
    side, guidance = USUAL[args.family]
    side = args.size or (_TINY_SIZE if args.tiny else side)
    base = ImageInputs("a handwritten seven", side, side, round(steps.mean), guidance, seed=0, scheduler="default")
    model = Model(
        path=f"random:{args.family}",
        compile=args.compile,
        max_batch_size=args.max_batch or "auto",
        batching=Batching(min_gain=args.min_gain),
        defaults=Defaults(size=f"{side}x{side}", steps=base.steps, guidance_scale=guidance),
        limits=Limits(max_pixels=max(side * side, 2**20)),
        warm_up=WarmUp(measure_s=args.budget),
    )
    pipe = pipeline(args.family, device, dtype, tiny=args.tiny)
    plain_pipe = twin(pipe)
    engine = _engine(model, args.device, pipe)
    plain = engine
    if args.compile == "off":
        plain_pipe = pipe
    else:
        plain = _engine(model.model_copy(update={"compile": "off"}), args.device, plain_pipe)
    bench = ForwardBench(engine, pipe, plain, plain_pipe, device)
    return BenchSetup(bench, model, base, steps, _batch_sizer(engine, model), threads=2 if device.type == "cuda" else 1)


def _engine(model: Model, device: str, pipe: Any) -> DiffusionEngine:
    engine = DiffusionEngine(model, device, pipe)
    engine.load()
    return engine


def _batch_sizer(engine: StepEngine, model: Model) -> BatchSizer:
    """Measure the batch sizes as a starting worker does."""
    fixed = model.max_batch_size != "auto"
    max_batch = BUCKETS[-1] if model.max_batch_size == "auto" else model.max_batch_size
    sizer = BatchSizer(max_batch, fixed=fixed, min_gain=model.batching.min_gain, max_step_s=None)
    with tempfile.TemporaryDirectory() as folder:
        measure(engine, model, sizer, max_batch, Path(folder))
    return sizer


def calls(setup: BenchSetup, ways: Sequence[str], budget_s: float) -> list[PipelineTiming]:
    """Time the pipeline's calls in these variants, by batch size, until larger batches bring no gain twice or the
    budget is used.
    """
    made = []
    for way in ways:
        pipe = twin(setup.bench.plain_pipe)
        if way == "regional":
            denoiser_of(pipe).compile_repeated_blocks(fullgraph=True, dynamic=False)  # as the engine does
        elif way == "full":
            denoiser_of(pipe).compile(fullgraph=True, dynamic=False)
        made.append(PipelineTiming(way, pipe, _seconds(pipe, setup, budget_s)))
    return made


def _seconds(pipe: Any, setup: BenchSetup, budget_s: float) -> dict[int, float]:
    seconds: dict[int, float] = {}
    spent, best, flat = 0.0, 0.0, 0
    for batch in BUCKETS:
        inputs = [setup.base] * batch
        try:
            draw(pipe, inputs)  # compiles, selects kernels, allocates memory
            started = time.perf_counter()
            draw(pipe, inputs)
        except torch.OutOfMemoryError:
            break
        seconds[batch] = time.perf_counter() - started
        spent += seconds[batch]
        flat = 0 if batch / seconds[batch] > (1 + setup.model.batching.min_gain) * best else flat + 1
        best = max(best, batch / seconds[batch])
        if flat == 2 or spent + 2 * seconds[batch] > budget_s:
            break
    return seconds


def best_ways(found: Sequence[PipelineTiming], min_gain: float) -> tuple[PipelineTiming, PipelineTiming]:
    """Return the best variants for single requests and for request batches."""
    single = min(found, key=lambda one: one.seconds[1])
    request_batching = max(found, key=lambda one: one.cap(min_gain) / one.seconds[one.cap(min_gain)])
    return single, request_batching


def difference(setup: BenchSetup) -> int:
    """Return the maximum difference of a pixel, of 255, between engine and pipeline."""
    engine = setup.bench.engine
    [row] = admitted(engine, [setup.base])
    while row.step < row.steps:
        engine.step([row])
    render = engine.render(row)
    result = render() if callable(render) else render
    ours = np.asarray(Image.open(io.BytesIO(result.data)), dtype=int)
    engine.release(row)
    [theirs] = draw(twin(setup.bench.plain_pipe), [setup.base])
    return int(np.abs(ours - np.asarray(theirs, dtype=int)).max())
