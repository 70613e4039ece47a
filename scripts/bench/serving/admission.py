"""What a burst of edits costs the images that run: admission beside the steps, and in the step loop.

    python -m scripts.bench.serving.admission --family sd15 --json results.json
    python -m scripts.bench.serving.admission --tiny --device cpu

Four images run when 32 edits arrive, each with a source image and a prompt of its own. The table shows the time between
two steps beyond the usual: its sum and its longest, in steps of the running images. Weights are random; nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import diffusers
import msgspec
import torch
from rich.console import Console
from rich.table import Table

from configs.model_settings import Model
from scripts.bench.serving.denoiser_configs import DENOISERS
from scripts.bench.serving.overheads import TimedEngine
from scripts.bench.serving.random_weight_models import pipeline
from scripts.harness.load import machine
from wire.codec import BalancerEnvelope, Frame, WorkerEnvelope
from wire.inputs import ImageInputs
from wire.messages import PROTOCOL, Assign, Assignment, Finished, Hello, Started
from worker.batch_size import BatchSizer
from worker.engine import EngineRequest, StepEngine
from worker.engines.diffusion.engine import DiffusionEngine
from worker.postprocessing import PostProcessor
from worker.step_loop import StepLoop
from worker.transport import DrainRequested

_RUNNING, _BURST = 4, 32
#: Steps of the running images; the burst arrives after `_ARRIVAL` of them.
_STEPS, _ARRIVAL = 60, 15
_BURST_STEPS = 4


class LoopAdmission(DiffusionEngine):
    """Admits everything in the step loop."""

    def needs_preparation(self, request: EngineRequest) -> bool:
        del request
        return False


class _Balancer:
    """Assigns the running images, then the burst, and drains the worker when all are done."""

    def __init__(self, engine: TimedEngine, side: int) -> None:
        self._engine = engine
        self._base = ImageInputs("", side, side, _STEPS, 3.0, seed=0, scheduler="default")
        self._assigned = 0
        self._finished = 0
        self.arrived_at = self.joined_at = 0.0

    def send(self, *envelopes: WorkerEnvelope) -> None:
        for message, _ in envelopes:
            self._finished += isinstance(message, Finished)
            if isinstance(message, Started):
                self.joined_at = time.perf_counter()

    def receive(self, timeout_s: float) -> list[BalancerEnvelope | DrainRequested]:
        if timeout_s:
            time.sleep(min(timeout_s, 0.001))
        if not self._assigned:
            return [self._assign(_RUNNING, msgspec.structs.replace(self._base, steps=_STEPS))]
        if self._assigned == _RUNNING and len(self._engine.steps) >= _ARRIVAL:
            self.arrived_at = time.perf_counter()
            edit = msgspec.structs.replace(self._base, mode="image", strength=1.0, steps=_BURST_STEPS)
            return [self._assign(_BURST, edit)]
        return [DrainRequested("all are done")] if self._finished == _RUNNING + _BURST else []

    def _assign(self, count: int, inputs: ImageInputs) -> BalancerEnvelope:
        tasks, frames = [], list[Frame]()
        for _ in range(count):
            self._assigned += 1
            own = msgspec.structs.replace(inputs, seed=self._assigned, prompt=f"number {self._assigned}")
            sources = []
            if own.mode == "image":
                sources = [random.Random(own.seed).randbytes(3 * own.width * own.height)]
            tasks.append(Assignment(str(self._assigned), 1, own, frames=len(sources)))
            frames += sources
        return BalancerEnvelope(Assign(tasks), frames)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.serving.admission", description=__doc__)
    parser.add_argument("--family", choices=DENOISERS, default="sd15")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small parts, to try it without a GPU")
    parser.add_argument("--size", type=int, help="side of the images (default 512, 128 with --tiny)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    side, device = args.size or (128 if args.tiny else 512), torch.device(args.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    pipe = pipeline(args.family, device, dtype, tiny=args.tiny)
    model = Model(path=f"random:{args.family}", defaults={"size": f"{side}x{side}"})
    rows: list[dict[str, Any]] = []
    with Console().status("rounds"):
        for _ in range(args.rounds):
            for name, kind in (("beside the steps", DiffusionEngine), ("in the step loop", LoopAdmission)):
                rows.append({"admission": name} | _measure(kind(model, args.device, pipe), model, side))
    _print(rows)
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine(), "family": args.family, "side": side, "rows": rows}))


def _measure(engine: DiffusionEngine, model: Model, side: int) -> dict[str, float]:
    engine.load()
    timed = TimedEngine(engine, time.perf_counter)
    balancer = _Balancer(timed, side)
    post = PostProcessor(balancer.send, 2, 1 << 30)
    sizer = BatchSizer(_RUNNING + _BURST, fixed=True, min_gain=0.0, max_step_s=None)
    loop = StepLoop(
        cast("StepEngine", timed), model, Hello(PROTOCOL, "w", "m", "", 1), sizer, balancer, post, drain_timeout_s=60.0
    )
    try:
        loop.run()
    finally:
        post.shutdown()
    return _standstill(timed.steps, balancer.arrived_at, balancer.joined_at)


def _standstill(steps: Sequence[tuple[float, float, int]], arrived_at: float, joined_at: float) -> dict[str, float]:
    """Return the time between steps beyond the usual, until the last edit has joined, in steps of before."""
    gaps = [(end, after[0] - end) for (_, end, _), after in itertools.pairwise(steps)]
    before = steps[2:_ARRIVAL]
    step_s = statistics.median(end - started for started, end, _ in before)
    usual = statistics.median(gap for end, gap in gaps if end < arrived_at)
    late = [max(gap - usual, 0.0) for end, gap in gaps if arrived_at - step_s <= end <= joined_at]
    return {
        "step_s": step_s,
        "standstill_steps": sum(late) / step_s,
        "longest_steps": max(late, default=0.0) / step_s,
        "joined_after_s": joined_at - arrived_at,
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title=f"{_BURST} edits arrive while {_RUNNING} images run (medians)")
    for column in ("admission", "standstill, steps", "longest, steps", "all have joined after, s", "step, s"):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(row["admission"] for row in rows):
        own = [row for row in rows if row["admission"] == name]
        keys = ("standstill_steps", "longest_steps", "joined_after_s", "step_s")
        table.add_row(name, *(f"{statistics.median(row[key] for row in own):.3g}" for key in keys))
    Console().print(table)


if __name__ == "__main__":
    main()
