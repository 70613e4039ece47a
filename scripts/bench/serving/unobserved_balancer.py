"""The load balancer without metrics and traces: `python -m scripts.bench.serving.unobserved_balancer [argument ...]`.

It is what `observability` compares the product with, so it is for measurements only. The hooks through which requests
and tasks are observed are still called, and do nothing. What the autoscaler needs is counted elsewhere, and stays.
"""

from __future__ import annotations

import sys
from typing import Any

from loadbalancer import __main__ as loadbalancer
from loadbalancer.context.request_context import RequestContext
from loadbalancer.metrics.requests import RouteMetrics
from loadbalancer.scheduling.model_statistics import ModelStatistics

#: What observes, and the beginning of the names of its hooks.
OBSERVERS: tuple[tuple[type, str], ...] = (
    (RouteMetrics, "record"),
    (RequestContext, "on_"),
    (ModelStatistics, "on_"),
)


def hooks(observer: type, prefix: str) -> list[str]:
    """Return the names of its hooks. Raises `RuntimeError` for one that has none any more."""
    found = [name for name in vars(observer) if name.startswith(prefix)]
    if not found:
        raise RuntimeError(f"{observer.__name__} has no method that begins with {prefix}")
    return found


def do_nothing(*_: Any, **__: Any) -> None:
    """Observe nothing."""


if __name__ == "__main__":
    for each, start in OBSERVERS:
        for hook in hooks(each, start):
            setattr(each, hook, do_nothing)
    sys.exit(loadbalancer.main())
