"""What can be wrong with the settings of `cold_start_proxy` and of the record of arrivals, and how it is told."""

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
    ("text", "told"),
    [
        ("models: {m: {cold_start_proxy: {}}}", "cold_start_proxy.url"),
        ("models: {m: {cold_start_proxy: {url: 'ftp://h/v1'}}}", "ftp://h/v1"),
        # A key in the URL would be in every log.
        ("models: {m: {cold_start_proxy: {url: 'https://me:secret@h/v1'}}}", "cold_start_proxy.url"),
        ("models: {m: {cold_start_proxy: {url: 'https://h/v1?key=1'}}}", "cold_start_proxy.url"),
        ("models: {m: {cold_start_proxy: {url: 'https://h', api_key_env: 'sk-123'}}}", "api_key_env"),
        ("models: {m: {cold_start_proxy: {url: 'https://h', api_key_env: MUSTER_X}}}", "the prefix MUSTER_"),
        ("models: {m: {cold_start_proxy: {url: 'https://h', timeout_s: 0}}}", "timeout_s"),
        ("models: {m: {cold_start_proxy: {url: 'https://h', max_wait_s: -1}}}", "max_wait_s"),
        # Nothing else of the data directory can be written over.
        ("{models: {m: {}}, server: {record_arrivals: keys.yaml}}", "record_arrivals"),
        ("{models: {m: {}}, server: {record_arrivals: ../a.csv}}", "record_arrivals"),
        ("{models: {m: {}}, server: {record_bytes: 10}}", "record_bytes"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, text))
    assert told in str(refused.value)


def test_what_is_set_survives_being_written_for_the_children(tmp_path: Path) -> None:
    proxy = "{url: 'https://h:8443/v1', model: big, api_key_env: OPENAI_API_KEY, max_wait_s: 20, timeout_s: 30}"
    text = f"{{models: {{m: {{cold_start_proxy: {proxy}}}}}, server: {{record_arrivals: a.csv}}}}"
    settings = load(write(tmp_path, text))
    assert load(write(tmp_path, to_yaml(settings))) == settings
    kept = settings.models["m"].cold_start_proxy
    assert kept is not None
    assert (kept.url, kept.model, kept.api_key_env) == ("https://h:8443/v1", "big", "OPENAI_API_KEY")
