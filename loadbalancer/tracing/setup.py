"""Turns tracing on, as the variables of OpenTelemetry (`OTEL_*`) say."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Mapping

from loadbalancer.context.trace_context import TraceContext
from loadbalancer.tracing.tracer import Sampler

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
#: What to install for them.
_DISTRIBUTIONS = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")
_HTTP = "http/protobuf"


def is_requested(environment: Mapping[str, str]) -> bool:
    """Return whether a collector is named, and traces for it are not turned off."""
    if not any(environment.get(name, "").strip() for name in _ENDPOINTS):
        return False
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not is_disabled and environment.get("OTEL_TRACES_EXPORTER", "otlp").strip() not in ("none", "")


def blocked_reason(environment: Mapping[str, str]) -> str:
    """Return why no traces can be sent although they are requested; empty if they can."""
    endpoint = next(name for name in _ENDPOINTS if environment.get(name, "").strip())
    if not all(map(_is_installed, _PACKAGES)):
        install = f"{sys.executable} -m pip install {' '.join(_DISTRIBUTIONS)}"
        return f"{endpoint} is set, but the packages of OpenTelemetry are missing: {install}"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp").strip()
    if exporter != "otlp":
        return f"OTEL_TRACES_EXPORTER is {exporter!r}; possible are 'otlp' and 'none'"
    for name in _PROTOCOLS:
        protocol = environment.get(name, "").strip()
        if protocol not in ("", _HTTP):
            return f"{name} is {protocol!r}; only {_HTTP!r} is possible"
    return ""


def sampler_of(environment: Mapping[str, str]) -> Sampler:
    """Return the sampler that `OTEL_TRACES_SAMPLER` names; without it, each trace is written unless its client says no.

    The packages of OpenTelemetry must be installed. They read the variables of this process.
    """
    if environment.get("OTEL_TRACES_SAMPLER", "").strip() in ("", "parentbased_always_on"):
        return _follow_caller
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import Decision
    from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

    sampler = TracerProvider(shutdown_on_exit=False).sampler

    def is_sampled(caller: TraceContext | None, trace_id: str) -> bool:
        parent = None
        if caller is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if caller.is_sampled else TraceFlags.DEFAULT)
            span = SpanContext(int(caller.trace_id, 16), int(caller.span_id, 16), is_remote=True, trace_flags=flags)
            parent = set_span_in_context(NonRecordingSpan(span))
        result = sampler.should_sample(parent, int(trace_id, 16), "request", SpanKind.SERVER)
        return result.decision is Decision.RECORD_AND_SAMPLE

    return is_sampled


def _follow_caller(caller: TraceContext | None, trace_id: str) -> bool:
    """The default, without the library: it would take a tenth of what a request costs."""
    del trace_id
    return caller is None or caller.is_sampled


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
