"""Key files, `scripts/keys`, and the security checks at startup."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from configs.addresses import ListenAddress
from configs.load import ConfigError, load
from configs.paths import curve_dir, keys_file
from configs.sections import Server
from configs.settings import Settings
from loadbalancer.access.api_keys import Caller, KeyRing, fingerprint, parse_ring
from loadbalancer.access.key_files import InvalidFile, ReloadingFile, read, write
from loadbalancer.access.keys_cli import main
from loadbalancer.access.origin_policy import is_loopback
from loadbalancer.access.startup_checks import (
    StartupError,
    check_exposure,
    check_resolved,
    check_tls,
    curve_listener,
    load_server_keys,
    open_keys,
)
from tests.support.certificates import needs_openssl, self_signed
from wire.curve import BadKey, read_worker_key


def settings(tmp_path: Path, **sections: dict[str, Any]) -> Settings:
    return load(overrides={"data_dir": str(tmp_path), **sections})


def numbers(tree: object) -> list[int]:
    return msgspec.convert(tree, list[int])


# ---- reloaded files


def test_file_is_reloaded_after_a_second_unless_invalid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "numbers.yaml"
    watched = ReloadingFile[list[int]](file, numbers, absent=[], closed=[0])
    assert watched.get(0.0) == []
    write(file, [1])
    assert watched.get(0.5) == [], "it looks once a second"
    assert watched.get(1.0) == [1]
    with caplog.at_level(logging.INFO):
        for now, broken in ((2.0, "[1, {"), (3.0, "[hello]"), (4.0, "2026-99-99"), (5.0, "[" * 5000)):
            file.write_text(broken)
            assert watched.get(now) == [1]
        file.write_bytes(b"\xff\xfe\x00")
        assert watched.get(6.0) == [1]
        file.unlink()
        assert watched.get(7.0) == [1], "deleting the file opens no door"
    assert caplog.text.count("the previous content stays in force") == 5
    assert "does not exist any more" in caplog.text
    write(file, [2])
    assert watched.get(8.0) == [2]


def test_invalid_file_at_start_raises(tmp_path: Path) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text("secret: [\n")
    with pytest.raises(InvalidFile, match=r"numbers\.yaml:2 is not valid YAML") as raised:
        ReloadingFile[list[int]](file, numbers, absent=[], closed=[0])
    assert "secret" not in str(raised.value)


def test_written_file_is_complete_and_private(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.yaml"
    write(file, [1, 2])
    assert read(file, numbers) == [1, 2]
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]


# ---- scripts/keys


def keys(tmp_path: Path, *words: str) -> int:
    return main(["--data-dir", str(tmp_path), *words])


def test_key_is_shown_a_single_time_and_stored_as_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(tmp_path, "add", "alice", "--weight", "2", "--requests-per-minute", "9", "--max-concurrent", "3") == 0
    token = capsys.readouterr().out.strip()
    assert keys(tmp_path, "add", "chief", "--scope", "admin", "--scope", "images", "--scope", "admin") == 0
    other = capsys.readouterr().out.strip()
    assert token.startswith("sk-muster-")
    assert len(token) >= 50
    assert token != other
    file = keys_file(tmp_path)
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    ring = read(file, parse_ring)
    assert ring.callers()[fingerprint(token)] == Caller(
        "alice", 2.0, frozenset({"images", "text", "calls", "jobs"}), 9, 3
    )
    assert ring.keys["chief"].scopes == ("admin", "images")
    assert keys(tmp_path, "list") == 0
    listed = capsys.readouterr().out
    assert "alice: images, text, calls, jobs; weight 2; 9/min, 3 at once; created 20" in listed
    assert "chief: admin, images; weight 1; no rate limit, no concurrency limit" in listed
    assert token not in listed
    assert keys(tmp_path, "revoke", "alice") == 0
    assert list(read(file, parse_ring).keys) == ["chief"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "bob"], "a key named bob exists already"),
        (["add", "b b"], "the name 'b b' is not allowed"),
        (["add", "new", "--weight", "0"], "weight"),
        (["add", "new", "--requests-per-minute", "0"], "--requests-per-minute 0"),
        (["revoke", "nobody"], "no key is named nobody; existing keys: bob"),
        (["revoke-worker", "nobody"], "no worker key is named nobody; existing keys: none"),
    ],
)
def test_invalid_command_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert keys(tmp_path, "add", "bob") == 0
    before = keys_file(tmp_path).read_bytes()
    assert keys(tmp_path, *words) == 2
    assert message in capsys.readouterr().err
    assert keys_file(tmp_path).read_bytes() == before


@pytest.mark.parametrize(
    ("listen", "address", "note"),
    [
        (None, "tcp://HOST:PORT", "with --config FILE they are filled in"),
        ("tcp://10.0.0.1:5555", "tcp://10.0.0.1:5555", ""),
        ("tcp://gpu.example.org:5555", "tcp://gpu.example.org:5555", ""),
        ("tcp://0.0.0.0:5555", "tcp://HOST:5555", "HOST is a name or an address of this machine"),
        ("tcp://[::]:5555", "tcp://HOST:5555", "HOST is a name or an address of this machine"),
        ("tcp://[fe80::1]:5555", "tcp://[fe80::1]:5555", ""),
    ],
)
@pytest.mark.parametrize("agent", [[], ["--agent"]], ids=["worker", "agent"])
def test_command_for_the_other_machine_can_connect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], agent: list[str], listen: str | None, address: str, note: str
) -> None:
    config = tmp_path / "muster.yaml"
    config.write_text("models: {m: {engine: sim}}\n" + (f"workers: {{listen: '{listen}'}}" if listen else ""))
    assert keys(tmp_path, "--config", str(config), "add-worker", *agent, "box", str(tmp_path / "box.key")) == 0
    output = capsys.readouterr()
    assert f"--join {address} --key-file box.key" in output.out
    assert (f"--join {address} --key-file /etc/muster/box.key" in output.err) is bool(agent)
    assert note in output.err
    assert ("HOST" in output.err) is bool(note)


def test_worker_key_is_created_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "box.key"
    assert keys(tmp_path, "add-worker", "box", str(file)) == 0
    message = capsys.readouterr().out
    assert "--join tcp://HOST:PORT --key-file box.key" in message
    key = read_worker_key(file)
    assert key.server == load_server_keys(tmp_path).public
    assert key.secret not in message
    assert key.secret not in repr(key)
    assert load_server_keys(tmp_path).secret not in repr(load_server_keys(tmp_path))
    allowed = curve_dir(tmp_path) / "workers.yaml"
    assert key.public in allowed.read_text()
    assert key.secret not in allowed.read_text()
    assert keys(tmp_path, "list") == 0
    assert f"worker box: {key.public}" in capsys.readouterr().out
    before = file.read_bytes()
    assert keys(tmp_path, "add-worker", "box", str(tmp_path / "again.key")) == 2
    assert keys(tmp_path, "add-worker", "other", str(file)) == 2
    assert file.read_bytes() == before
    assert keys(tmp_path, "revoke-worker", "box") == 0
    assert key.public not in allowed.read_text()


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0o600, "No such file"),
        ("{", 0o600, "not valid YAML"),
        ("public: a", 0o600, "public"),
        ("{}", 0o600, "missing required field"),
        ("{}", 0o644, "can be read by other users"),
    ],
)
def test_unusable_worker_key_file_is_rejected(tmp_path: Path, content: str | None, mode: int, message: str) -> None:
    file = tmp_path / "w.key"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(BadKey, match=message):
        read_worker_key(file)


# ---- startup checks


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.4", False),
        ("127.0.0.1.example.com", False),
    ],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "ring", "insecure", "is_refused"),
    [
        ("127.0.0.1", None, False, False),
        ("0.0.0.0", None, False, True),
        ("0.0.0.0", None, True, False),
        ("0.0.0.0", KeyRing(), False, False),
        ("example.com", None, False, True),
    ],
)
def test_public_address_without_keys_is_refused(
    tmp_path: Path, host: str, ring: KeyRing | None, insecure: bool, is_refused: bool
) -> None:
    chosen = settings(tmp_path, server={"host": host}, access={"insecure": insecure})
    if not is_refused:
        check_exposure(chosen, ring)
        return
    with pytest.raises(StartupError) as raised:
        check_exposure(chosen, ring)
    for fragment in (f"server.host {host}", "scripts/keys", "127.0.0.1", "--insecure", "access.insecure"):
        assert fragment in str(raised.value)


def test_configured_key_file_must_exist_and_be_valid(tmp_path: Path) -> None:
    assert open_keys(settings(tmp_path)).ring is None
    chosen = settings(tmp_path, access={"keys_file": str(tmp_path / "mine.yaml")})
    with pytest.raises(StartupError, match=r"access\.keys_file .*mine\.yaml does not exist"):
        open_keys(chosen)
    (tmp_path / "mine.yaml").write_text("keys: {a: {sha256: x}}")
    with pytest.raises(StartupError, match=r"access\.keys_file: .*mine\.yaml: .*sha256"):
        open_keys(chosen)
    (tmp_path / "mine.yaml").write_text("")
    assert open_keys(chosen).ring == KeyRing()


def test_curve_listener_requires_workers_listen(tmp_path: Path) -> None:
    assert curve_listener(settings(tmp_path)) is None
    chosen = settings(tmp_path, workers={"listen": "tcp://127.0.0.1:5555"})
    assert repr(curve_listener(chosen)) == "<CurveListener of tcp://127.0.0.1:5555, rejected {}>"
    (curve_dir(tmp_path) / "workers.yaml").write_text("workers: {a: {public: short}}")
    with pytest.raises(StartupError, match=r"workers\.listen tcp://127\.0\.0\.1:5555: .*workers\.yaml"):
        curve_listener(chosen)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"server": {"tls_cert": "a.crt"}}, "tls_cert and tls_key go together; tls_key is missing"),
        ({"workers": {"listen": "0.0.0.0:5555"}}, "workers.listen = '0.0.0.0:5555'"),
        ({"workers": {"listen": "ipc:///tmp/x"}}, "workers.listen"),
        ({"workers": {"listen": "tcp://*:5555"}}, "workers.listen"),
        ({"access": {"cors_origins": ["https://a.example/path"]}}, "access.cors_origins"),
    ],
)
def test_invalid_settings_are_rejected(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        settings(tmp_path, **sections)
    assert message in str(raised.value)


@needs_openssl
def test_unusable_certificate_is_named(tmp_path: Path) -> None:
    good, other = self_signed(tmp_path, "good"), self_signed(tmp_path, "other")
    locked = self_signed(tmp_path, "locked", password="a secret")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("hello")
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.touch()
    os.truncate(large, 1 << 30)
    check_tls(Server(tls_cert=good.cert, tls_key=good.key))
    check_tls(Server())
    for cert, key, message in [
        (tmp_path / "none", good.key, r"server\.tls_cert .*none cannot be read: No such file"),
        (good.cert, tmp_path, r"server\.tls_key .* cannot be read: Is a directory"),
        (pipe, good.key, r"server\.tls_cert .*pipe cannot be read: It is not a regular file"),
        (good.cert, Path("/dev/zero"), r"server\.tls_key /dev/zero cannot be read: It is not a regular file"),
        (large, good.key, r"server\.tls_cert .*large cannot be read: File too large"),
        (good.cert, other.key, r"server\.tls_key .*other\.key does not belong to server\.tls_cert .*good\.crt"),
        (nonsense, good.key, r"are not a certificate and key in PEM format"),
        (locked.cert, locked.key, r"server\.tls_key .*locked\.key has a password"),
    ]:
        with pytest.raises(StartupError, match=message):
            check_tls(Server(tls_cert=cert, tls_key=key))


@pytest.mark.parametrize(
    ("host", "found", "is_refused"),
    [
        ("localhost", ["127.0.0.1", "::1"], False),
        ("localhost", ["127.0.0.1", "192.0.2.7"], True),
        ("gpu.localhost", ["192.0.2.7"], True),
        ("gpu.example.org", ["192.0.2.7"], False),
    ],
)
def test_local_name_with_public_address_is_refused(host: str, found: list[str], is_refused: bool) -> None:
    addresses = [ListenAddress(socket.AF_INET, address, 80) for address in found]
    with pytest.raises(StartupError, match=r"192\.0\.2\.7") if is_refused else contextlib.nullcontext():
        check_resolved(host, addresses)
