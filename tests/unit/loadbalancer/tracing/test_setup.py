"""When traces are written, and what is said where they cannot be."""

from __future__ import annotations

import pytest

from loadbalancer.context.trace_context import parse_traceparent
from loadbalancer.tracing.exporter_process import exporter_environment
from loadbalancer.tracing.setup import blocked_reason, is_requested, sampler_of

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, True),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_variables_turn_tracing_on(environment: dict[str, str], *, expected: bool) -> None:
    assert is_requested(environment) is expected


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "'console'; possible are 'otlp' and 'none'"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; only 'http/protobuf'"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(variables: dict[str, str], part: str) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="pip install -e '.[otel]'")
    assert part in blocked_reason(ENDPOINT | variables)
    assert blocked_reason(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}) == ""


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadbalancer.tracing.setup._PACKAGES", ("opentelemetry.no_such_package.x",))
    reason = blocked_reason(ENDPOINT)
    assert reason.startswith("OTEL_EXPORTER_OTLP_ENDPOINT is set, but the packages of OpenTelemetry are missing: ")
    assert reason.endswith(" -m pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http")


def test_the_exporter_gets_no_keys() -> None:
    given = ENDPOINT | {"OPENAI_API_KEY": "k", "MUSTER_KEY": "k", "PATH": "/bin", "https_proxy": "http://p"}
    found = exporter_environment(given)
    del found["PYTHONPATH"]
    assert found == ENDPOINT | {"PATH": "/bin", "https_proxy": "http://p"}


@pytest.mark.parametrize(
    ("name", "argument", "decisions"),
    [
        ("", "", [True, True, False]),
        ("parentbased_always_on", "", [True, True, False]),
        ("always_on", "", [True, True, True]),
        ("always_off", "", [False, False, False]),
        ("parentbased_always_off", "", [False, True, False]),
        ("traceidratio", "0", [False, False, False]),
        ("parentbased_traceidratio", "1", [True, True, False]),
    ],
)
def test_samplers(monkeypatch: pytest.MonkeyPatch, name: str, argument: str, decisions: list[bool]) -> None:
    """Without a caller, below a sampled span, and below one that is not sampled."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="pip install -e '.[otel]'")
    variables = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    sampler, trace = sampler_of(variables), "4bf92f3577b34da6a3ce929d0e0e4736"
    callers = [None, *(parse_traceparent(f"00-{trace}-00f067aa0ba902b7-{flags}") for flags in ("01", "00"))]
    assert [sampler(caller, trace) for caller in callers] == decisions
