"""The metrics of the present: gauges and counters from the scheduler's snapshot at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from loadbalancer.metrics.texts import text_workers
from wire.messages import StepCurve
from wire.snapshot import ModelStats, Snapshot, WorkerState, WorkerStats

_STATES: tuple[WorkerState, ...] = ("ready", "draining", "silent", "stuck")
_WORKER_LABELS = ("worker", "model", "device")

#: Shapes of one model that are exported, those first that were first. Measured ones come before those of requests.
MAX_SHAPES = 32

#: A model's measured curves, one per shape.
Curves = Callable[[str], Sequence[StepCurve]]


class ModelMetric(NamedTuple):
    """A gauge or counter with one value per model; a value of None is not exported."""

    name: str
    help: str
    value: Callable[[ModelStats], float | None]


class WorkerMetric(NamedTuple):
    """A gauge or counter with one value per worker."""

    name: str
    help: str
    value: Callable[[WorkerStats], float]


MODEL_GAUGES = (
    ModelMetric("muster_queue_tasks", "Tasks waiting.", lambda m: m.queued),
    ModelMetric("muster_running_tasks", "Tasks assigned to workers.", lambda m: m.running),
    ModelMetric("muster_queue_work_seconds", "Seconds of work of the queued tasks.", lambda m: m.queued_work_s),
    ModelMetric("muster_queue_oldest_seconds", "Age of the oldest waiting task.", lambda m: m.oldest_wait_s),
    ModelMetric(
        "muster_work_seconds",
        "Seconds of work of all queued and running tasks on one worker.",
        lambda m: m.backlog_work_s,
    ),
    ModelMetric(
        "muster_mean_work_seconds", "Mean seconds of work of the last 200 requested tasks.", lambda m: m.mean_work_s
    ),
    ModelMetric(
        "muster_arrivals_per_second", "Requested tasks per second over the last minute.", lambda m: m.arrival_rate
    ),
    ModelMetric(
        "muster_completions_per_second", "Finished tasks per second over the last minute.", lambda m: m.service_rate
    ),
)
MODEL_COUNTERS = (
    ModelMetric("muster_tasks_started", "Tasks whose first run on a worker has started.", lambda m: m.started_total),
    ModelMetric(
        "muster_tasks_started_late",
        "Started tasks that had waited longer than slo.max_wait_s.",
        lambda m: m.started_late_total,
    ),
    ModelMetric("muster_tasks_proxied", "Tasks sent to the model's cold_start_proxy.", lambda m: m.proxied_total),
)
WORKER_GAUGES = (
    WorkerMetric("muster_worker_slots", "Maximum tasks that the worker accepts.", lambda w: w.slots),
    WorkerMetric("muster_worker_tasks", "Tasks assigned to the worker.", lambda w: w.assigned + w.running),
    WorkerMetric("muster_worker_batch", "Mean batch size of recent steps.", lambda w: w.batch),
    WorkerMetric("muster_worker_step_seconds", "Mean duration of recent steps.", lambda w: w.step_s),
    WorkerMetric("muster_worker_memory_bytes", "Memory in use on the worker's device.", lambda w: w.memory_bytes),
    WorkerMetric(
        "muster_worker_last_message_age_seconds", "Seconds since its last message.", lambda w: w.last_message_age_s
    ),
)
WORKER_COUNTERS = (
    WorkerMetric("muster_worker_steps", "Completed steps.", lambda w: w.counters.steps),
    WorkerMetric("muster_worker_rows", "Batch sizes summed over all steps.", lambda w: w.counters.rows),
    WorkerMetric("muster_worker_busy_seconds", "Seconds spent in steps.", lambda w: w.counters.step_s),
    WorkerMetric(
        "muster_worker_mid_batch_joins", "Tasks that joined a running batch.", lambda w: w.counters.joined_midway
    ),
    WorkerMetric("muster_worker_out_of_memory", "Batches that ran out of memory.", lambda w: w.counters.out_of_memory),
    WorkerMetric("muster_worker_finished", "Finished tasks.", lambda w: w.counters.finished),
    WorkerMetric("muster_worker_failed", "Failed tasks.", lambda w: w.counters.failed),
    WorkerMetric(
        "muster_worker_received_bytes",
        "Bytes from the worker: results, previews, checkpoints, headers.",
        lambda w: w.received_bytes,
    ),
    WorkerMetric(
        "muster_worker_sent_bytes", "Bytes to the worker: source images, checkpoints, headers.", lambda w: w.sent_bytes
    ),
    WorkerMetric(
        "muster_worker_malformed_messages", "Malformed messages to the worker.", lambda w: w.counters.malformed
    ),
)


class SnapshotCollector(Collector):
    """Converts the scheduler's snapshot and step curves to metrics."""

    def __init__(self, snapshot: Callable[[], Snapshot], curves: Curves) -> None:
        self._snapshot = snapshot
        self._curves = curves
        #: Models and shapes that have been exported. Clients choose the sizes of images, so there may be any.
        self._shapes: dict[str, set[str]] = {}

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration needs no running scheduler."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield one family per name."""
        now = self._snapshot()
        yield GaugeMetricFamily("muster_uptime_seconds", "Seconds since the balancer started.", value=now.uptime_s)
        for of_model in MODEL_GAUGES:
            yield _per_model(GaugeMetricFamily(of_model.name, of_model.help, labels=("model",)), of_model, now)
        for of_model in MODEL_COUNTERS:
            yield _per_model(CounterMetricFamily(of_model.name, of_model.help, labels=("model",)), of_model, now)
        yield from _measured({model.model: self._bounded_curves(model.model) for model in now.models})
        yield _workers(now)
        yield _starts(now)
        for of_worker in WORKER_GAUGES:
            yield _per_worker(GaugeMetricFamily(of_worker.name, of_worker.help, labels=_WORKER_LABELS), of_worker, now)
        yield from text_workers(now)
        for of_worker in WORKER_COUNTERS:
            family = CounterMetricFamily(of_worker.name, of_worker.help, labels=_WORKER_LABELS)
            yield _per_worker(family, of_worker, now)

    def _bounded_curves(self, model: str) -> Sequence[StepCurve]:
        """Return the curves of the first shapes."""
        shapes, curves = self._shapes.setdefault(model, set()), self._curves(model)
        for curve in curves:
            if len(shapes) < MAX_SHAPES:
                shapes.add(curve.shape.key)
        return [curve for curve in curves if curve.shape.key in shapes]


def _measured(curves: Mapping[str, Sequence[StepCurve]]) -> Iterator[Metric]:
    """Yield the step times and batch caps by model and shape."""
    seconds = GaugeMetricFamily(
        "muster_step_seconds", "Measured duration of a step by batch size.", labels=("model", "shape", "batch")
    )
    caps = GaugeMetricFamily("muster_batch_cap", "Maximum tasks per step.", labels=("model", "shape"))
    for model, own in curves.items():
        for curve in own:
            caps.add_metric((model, curve.shape.key), curve.cap)
            for batch, step_s in curve.points:
                seconds.add_metric((model, curve.shape.key, str(batch)), step_s)
    yield seconds
    yield caps


def _workers(now: Snapshot) -> Metric:
    family = GaugeMetricFamily("muster_workers", "Connected workers.", labels=("model", "state"))
    counts = Counter((worker.model, worker.state) for worker in now.workers)
    for model in now.models:
        for state in _STATES:
            family.add_metric((model.model, state), counts[model.model, state])
    return family


def _starts(now: Snapshot) -> Metric:
    family = GaugeMetricFamily(
        "muster_worker_start_seconds", "Startup time of the worker, by phase.", labels=(*_WORKER_LABELS, "part")
    )
    for worker in now.workers:
        for part in ("spawn", "import", "load", "device", "warm_up"):
            seconds = getattr(worker.start, f"{part}_s")
            family.add_metric((worker.worker, worker.model, worker.device, part), seconds)
    return family


def _per_model(
    family: GaugeMetricFamily | CounterMetricFamily, of_model: ModelMetric, now: Snapshot
) -> GaugeMetricFamily | CounterMetricFamily:
    for model in now.models:
        value = of_model.value(model)
        if value is not None:
            family.add_metric((model.model,), value)
    return family


def _per_worker(
    family: GaugeMetricFamily | CounterMetricFamily, of_worker: WorkerMetric, now: Snapshot
) -> GaugeMetricFamily | CounterMetricFamily:
    for worker in now.workers:
        family.add_metric((worker.worker, worker.model, worker.device), of_worker.value(worker))
    return family
