"""The metrics of language models: tokens, times to and between them, and the key-value caches of the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from loadbalancer.metrics.histograms import HistogramCollector
from loadbalancer.scheduling.histogram import FOLD_EVERY, Histogram
from wire.batch_sizes import BATCH_SIZES
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


class ModelTexts:
    """Counts the texts of one model."""

    def __init__(self, first_token: Histogram, per_token: Histogram) -> None:
        self._first_token, self._per_token = first_token, per_token
        self._begun = 0
        #: Of the texts that have ended, by kind.
        self.tokens = dict.fromkeys(("prompt", "cached_prompt", "generated"), 0)

    def first_token(self, seconds: float) -> None:
        """Record the time from the arrival of a text task to its first token."""
        self._first_token.observe(seconds)
        self._begun += 1
        if not self._begun % FOLD_EVERY:
            self._first_token.fold()
            self._per_token.fold()

    def ended(self, *, prompt: int, cached: int, generated: int, per_token_s: float | None) -> None:
        """Record the tokens of a text that has ended. `per_token_s`: mean time between two of its tokens."""
        tokens = self.tokens
        tokens["prompt"] += prompt - cached
        tokens["cached_prompt"] += cached
        tokens["generated"] += generated
        if per_token_s is not None:
            self._per_token.observe(per_token_s)


class TextMetrics(Collector):
    """Counters and histograms of texts. A model is looked up once for a request."""

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
        self._models: dict[str, ModelTexts] = {}
        for collector in (self, self._first_token, self._per_token):
            registry.register(collector)

    def model(self, model: str) -> ModelTexts:
        """Return what counts the texts of this model."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelTexts(self._first_token.of(model), self._per_token.of(model))
        return found

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration needs no values."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the tokens; the histograms are collected by themselves."""
        family = CounterMetricFamily(
            "muster_tokens",
            "Tokens of prompts, of prompts found in the prefix cache, and of results.",
            labels=("model", "kind"),
        )
        for model, texts in self._models.items():
            for kind, tokens in texts.tokens.items():
                family.add_metric((model, kind), tokens)
        yield family


def text_workers(now: Snapshot) -> Iterator[Metric]:
    """Yield a family per name, with a value for each worker of a language model."""
    for of_text in TEXT_GAUGES:
        yield _per_text_worker(GaugeMetricFamily(of_text.name, of_text.help, labels=_WORKER_LABELS), of_text, now)
    for of_text in TEXT_COUNTERS:
        counter = CounterMetricFamily(of_text.name, of_text.help, labels=_WORKER_LABELS)
        yield _per_text_worker(counter, of_text, now)
    yield _prefill_batches(now)


def _prefill_batches(now: Snapshot) -> Metric:
    family = HistogramMetricFamily(
        "muster_worker_prefill_batch_prompts",
        "Prompts, or parts of them, that were computed in the same step. Steps without prompts are left out.",
        labels=_WORKER_LABELS,
    )
    bounds = [*map(floatToGoString, BATCH_SIZES), "+Inf"]
    for worker in now.workers:
        if worker.text is not None:
            sizes = worker.text.prefill_batches
            buckets = list(zip(bounds, accumulate(sizes.steps), strict=True))
            family.add_metric((worker.worker, worker.model, worker.device), buckets, sizes.rows)
    return family


def _per_text_worker(
    family: GaugeMetricFamily | CounterMetricFamily, of_text: TextMetric, now: Snapshot
) -> GaugeMetricFamily | CounterMetricFamily:
    for worker in now.workers:
        if worker.text is not None:
            family.add_metric((worker.worker, worker.model, worker.device), of_text.value(worker.text))
    return family
