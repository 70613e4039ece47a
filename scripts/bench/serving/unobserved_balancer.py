"""The load balancer without metrics and traces: `python -m scripts.bench.serving.unobserved_balancer [argument ...]`.

It is what `observability` compares the product with, so it is for measurements only. The hooks through which requests
and tasks are observed are still called, and do nothing. Arrivals and starts, which the autoscaler needs, are counted.
"""

from __future__ import annotations

import sys
from typing import Any

from loadbalancer import __main__ as loadbalancer
from loadbalancer.context.request_context import RequestContext
from loadbalancer.metrics.requests import RouteMetrics
from loadbalancer.scheduling.model_statistics import ModelStatistics

#: What observes, and the beginnings of the names of its hooks.
OBSERVERS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (RouteMetrics, ("record",)),
    (RequestContext, ("on_",)),
    (ModelStatistics, ("on_end", "on_preview", "on_move", "on_worker_start")),
)


def hooks(observer: type, prefixes: tuple[str, ...]) -> list[str]:
    """Return the names of its hooks. Raises `RuntimeError` for a beginning that none has any more."""
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in vars(observer)):
            raise RuntimeError(f"{observer.__name__} has no method that begins with {prefix}")
    return [name for name in vars(observer) if name.startswith(prefixes)]


def do_nothing(*_: Any, **__: Any) -> None:
    """Observe nothing."""


if __name__ == "__main__":
    for each, start in OBSERVERS:
        for hook in hooks(each, start):
            setattr(each, hook, do_nothing)
    sys.exit(loadbalancer.main())
