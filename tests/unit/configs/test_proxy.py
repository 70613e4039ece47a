"""Validation of `cold_start_proxy` and of the arrival log settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.cli import to_yaml
from configs.load import ConfigError, load


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "muster.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: {m: {cold_start_proxy: {}}}", "cold_start_proxy.url"),
        ("models: {m: {cold_start_proxy: {url: 'ftp://h/v1'}}}", "ftp://h/v1"),
        # A key in the URL would appear in logs.
        ("models: {m: {cold_start_proxy: {url: 'https://me:secret@h/v1'}}}", "cold_start_proxy.url"),
        ("models: {m: {cold_start_proxy: {url: 'https://h/v1?key=1'}}}", "cold_start_proxy.url"),
        ("models: {m: {cold_start_proxy: {url: 'https://h', api_key_env: 'sk-123'}}}", "api_key_env"),
        ("models: {m: {cold_start_proxy: {url: 'https://h', api_key_env: MUSTER_X}}}", "the prefix MUSTER_"),
        ("models: {m: {cold_start_proxy: {url: 'https://h', timeout_s: 0}}}", "timeout_s"),
        ("models: {m: {cold_start_proxy: {url: 'https://h', max_wait_s: -1}}}", "max_wait_s"),
        # No other file of the data directory can be overwritten.
        ("{models: {m: {engine: sim}}, server: {record_arrivals: keys.yaml}}", "record_arrivals"),
        ("{models: {m: {engine: sim}}, server: {record_arrivals: ../a.csv}}", "record_arrivals"),
        ("{models: {m: {engine: sim}}, server: {record_bytes: 10}}", "record_bytes"),
    ],
)
def test_invalid_setting_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, text))
    assert message in str(refused.value)


def test_settings_survive_writing_and_loading(tmp_path: Path) -> None:
    proxy = "{url: 'https://h:8443/v1', model: big, api_key_env: OPENAI_API_KEY, max_wait_s: 20, timeout_s: 30}"
    text = f"{{models: {{m: {{engine: sim, cold_start_proxy: {proxy}}}}}, server: {{record_arrivals: a.csv}}}}"
    settings = load(write(tmp_path, text))
    assert load(write(tmp_path, to_yaml(settings))) == settings
    loaded = settings.models["m"].cold_start_proxy
    assert loaded is not None
    assert (loaded.url, loaded.model, loaded.api_key_env) == (
        "https://h:8443/v1",
        "big",
        "OPENAI_API_KEY",
    )
