"""What `/metrics` tells. Gauges are computed from the hub's snapshot when they are asked for, so that they cannot
drift from the truth; counters and histograms of requests are kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wire.snapshot import ModelStats, Snapshot, WorkerState, WorkerStats

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_STATES: tuple[WorkerState, ...] = ("ready", "draining", "silent")

_OF_MODEL: dict[str, tuple[str, Callable[[ModelStats], float | None]]] = {
    "muster_queue_tasks": ("Images waiting.", lambda m: m.queued),
    "muster_running_tasks": ("Images assigned to workers.", lambda m: m.running),
    "muster_queue_work_seconds": ("What the queue would take one worker; absent until measured.", _queued_work := None)
    if False
    else ("What the queue would take one worker, in seconds; absent until measured.", lambda m: m.queued_work_s),
}
