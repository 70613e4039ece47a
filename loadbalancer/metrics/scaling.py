"""Scaling metrics of `/metrics`, from the controller's reports. They are absent without a controller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from loadbalancer.scaling.control_plane import ControlPlane
from wire.scaling import ControllerReport, ModelRecord


class ScalingMetric(NamedTuple):
    """A gauge with one value per model."""

    name: str
    help: str
    value: Callable[[ModelRecord], float]


GAUGES = (
    ScalingMetric("muster_workers_desired", "Desired number of workers.", lambda m: m.desired),
    ScalingMetric(
        "muster_workers_provisioned", "Workers that are ready, starting or to be replaced.", lambda m: m.provisioned
    ),
    ScalingMetric("muster_workers_ready", "Ready workers.", lambda m: m.ready),
    ScalingMetric("muster_workers_starting", "Workers that start.", lambda m: m.starting),
    ScalingMetric("muster_workers_draining", "Workers that finish their tasks, then end.", lambda m: m.draining),
    ScalingMetric("muster_workers_standby", "Standby processes.", lambda m: m.spares),
    ScalingMetric("muster_workers_min", "Minimum number of workers.", lambda m: m.min_workers),
    ScalingMetric("muster_workers_max", "Maximum number of workers.", lambda m: m.max_workers),
    ScalingMetric(
        "muster_scaling_override",
        "1 while an operator override sets the number of workers.",
        lambda m: m.override is not None,
    ),
    ScalingMetric(
        "muster_scaling_blocked", "1 while workers of the model cannot be placed.", lambda m: bool(m.blocked_reason)
    ),
    ScalingMetric(
        "muster_model_cannot_start", "1 while the workers of the model fail to start.", lambda m: bool(m.cannot_start)
    ),
    ScalingMetric("muster_worker_consecutive_crashes", "Crashes in a row.", lambda m: m.crashes),
)


class ScalingCollector(Collector):
    """Converts the controller's reports to metrics."""

    def __init__(self, control: ControlPlane, clock: Callable[[], float]) -> None:
        """`clock` must be the clock of `control`."""
        self._control = control
        self._clock = clock

    def describe(self) -> Iterator[Metric]:
        """Return nothing: there may be no report yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield one family per name."""
        report = self._control.report(self._clock())
        yield GaugeMetricFamily("muster_controller_up", "1 while a controller reports.", value=report is not None)
        yield _decisions(self._control)
        if report is None:
            return
        paused = report.paused_since is not None
        yield GaugeMetricFamily("muster_scaling_paused", "1 while scaling is paused by a command.", value=paused)
        yield CounterMetricFamily(
            "muster_worker_swaps", "Workers drained to make room for another model.", value=report.swaps
        )
        for gauge in GAUGES:
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=("model",))
            for model in report.models:
                family.add_metric((model.model,), gauge.value(model))
            yield family
        yield from _crashes_and_blocked(report)
        inputs = GaugeMetricFamily(
            "muster_decision_input", "Inputs of the last scaling decision.", labels=("model", "input")
        )
        for model in report.models:
            for name, value in model.inputs.items():
                inputs.add_metric((model.model, name), value)
        yield inputs
        faults = GaugeMetricFamily(
            "muster_device_unhealthy", "1 while no worker is started on the device.", labels=("device",)
        )
        for device in report.devices:
            faults.add_metric((device.device,), bool(device.unhealthy_reason))
        yield faults
        machines = GaugeMetricFamily(
            "muster_machine_unused", "1 while no worker is started on the machine.", labels=("machine",)
        )
        for machine in report.machines:
            machines.add_metric((machine.machine,), bool(machine.unused_reason))
        yield machines


def _crashes_and_blocked(report: ControllerReport) -> Iterator[Metric]:
    text = (
        "Crashed workers by kind: start_failed, unresponsive (silent or stuck, so that the controller killed it), "
        "killed (by something else, as if main memory is short), signal, exit_status or unknown."
    )
    crashes = CounterMetricFamily("muster_worker_crashes", text, labels=("model", "kind"))
    blocked = GaugeMetricFamily(
        "muster_scaling_blocked_kind",
        "1 while workers of the model cannot be placed, by the kind of the reason.",
        labels=("model", "kind"),
    )
    for model in report.models:
        for kind, count in sorted(model.crashes_by_kind.items()):
            crashes.add_metric((model.model, kind), count)
        if model.blocked_kind:
            blocked.add_metric((model.model, model.blocked_kind), 1)
    yield crashes
    yield blocked


def _decisions(control: ControlPlane) -> Metric:
    family = CounterMetricFamily("muster_decisions", "Scaling decisions by direction.", labels=("model", "direction"))
    for (model, direction), count in sorted(control.directions.items()):
        family.add_metric((model, direction), count)
    return family
