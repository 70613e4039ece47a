"""What the dispatcher goes by beyond its own bounds: the configuration's numbers, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """Times in seconds; None turns a rule off. `configs.schema.Queue` and `Workers` say what each is for."""

    #: What one step of priority is worth in seconds of waiting.
    priority_s: float = 60.0
    #: Most that may wait per model, in seconds that its workers need for it.
    max_work_s: float | None = None
    #: A request whose estimated time is more than this many times the time that it has is refused.
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
