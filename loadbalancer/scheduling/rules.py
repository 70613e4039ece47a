"""What the dispatcher goes by beyond its own bounds: the configuration's numbers, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from configs.scaling import Scaling
from configs.settings import Settings


@dataclass(frozen=True, slots=True)
class ArrivalWindows:
    """What is watched of a model's arrivals, for scaling. Times in seconds; `configs.scaling` says what each is for."""

    look_back_s: float = 90.0
    rate_window_s: float = 900.0
    #: A task that waited longer than this for its first step was late.
    max_wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds; None turns a rule off. `configs.settings.Queue` and `Workers` say what each is for."""

    #: What one step of priority is worth in seconds of waiting.
    priority_s: float = 60.0
    #: Most that may wait per model, in seconds that its workers need for it.
    max_work_s: float | None = None
    #: A request whose estimated time is more than this many times the time that it has is refused. None: nor is one
    #: that waited until it was too late to begin with it given up before its time.
    deadline_slack: float | None = 1.5
    #: A waiting task displaces a running one of its owner whose priority is lower by this much.
    preempt_margin: int | None = 1
    #: Whether running tasks are spread over workers that have come or become idle.
    rebalance: bool = True
    #: Models whose running tasks stay where they are.
    unmoved: frozenset[str] = frozenset()
    #: A worker that makes no step for this many times its step time, and for `stuck_min_s`, is stuck.
    stuck_factor: float = 20.0
    stuck_min_s: float = 120.0
    #: Whether the end of each task is told for the record of arrivals.
    record: bool = False
    #: Of each model; the usual where it is not listed.
    watch: Mapping[str, ArrivalWindows] = field(default_factory=dict)


def rules_of(settings: Settings, *, record: bool) -> Rules:
    """The dispatcher's part of the configuration; `record`: the ends of tasks are told."""
    queue, workers = settings.queue, settings.workers
    return Rules(
        priority_s=queue.priority_s,
        max_work_s=queue.max_work_s,
        deadline_slack=queue.deadline_slack,
        preempt_margin=queue.preempt_margin,
        rebalance=queue.rebalance,
        # A grouped batch takes nobody in before all have left it: a place freed in it helps nobody.
        unmoved=frozenset(name for name, model in settings.models.items() if model.batching.mode == "grouped"),
        stuck_factor=workers.stuck_factor,
        stuck_min_s=workers.stuck_min_s,
        record=record,
        watch={name: _watch(settings.scaling(name)) for name in settings.models},
    )


def _watch(scaling: Scaling) -> ArrivalWindows:
    return ArrivalWindows(scaling.look_back_period_s, scaling.rate_window_s, scaling.slo.max_wait_s)
