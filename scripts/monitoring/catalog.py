"""All families of `/metrics` with their types and labels, from collectors that have something to say of everything."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from configs.scaling import Scaling, Slo
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.metrics.scaling import ScalingCollector
from loadbalancer.metrics.storage import StorageCollector
from loadbalancer.metrics.tasks import TaskCollector
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduling.model_statistics import ModelStatistics
from loadbalancer.scheduling.owner_usage import OwnerStatistics
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from wire.inputs import ImageInputs, Shape
from wire.messages import StartupTimes, StepCurve, WorkerCounters
from wire.scaling import ControllerReport, DecisionRecord, DeviceRecord, MachineRecord, ModelRecord
from wire.snapshot import ModelStats, Snapshot, WorkerStats
from wire.text import TextCounters

MODEL, OWNER = "m", "key"


class Family(NamedTuple):
    """One name of `/metrics` as queries have it: that of a counter ends in `_total`."""

    name: str
    type: str
    help: str
    labels: tuple[str, ...]


def families() -> dict[str, Family]:
    """Return every family by its name."""
    return {family.name: family for family in map(_family, sample_registry().collect())}


def series(known: Iterable[Family]) -> dict[str, frozenset[str]]:
    """Return the labels of all series by name, with those that a histogram has."""
    found: dict[str, frozenset[str]] = {}
    for family in known:
        labels = frozenset(family.labels)
        if family.type == "histogram":
            found[f"{family.name}_bucket"] = labels | {"le"}
            found[f"{family.name}_sum"] = found[f"{family.name}_count"] = labels
        else:
            found[family.name] = labels
    return found


def sample_registry() -> CollectorRegistry:
    """Return a registry with one sample at least of each family."""
    curve = StepCurve(Shape("64x64", 4096), 4, [(1, 0.1)])
    metrics = Metrics(_snapshot, lambda _: [curve])
    metrics.refusals.count("head_too_large", 0.0)
    metrics.route("/v1/images/generations").record(200, 1.0)
    metrics.error("rate_limit_exceeded", 429)
    metrics.proxied(MODEL, "200")
    metrics.in_flight.add(lambda: {"tasks": 1})
    metrics.events.add(lambda: {"done": 1})
    metrics.task_failures.add(lambda: {"sweep": 0})
    texts = metrics.texts.model(MODEL)
    texts.first_token(0.1)
    texts.ended(prompt=1, cached=0, generated=2, per_token_s=0.1)
    metrics.registry.register(_tasks())
    control = ControlPlane()
    control.on_report(_report(), time.monotonic())
    metrics.registry.register(ScalingCollector(control, time.monotonic))
    metrics.registry.register(StorageCollector(lambda: 1, 1 << 20))
    return metrics.registry


def _family(metric: Metric) -> Family:
    counter = metric.type == "counter" and not metric.name.endswith("_total")
    labels = {label: None for sample in metric.samples for label in sample.labels if label != "le"}
    return Family(f"{metric.name}_total" if counter else metric.name, metric.type, metric.documentation, tuple(labels))


def _snapshot() -> Snapshot:
    model = ModelStats(MODEL, 1, 1, 1.0, 1.0, 1.0, 1.0, 4, 1.0, 1.0, 1.0, 1, 1, 1, 1, 1, 1)
    worker = WorkerStats(
        "m-0", MODEL, "sim:0", 1, "ready", 4, 1, 1, 0.1, 0.1, 2.0, 1 << 30, WorkerCounters(), text=TextCounters()
    )
    return Snapshot(0.0, 1.0, [model], [worker])


def _tasks() -> TaskCollector:
    owners = OwnerStatistics()
    statistics = ModelStatistics(MODEL, Scaling(slo=Slo(max_wait_s=5.0)), owners)
    task = Task("t", MODEL, ImageInputs("", 64, 64, 4, 7.5, 0, "ddim"), 0.0, 60.0, owner=OWNER)
    task.state, task.first_started = TaskState.DONE, 1.0
    statistics.refused["queue_full"] += 1
    statistics.on_move("worker_lost", 1)
    statistics.on_start(1.0)
    statistics.on_end(task, 2.0)
    statistics.on_worker_start("m-0", 1, StartupTimes(load_s=1.0))
    return TaskCollector({MODEL: statistics}, owners)


def _report() -> ControllerReport:
    model = ModelRecord(
        MODEL,
        1,
        4,
        2,
        2,
        1,
        1,
        0,
        "queue_depth",
        "because",
        {"queued": 1.0},
        "every device is taken",
        blocked_kind="devices",
        crashes_by_kind={"killed": 1},
    )
    decision = DecisionRecord(1, 0.0, MODEL, "tick", 1, 1, 2, True, "because", {})
    devices, machines = (DeviceRecord("sim:0", "", ()),), (MachineRecord("box", 1.0, silent=False),)
    return ControllerReport(0.0, 1.0, (model,), (), devices, None, 0, (decision,), 1, machines=machines)
