"""Settings from environment variables: what is read, what is passed over, and the error texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import ConfigError, load
from configs.settings import Settings

_FILE = """
models:
  a: {engine: sim}
  b: {engine: sim, scaling: {min_replicas: 1}}
  SD-1.5: {engine: sim}
  org/name: {engine: sim}
"""


def load_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> Settings:
    file = tmp_path / "muster.yaml"
    file.write_text(_FILE)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load(file)


def value_at(settings: Settings, path: str) -> object:
    found: object = settings
    for part in path.split("|"):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


@pytest.mark.parametrize(
    ("name", "value", "path", "expected"),
    [
        ("MUSTER_SERVER__PORT", "9000", "server|port", 9000),
        ("MUSTER_SERVER__PORT", " 9000 ", "server|port", 9000),
        ("MUSTER_server__port", "9000", "server|port", 9000),
        ("MUSTER_SERVER__PORT", "", "server|port", 8000),
        ("MUSTER_SERVER__PORT", "  ", "server|port", 8000),
        ("MUSTER_UNKNOWN", "", "server|port", 8000),
        ("MUSTER_SERVER", '{"port": 9000}', "server|port", 9000),
        ("MUSTER_ACCESS__INSECURE", "yes", "access|insecure", True),
        ("MUSTER_QUEUE__DEADLINE_SLACK", "null", "queue|deadline_slack", None),
        ("MUSTER_ACCESS__HOSTS", "a.example,b.example", "access|hosts", ("a.example", "b.example")),
        ("MUSTER_ACCESS__HOSTS", '["a.example"]', "access|hosts", ("a.example",)),
        ("MUSTER_MODELS__A__COMPILE", "off", "models|a|compile", "off"),
        ("MUSTER_MODELS__B__SCALING__MIN_WORKERS", "2", "models|b|scaling|min_workers", 2),
        ("MUSTER_MODELS__B__SCALING__MIN_REPLICAS", "2", "models|b|scaling|min_workers", 2),
        ("MUSTER_MODELS__SD_1_5__MAX_BATCH_SIZE", "4", "models|SD-1.5|max_batch_size", 4),
        ("MUSTER_MODELS__ORG_NAME__MAX_BATCH_SIZE", "4", "models|org/name|max_batch_size", 4),
        (
            "MUSTER_MODELS__A__SCALING__SCHEDULE",
            '[{"cron": "0 8 * * *", "min_replicas": 0}]',
            "models|a|scaling|max_workers",
            "auto",
        ),
    ],
)
def test_variable_sets_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, path: str, expected: object
) -> None:
    settings = load_with(tmp_path, monkeypatch, {name: value})
    assert value_at(settings, path) == expected
    assert list(settings.models) == ["a", "b", "SD-1.5", "org/name"], "the order of the file"


def test_section_and_its_part_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"MUSTER_SERVER__PORT": "9001", "MUSTER_SERVER": '{"port": 9000, "max_n": 3}'}
    server = load_with(tmp_path, monkeypatch, variables).server
    assert (server.port, server.max_n) == (9001, 3)


def test_json_object_adds_a_model_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"MUSTER_MODELS": '{"c": {"engine": "sim"}}', "MUSTER_MODELS__C__MAX_BATCH_SIZE": "4"}
    models = load_with(tmp_path, monkeypatch, variables).models
    assert list(models) == ["a", "b", "SD-1.5", "org/name", "c"]
    assert models["c"].max_batch_size == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MUSTER_PORT", "tcp://10.0.0.1:8000"),
        ("MUSTER_SERVICE_HOST", "10.0.0.1"),
        ("MUSTER_SERVICE_PORT", "8000"),
        ("MUSTER_SERVICE_PORT_HTTP", "8000"),
        ("MUSTER_SERVICE_PORT_HTTP_API", "8000"),
        ("MUSTER_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("MUSTER_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("MUSTER_PORT_8000_TCP_PORT", "8000"),
        ("MUSTER_PORT_8000_TCP_PROTO", "tcp"),
        ("MUSTER_PORT_53_UDP_ADDR", "10.0.0.1"),
        ("MUSTER_API_PORT", "tcp://10.0.0.1:8000"),
        ("MUSTER_SERVER_SERVICE_HOST", "10.0.0.1"),
        ("MUSTER_SERVER_PORT", "tcp://10.0.0.1:80"),
        ("MUSTER_SERVER_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("MUSTER_NAME", "/web/muster"),
        ("MUSTER_ENV_PATH", "/usr/bin"),
        ("MUSTER_KEY", "sk-muster-secret"),
    ],
)
def test_variables_of_the_platform_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    assert load_with(tmp_path, monkeypatch, {name: value}) == load_with(tmp_path, monkeypatch, {name: ""})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MUSTER_PORT": "9000"}, "MUSTER_PORT = '9000': no such setting; did you mean MUSTER_SERVER__PORT?"),
        ({"MUSTER_SERVER_PORT": "9000"}, "did you mean MUSTER_SERVER__PORT?"),
        ({"MUSTER_SERVER__PROT": "9000"}, "did you mean MUSTER_SERVER__PORT?"),
        ({"MUSTER_SERVER__PORT__X": "9000"}, "MUSTER_SERVER__PORT__X = '9000': no such setting"),
        ({"MUSTER_": "9000"}, "MUSTER_ = '9000': no such setting"),
        ({"MUSTER_MODELS__BB__DTYPE": "auto"}, "no model 'BB'; did you mean MUSTER_MODELS__B__...?"),
        ({"MUSTER_MODELS__A__DTIPE": "auto"}, "did you mean MUSTER_MODELS__A__DTYPE?"),
        ({"MUSTER_MODELS__X": "{}"}, "configured: a, b, SD-1.5, org/name"),
        ({"MUSTER_SERVER__PORT": "many"}, "MUSTER_SERVER__PORT: server.port = 'many': must be a valid integer"),
        ({"MUSTER_SERVER": "9000"}, "MUSTER_SERVER = '9000': must be a JSON object, such as {\"key\": 1}"),
        ({"MUSTER_SERVER": '{"port": 1, "port": 2}'}, "the key 'port' is there twice"),
        ({"MUSTER_SERVER": "{" * 9}, "must be a JSON object"),
        ({"MUSTER_ACCESS__HOSTS": '["a"'}, 'must be a JSON list, such as ["a", "b"], or a,b'),
        ({"MUSTER_MODELS__A__SCALING__SCHEDULE": "0 8 * * *"}, "must be [...], a JSON list"),
        (
            {"MUSTER_MODELS__A__SCALING__MIN_REPLICAS": "1", "MUSTER_MODELS__A__SCALING__MIN_WORKERS": "2"},
            "sets the same as MUSTER_MODELS__A__SCALING__MIN_REPLICAS; keep one of them",
        ),
    ],
)
def test_refusal_names_variable_value_and_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_with(tmp_path, monkeypatch, variables)
    assert message in str(refusal.value)
    assert "environment: MUSTER_" in str(refusal.value)


def test_aliases_are_equal_before_merging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_with(tmp_path, monkeypatch, {"MUSTER_MODELS__B__SCALING__MIN_WORKERS": "3"})
    assert settings.models["b"].scaling.min_workers == 3
