"""The metrics of answered requests, by route."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from loadbalancer.metrics.histograms import add_histogram
from loadbalancer.scheduling.histogram import FOLD_EVERY, SECONDS, Histogram


class RouteMetrics:
    """The answered requests of one route."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        #: By status. A plain dictionary: those of `collections` add twice as slowly.
        self.counts: dict[int, int] = {}
        self.seconds = Histogram(SECONDS)

    def record(self, status: int, seconds: float) -> None:
        """Count a request that took so long."""
        counts = self.counts
        counts[status] = count = counts.get(status, 0) + 1
        self.seconds.observe(seconds)
        if not count % FOLD_EVERY:
            self.seconds.fold()


class RouteCollector(Collector):
    """Exports the metrics of all routes. A route is looked up once, and then records without its name."""

    def __init__(self) -> None:
        self._routes: dict[str, RouteMetrics] = {}

    def route(self, path: str) -> RouteMetrics:
        """Return the metrics of a route by its path, with names of parameters: one of a few."""
        found = self._routes.get(path)
        if found is None:
            found = self._routes[path] = RouteMetrics()
        return found

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration needs no values."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the families, with the routes that have answered a request."""
        requests = CounterMetricFamily("muster_http_requests", "Answered HTTP requests.", labels=("route", "status"))
        latency = HistogramMetricFamily(
            "muster_http_request_duration_seconds",
            "Seconds from the arrival of a request to the end of its response.",
            labels=("route",),
        )
        for path, route in self._routes.items():
            for status, count in route.counts.items():
                requests.add_metric((path, str(status)), count)
            if route.counts:
                add_histogram(latency, (path,), route.seconds)
        yield requests
        yield latency
