"""The metrics of tasks and of worker starts, by model and by owner, from the scheduler's statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from loadbalancer.metrics.histograms import add_histogram
from loadbalancer.scheduling.histogram import Histogram
from loadbalancer.scheduling.model_statistics import ModelStatistics
from loadbalancer.scheduling.owner_usage import OwnerStatistics


class TaskHistogram(NamedTuple):
    """A histogram with one series per model."""

    name: str
    help: str
    histogram: Callable[[ModelStatistics], Histogram]


class TaskCounter(NamedTuple):
    """A counter by model and one more label: `counts` returns it by the values of this label."""

    name: str
    help: str
    label: str
    counts: Callable[[ModelStatistics], Mapping[str, float]]


HISTOGRAMS = (
    TaskHistogram(
        "muster_time_in_queue_seconds",
        "Seconds from the arrival of a task to its first assignment to a worker. slo.max_wait_s is a bucket.",
        lambda m: m.time_in_queue,
    ),
    TaskHistogram(
        "muster_queue_wait_seconds",
        "Seconds from the arrival of a task to its first step. slo.max_wait_s is a bucket.",
        lambda m: m.queue_wait,
    ),
    TaskHistogram(
        "muster_time_to_first_preview_seconds",
        "Seconds from the arrival of a task to its first preview.",
        lambda m: m.first_preview,
    ),
    TaskHistogram("muster_run_seconds", "Seconds from the first step of a task to its result.", lambda m: m.run),
    TaskHistogram(
        "muster_time_per_step_seconds", "Mean seconds of a step of a finished image or call.", lambda m: m.step
    ),
)
COUNTERS = (
    TaskCounter(
        "muster_slo_tasks",
        "Tasks that started within slo.max_wait_s (met), and those that did not (missed).",
        "result",
        lambda m: {"met": m.in_time, "missed": m.late},
    ),
    TaskCounter("muster_tasks_refused", "Tasks that were not queued.", "reason", lambda m: m.refused),
    TaskCounter("muster_task_moves", "Tasks that left a worker before their end.", "cause", lambda m: m.moves),
    TaskCounter(
        "muster_steps_redone",
        "Steps that were computed again on another worker.",
        "",
        lambda m: {"": m.steps_redone},
    ),
)


class TaskCollector(Collector):
    """Converts the statistics of the scheduler to metrics."""

    def __init__(self, statistics: Mapping[str, ModelStatistics], owners: OwnerStatistics) -> None:
        self._statistics, self._owners = statistics, owners

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration needs no values."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield one family per name."""
        models = self._statistics.items()
        promise = GaugeMetricFamily(
            "muster_slo_max_wait_seconds", "The promise: slo.max_wait_s of the model.", labels=("model",)
        )
        for model, of_model in models:
            promise.add_metric((model,), of_model.max_wait_s)
        yield promise
        for each in HISTOGRAMS:
            histogram = HistogramMetricFamily(each.name, each.help, labels=("model",))
            for model, of_model in models:
                add_histogram(histogram, (model,), each.histogram(of_model))
            yield histogram
        for counter in COUNTERS:
            labels = ("model", counter.label) if counter.label else ("model",)
            family = CounterMetricFamily(counter.name, counter.help, labels=labels)
            for model, of_model in models:
                for value, count in counter.counts(of_model).items():
                    family.add_metric((model, value)[: len(labels)], count)
            yield family
        yield self._ended()
        yield from self._starts()
        yield from self._owner_families()

    def _ended(self) -> Metric:
        ended = CounterMetricFamily(
            "muster_tasks", "Ended tasks by what they generate and by outcome.", labels=("model", "kind", "outcome")
        )
        for model, of_model in self._statistics.items():
            for (kind, outcome), count in of_model.ended.items():
                ended.add_metric((model, kind, outcome), count)
        return ended

    def _starts(self) -> Iterator[Metric]:
        seconds = HistogramMetricFamily(
            "muster_cold_start_seconds",
            "Seconds of the start of a worker. standby: it had started before, and was activated.",
            labels=("model", "standby"),
        )
        phases = CounterMetricFamily(
            "muster_cold_start_phase_seconds",
            "Seconds of the starts of workers by phase.",
            labels=("model", "standby", "phase"),
        )
        for model, of_model in self._statistics.items():
            add_histogram(seconds, (model, "false"), of_model.cold_start)
            add_histogram(seconds, (model, "true"), of_model.standby_start)
            for (standby, phase), total_s in of_model.start_phases.items():
                phases.add_metric((model, str(standby).lower(), phase), total_s)
        yield seconds
        yield phases

    def _owner_families(self) -> Iterator[Metric]:
        labels = ("model", "owner")
        work = CounterMetricFamily(
            "muster_owner_work_seconds",
            "Seconds of work of ended tasks by API key, as if each had run in a batch of one.",
            labels=labels,
        )
        tokens = CounterMetricFamily(
            "muster_owner_generated_tokens", "Generated tokens of ended tasks by API key.", labels=labels
        )
        ended = CounterMetricFamily(
            "muster_owner_tasks", "Ended tasks by API key and outcome.", labels=(*labels, "outcome")
        )
        for pair, usage in self._owners.usage.items():
            work.add_metric(pair, usage.work_s)
            tokens.add_metric(pair, usage.tokens)
            for outcome, count in usage.ended.items():
                if count:
                    ended.add_metric((*pair, outcome), count)
        yield work
        yield tokens
        yield ended
