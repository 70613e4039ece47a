"""Decides when to run the policy before its interval is over: if waiting would make requests late. Pure.

The exit of a worker is no trigger. The desired number is unchanged, so the next plan replaces the worker.
"""

from __future__ import annotations

from configs.scaling import Scaling
from controller.policies.queueing import workers_for_backlog
from controller.types import Decision, Observation, Stage, WorkerLimits

#: Minimum time between two decisions outside the tick: a lasting overload is no new event.
MIN_TRIGGER_INTERVAL_S = 5.0


def early_trigger(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, decision: Decision, decided_at: float, now: float
) -> str:
    """Return the reason to decide now; empty without one. `decision` is the last one, made at `decided_at`."""
    if observation.queue is None or decision.desired >= limits.max_workers:
        return ""
    if decision.desired == 0 and (observation.queue.queued or observation.queue.proxied_in_flight):
        return "first request"
    if now < decided_at + MIN_TRIGGER_INTERVAL_S or not _would_miss_slo(observation, scaling):
        return ""
    return (
        "backlog"
        if workers_for_backlog(observation, scaling, now) > max(decision.desired, observation.provisioned)
        else ""
    )


def _would_miss_slo(observation: Observation, scaling: Scaling) -> bool:
    """Return whether the last queued task would wait longer than `slo.max_wait_s` with the ready workers."""
    queue = observation.queue
    if queue is None or not queue.queued or (work_s := queue.divisible_work_s) is None:
        return False
    ready = sum(replica.stage is Stage.READY for replica in observation.replicas)
    max_wait_s = scaling.slo.max_wait_s
    return queue.oldest_wait_s > max_wait_s or work_s > ready * queue.worker_speed * max_wait_s
