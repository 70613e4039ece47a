"""The number of traces that begin within a second is bounded."""

from __future__ import annotations

from collections import Counter

from loadbalancer.tracing.records import TraceRecord
from loadbalancer.tracing.tracer import TraceLimit, Tracer

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Sink:
    """Takes nothing."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()

    def put(self, record: TraceRecord) -> None:
        raise AssertionError(record)


def test_each_second_has_its_own_traces() -> None:
    limit = TraceLimit(2)
    assert [limit.take(now) for now in (5.0, 5.1, 5.2, 5.9, 6.0, 6.5, 6.9, 9.0)] == [
        *(True, True, False, False),
        *(True, True, False, True),
    ]


def test_requests_beyond_the_limit_are_not_sampled_and_counted() -> None:
    sink = Sink()
    tracer = Tracer(lambda caller, trace_id: True, sink, 3)
    traces = [tracer.begin("req", CALLER).trace for _ in range(50)]
    sampled = [trace is not None and trace.is_sampled for trace in traces]
    assert sampled[:3] == [True] * 3
    assert 3 <= sum(sampled) <= 6, "two seconds at most"
    assert sink.counters["traces_over_limit"] == 50 - sum(sampled)
    assert all(trace is not None and trace.trace_id in CALLER for trace in traces)


def test_unsampled_requests_take_no_part_of_the_limit() -> None:
    sink = Sink()
    tracer = Tracer(lambda caller, trace_id: caller is not None, sink, 1)
    for _ in range(20):
        tracer.begin("req", "")
    trace = tracer.begin("req", CALLER).trace
    assert trace is not None
    assert trace.is_sampled
    assert not sink.counters


def test_requests_beyond_the_limit_without_caller_have_no_trace() -> None:
    sink = Sink()
    tracer = Tracer(lambda caller, trace_id: True, sink, 3)
    contexts = [tracer.begin(f"req-{number}", "") for number in range(50)]
    traces = [context.trace for context in contexts if context.trace is not None]
    assert 3 <= len(traces) <= 6, "two seconds at most"
    assert all(trace.is_sampled for trace in traces)
    assert sink.counters["traces_over_limit"] == 50 - len(traces)
    assert [context.request_id for context in contexts] == [f"req-{number}" for number in range(50)]


def test_requests_that_the_sampler_leaves_out_are_not_over_the_limit() -> None:
    sink = Sink()
    chosen = iter([True] * 4 + [False] * 50)
    tracer = Tracer(lambda caller, trace_id: next(chosen), sink, 3)
    sampled = [trace for _ in range(50) if (trace := tracer.begin("req", "").trace) is not None and trace.is_sampled]
    assert len(sampled) + sink.counters["traces_over_limit"] == 4
