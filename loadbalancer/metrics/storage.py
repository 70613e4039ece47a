"""How full the database of jobs is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class StorageCollector(Collector):
    """Bytes in use, and how many may be."""

    def __init__(self, used_bytes: Callable[[], int], max_bytes: int | None) -> None:
        """`used_bytes` is called at each scrape, and must not block. `max_bytes`: None without a limit."""
        self._used_bytes, self._max_bytes = used_bytes, max_bytes

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration needs no database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        yield GaugeMetricFamily(
            "muster_jobs_storage_bytes",
            "Bytes of jobs and results in the database, without its free pages.",
            value=self._used_bytes(),
        )
        if self._max_bytes is not None:
            yield GaugeMetricFamily(
                "muster_jobs_storage_limit_bytes",
                "Maximum size of the database: jobs.max_file_bytes. Absent without a limit.",
                value=self._max_bytes,
            )
