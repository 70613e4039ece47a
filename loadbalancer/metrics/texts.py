"""The metrics of language models: tokens, times to and between them, and the key-value caches of the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from loadbalancer.metrics.counts import CounterCollector
from loadbalancer.metrics.histograms import HistogramCollector
from wire.snapshot import Snapshot
from wire.text import TextCounters

_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
_WORKER_LABELS = ("worker", "model", "device")


class TextMetric(NamedTuple):
    """A gauge or counter with one value per worker of a language model."""

    name: str
    help: str
    value: Callable[[TextCounters], float]


TEXT_GAUGES = (
    TextMetric("muster_worker_cache_blocks", "Blocks of the key-value cache.", lambda t: t.blocks),
    TextMetric("muster_worker_cache_used_blocks", "Blocks that running texts use.", lambda t: t.used_blocks),
)
TEXT_COUNTERS = (
    TextMetric("muster_worker_prompt_tokens", "Tokens of prompts.", lambda t: t.prompt_tokens),
    TextMetric("muster_worker_cached_tokens", "Of these, found in the prefix cache.", lambda t: t.cached_tokens),
    TextMetric("muster_worker_generated_tokens", "Generated tokens.", lambda t: t.generated_tokens),
    TextMetric(
        "muster_worker_recomputed_tokens",
        "Tokens computed again because their blocks were taken.",
        lambda t: t.recomputed_tokens,
    ),
    TextMetric("muster_worker_prefill_seconds", "Seconds of steps spent on prompts.", lambda t: t.prefill_s),
    TextMetric("muster_worker_decode_seconds", "Seconds of steps spent on generated tokens.", lambda t: t.decode_s),
)


class TextMetrics:
    """Counters and histograms of texts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._first_token = HistogramCollector(
            "muster_time_to_first_token_seconds",
            "Seconds from the arrival of a text task to its first token.",
            "model",
            _FIRST_TOKEN_SECONDS,
        )
        self._per_token = HistogramCollector(
            "muster_time_per_output_token_seconds",
            "Mean seconds between two tokens of a finished text.",
            "model",
            _TOKEN_SECONDS,
        )
        self._tokens = CounterCollector(
            "muster_tokens",
            "Tokens of prompts, of prompts found in the prefix cache, and of results.",
            ("model", "kind"),
        )
        registry.register(self._tokens)
        registry.register(self._first_token)
        registry.register(self._per_token)

    def first_token(self, model: str, seconds: float) -> None:
        """Record the time from the arrival of a text task to its first token."""
        self._first_token.observe(model, seconds)

    def ended(self, model: str, *, prompt: int, cached: int, generated: int, per_token_s: float | None) -> None:
        """Record the tokens of a text that has ended. `per_token_s`: mean time between two of its tokens."""
        for kind, tokens in (("prompt", prompt - cached), ("cached_prompt", cached), ("generated", generated)):
            self._tokens.add(model, kind, count=tokens)
        if per_token_s is not None:
            self._per_token.observe(model, per_token_s)


def text_workers(now: Snapshot) -> Iterator[Metric]:
    """Yield a family per name, with a value for each worker of a language model."""
    for of_text in TEXT_GAUGES:
        yield _per_text_worker(GaugeMetricFamily(of_text.name, of_text.help, labels=_WORKER_LABELS), of_text, now)
    for of_text in TEXT_COUNTERS:
        counter = CounterMetricFamily(of_text.name, of_text.help, labels=_WORKER_LABELS)
        yield _per_text_worker(counter, of_text, now)


def _per_text_worker(
    family: GaugeMetricFamily | CounterMetricFamily, of_text: TextMetric, now: Snapshot
) -> GaugeMetricFamily | CounterMetricFamily:
    for worker in now.workers:
        if worker.text is not None:
            family.add_metric((worker.worker, worker.model, worker.device), of_text.value(worker.text))
    return family
