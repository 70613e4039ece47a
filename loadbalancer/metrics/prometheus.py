"""The registry of `/metrics`, with the counters and histograms of requests.

Gauges are computed from the scheduler's snapshot at each scrape, so they have no state of their own.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from loadbalancer.metrics.build import BuildCollector
from loadbalancer.metrics.counts import CountCollector, CounterCollector
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.metrics.requests import RouteCollector
from loadbalancer.metrics.snapshot import Curves, SnapshotCollector
from loadbalancer.metrics.texts import TextMetrics
from wire.snapshot import Snapshot


class Metrics:
    """Counters and histograms of requests and images, with their registry."""

    def __init__(self, snapshot: Callable[[], Snapshot], curves: Curves) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(SnapshotCollector(snapshot, curves))
        self.registry.register(BuildCollector())
        ProcessCollector(registry=self.registry)
        self.refusals = RefusalCounter()
        self.in_flight = CountCollector(
            GaugeMetricFamily,
            "muster_in_flight",
            "Requests, tasks and jobs in flight by kind: all 0 on an idle server.",
            "kind",
        )
        self.task_failures = CountCollector(
            CounterMetricFamily, "muster_background_task_failures", "Unexpected errors of background tasks.", "task"
        )
        self.events = CountCollector(
            CounterMetricFamily, "muster_events", "Tasks, jobs and webhooks by outcome, and incidents.", "event"
        )
        refusals = CountCollector(
            CounterMetricFamily,
            "muster_http_refusals",
            "Requests and connections refused before the application.",
            "reason",
        )
        refusals.add(lambda: self.refusals.counts)
        for collector in (self.in_flight, self.task_failures, self.events, refusals):
            self.registry.register(collector)
        self._errors = CounterCollector(
            "muster_http_errors", "Error responses by the code in their body.", ("code", "status")
        )
        self._proxied = CounterCollector(
            "muster_proxied_requests", "Requests sent to another server, by outcome.", ("model", "outcome")
        )
        self._routes = RouteCollector()
        for collected in (self._routes, self._errors, self._proxied):
            self.registry.register(collected)
        #: The metrics of a route, by its path.
        self.route = self._routes.route
        self.texts = TextMetrics(self.registry)

    def proxied(self, model: str, outcome: str) -> None:
        """Count a request that was sent to another server."""
        self._proxied.add(model, outcome)

    def error(self, code: str | None, status: int) -> None:
        """Record an error response. `code` is one of the API's constants, never text of a client."""
        self._errors.add(code or "", status)
