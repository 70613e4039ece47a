"""The version of the program, as a label."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wire.messages import PROTOCOL


def muster_version() -> str:
    """Return the version of the installed package; `unknown` in a checkout that is not installed."""
    try:
        return metadata.version("muster")
    except metadata.PackageNotFoundError:
        return "unknown"


class BuildCollector(Collector):
    """Always 1."""

    def __init__(self) -> None:
        self._family = GaugeMetricFamily(
            "muster_build_info",
            "Version of the server and of Python, and the protocol of its workers.",
            labels=("version", "python", "protocol"),
        )
        self._family.add_metric((muster_version(), platform.python_version(), str(PROTOCOL)), 1)

    def describe(self) -> Iterator[Metric]:
        """Return nothing: there is no other metric of this name."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        yield self._family
