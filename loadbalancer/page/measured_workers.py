"""The workers that a model really had, at the points of time of a simulation. Pure."""

from __future__ import annotations

from typing import NamedTuple

from loadbalancer.page.history import Points


class MeasuredWorkers(NamedTuple):
    """Ready and starting workers at each point, None where unknown."""

    workers: list[float | None]
    #: Hours of all workers in the known part, and the share of the time that is known.
    worker_hours: float
    known_share: float


def measured_workers(past: Points, start: float, step_s: float, points: int) -> MeasuredWorkers:
    """Average the past over `points` steps of `step_s` seconds that begin at `start`, in Unix time."""
    sums, counts = [0.0] * points, [0] * points
    total_s, known = 0.0, 0
    for at, ready, starting in zip(past.times, past.columns["ready"], past.columns["starting"], strict=True):
        index = int((at - start) // step_s)
        if 0 <= index < points and ready is not None and starting is not None:
            sums[index] += ready + starting
            counts[index] += 1
            total_s += (ready + starting) * past.step_s
            known += 1
    means = [round(one / count, 2) if count else None for one, count in zip(sums, counts, strict=True)]
    return MeasuredWorkers(means, total_s / 3600, min(known * past.step_s / (points * step_s), 1.0))
