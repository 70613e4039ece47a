"""The load balancer whose hooks are switched on and off while it serves: for `paired_observability`.

The variable `BENCH_SWITCH` holds a `SwitchPlan` as JSON. Once enough tasks have started, it measures pairs of windows,
one with the hooks and one without, in random order, and writes them to a file. Both windows of
a pair belong to one process and to the same moment, so their difference is that of the hooks. `metrics` switches the
methods that `unobserved_balancer` replaces, and histograms. A method that does nothing still takes 50 ns. `traces` and
`access` switch what each request is recorded with.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadbalancer import __main__ as loadbalancer
from loadbalancer.api.request_recorder import RequestRecorder
from loadbalancer.context.request_context import RequestContext
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.histogram import Histogram
from scripts.bench.serving.unobserved_balancer import OBSERVERS, do_nothing, hooks

VARIABLE = "BENCH_SWITCH"
#: After the switch, until the interpreter has specialized its code again.
_SETTLE_S = 0.05
_POLL_S = 0.1
#: Started tasks before the first window.
_WARM_UP_TASKS = 5000

SwitchName = Literal["metrics", "traces", "access"]
Switch = Callable[[bool], None]


class SwitchPlan(msgspec.Struct, frozen=True):
    """What is switched, for how many pairs of windows of how many seconds."""

    switch: SwitchName
    pairs: int
    window_s: float
    #: The file of the windows.
    out: str
    seed: int = 1


class Window(msgspec.Struct, frozen=True):
    """Requests of one window, and the CPU seconds of the thread of the event loop and of the process."""

    is_on: bool
    requests: int
    loop_s: float
    process_s: float


def metrics_switch() -> Switch:
    """Return what replaces the hooks of metrics by what does nothing, and puts them back.

    It switches the histograms that are made until it is called, but for those that the autoscaler reads.
    """
    real = [(observer, name, vars(observer)[name]) for observer, start in OBSERVERS for name in hooks(observer, start)]
    made: list[Histogram] = []
    build = Histogram.__init__

    def init(self: Histogram, bounds: Iterable[float]) -> None:
        build(self, bounds)
        if type(self) is Histogram:
            made.append(self)

    setattr(Histogram, "__init__", init)  # noqa: B010 - mypy forbids an assignment

    def turn(on: bool) -> None:
        setattr(Histogram, "__init__", build)  # noqa: B010
        for histogram in made:
            histogram.observe = histogram._new.append if on else callable
        for observer, name, method in real:
            setattr(observer, name, method if on else do_nothing)

    return turn


def recorder_switch() -> Switch:
    """Return what switches all recorders that are made from now on, and what contexts note for them."""
    notes = [(name, vars(RequestContext)[name]) for name in hooks(RequestContext, ("on_",))]
    made: list[tuple[RequestRecorder, dict[str, Any]]] = []
    build = RequestRecorder.__init__

    def init(self: RequestRecorder, *args: Any) -> None:
        build(self, *args)
        made.append((self, dict(vars(self))))

    setattr(RequestRecorder, "__init__", init)  # noqa: B010 - mypy forbids an assignment
    off = vars(RequestRecorder())
    made.clear()

    def turn(on: bool) -> None:
        for recorder, own in made:
            vars(recorder).update(own if on else off)
        for name, method in notes:
            setattr(RequestContext, name, method if on else do_nothing)

    return turn


def started_tasks(scheduler: SchedulerService) -> int:
    return sum(model.started_total for model in scheduler.snapshot().models)


async def measure(scheduler: SchedulerService, turn: Switch, plan: SwitchPlan) -> None:
    """Wait for the load, measure all windows and write them."""
    while started_tasks(scheduler) < _WARM_UP_TASKS:
        await asyncio.sleep(_POLL_S)
    order, windows = random.Random(plan.seed), []
    for _ in range(plan.pairs):
        first = order.random() < 0.5
        windows += [await _window(scheduler, turn, plan.window_s, on=on) for on in (first, not first)]
    out, part = Path(plan.out), Path(f"{plan.out}.part")
    part.write_bytes(msgspec.json.encode(windows))
    part.rename(out)


async def _window(scheduler: SchedulerService, turn: Switch, window_s: float, *, on: bool) -> Window:
    turn(on)
    await asyncio.sleep(_SETTLE_S)
    count, loop_s, process_s = started_tasks(scheduler), time.thread_time(), time.process_time()
    await asyncio.sleep(window_s)
    loop_s, process_s = time.thread_time() - loop_s, time.process_time() - process_s
    return Window(on, started_tasks(scheduler) - count, loop_s, process_s)


def run(plan: SwitchPlan) -> int:
    """Serve, and measure as soon as there is load. Return the exit status."""
    turn = metrics_switch() if plan.switch == "metrics" else recorder_switch()
    start = SchedulerService.start
    tasks: set[asyncio.Task[None]] = set()

    async def measured_start(self: SchedulerService) -> None:
        await start(self)
        tasks.add(asyncio.create_task(measure(self, turn, plan)))

    setattr(SchedulerService, "start", measured_start)  # noqa: B010 - mypy forbids an assignment
    return loadbalancer.main()


if __name__ == "__main__":
    sys.exit(run(msgspec.json.decode(os.environ.pop(VARIABLE), type=SwitchPlan)))
