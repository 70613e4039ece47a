"""Once keys have been in force, a server without its key file does not start; `scripts/keys disable` changes that."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from configs.paths import curve_dir, existing_internal_token, keys_file, keys_required_file
from configs.settings import Settings
from loadbalancer.access.api_keys import KeyRing
from loadbalancer.access.key_files import InvalidFile, ReloadingFile
from loadbalancer.access.keys_cli import main
from loadbalancer.access.startup_checks import StartupError, check_exposure, load_server_keys, open_keys


def settings(tmp_path: Path, **sections: dict[str, Any]) -> Settings:
    return load(overrides={"data_dir": str(tmp_path), **sections})


def keys(tmp_path: Path, *words: str) -> int:
    return main(["--data-dir", str(tmp_path), *words])


def remove(file: Path) -> None:
    file.unlink()


def unreadable(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)  # ELOOP, for root too


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.with_name("not mounted"))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("damage", [remove, unreadable, dangling, folder, pipe])
def test_restart_without_usable_key_file_is_refused(tmp_path: Path, damage: Any) -> None:
    assert keys(tmp_path, "add", "alice") == 0
    assert open_keys(settings(tmp_path)).ring is not None
    damage(keys_file(tmp_path))
    with pytest.raises(StartupError, match=r"keys\.yaml"):
        open_keys(settings(tmp_path))


@pytest.mark.parametrize("damage", [unreadable, dangling, folder, pipe])
def test_first_start_with_unusable_key_file_is_refused(tmp_path: Path, damage: Any) -> None:
    keys_file(tmp_path).write_text("")
    damage(keys_file(tmp_path))
    with pytest.raises(StartupError, match=r"access\.keys_file: .*keys\.yaml cannot be read"):
        open_keys(settings(tmp_path))


@pytest.mark.parametrize("damage", [remove, unreadable, dangling, folder, pipe])
def test_running_server_without_key_file_stays_closed(tmp_path: Path, damage: Any) -> None:
    keys_file(tmp_path).write_text("keys: {}")
    watched = ReloadingFile(keys_file(tmp_path), lambda tree: "closed" if tree else "", absent="open", closed="no")
    damage(keys_file(tmp_path))
    assert watched.get(10.0) == "closed"


@pytest.mark.parametrize("damage", [unreadable, dangling, folder, pipe])
def test_unusable_key_file_closes_an_open_server(tmp_path: Path, damage: Any) -> None:
    watched = ReloadingFile(keys_file(tmp_path), lambda tree: "good", absent="open", closed="closed")
    assert watched.get(10.0) == "open"
    keys_file(tmp_path).write_text("")
    damage(keys_file(tmp_path))
    assert watched.get(20.0) == "closed"
    folder_or_file = keys_file(tmp_path)
    folder_or_file.rmdir() if folder_or_file.is_dir() else folder_or_file.unlink()
    assert watched.get(30.0) == "closed"
    folder_or_file.write_text("a: 1")
    assert watched.get(40.0) == "good"


def test_refused_start_names_the_remedies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(tmp_path, "add", "alice") == 0
    keys_file(tmp_path).unlink()
    with pytest.raises(StartupError) as raised:
        open_keys(settings(tmp_path))
    for part in (str(keys_file(tmp_path)), f"scripts/keys --data-dir {tmp_path} add NAME", "disable"):
        assert part in str(raised.value)
    assert keys(tmp_path, "list") == 0
    assert "the server does not start without it" in capsys.readouterr().err
    assert keys(tmp_path, "disable") == 0
    assert open_keys(settings(tmp_path)).ring is None
    assert keys(tmp_path, "list") == 0
    assert "no request needs one" in capsys.readouterr().err


def test_disable_keeps_keys_beside_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(tmp_path, "add", "alice") == 0
    before = keys_file(tmp_path).read_bytes()
    assert keys(tmp_path, "disable") == 0
    assert "keys.yaml.disabled" in capsys.readouterr().err
    assert open_keys(settings(tmp_path)).ring is None
    assert keys_file(tmp_path).with_name("keys.yaml.disabled").read_bytes() == before
    keys_file(tmp_path).with_name("keys.yaml.disabled").rename(keys_file(tmp_path))
    assert open_keys(settings(tmp_path)).ring is not None
    assert keys_required_file(tmp_path).exists()


def test_disable_is_refused_while_setting_names_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_ACCESS__KEYS_FILE", str(tmp_path / "mine.yaml"))
    assert keys(tmp_path, "add", "alice") == 0
    assert keys(tmp_path, "disable") == 2
    monkeypatch.delenv("MUSTER_ACCESS__KEYS_FILE")
    with pytest.raises(StartupError, match="API keys have been in force"):
        open_keys(settings(tmp_path))


def test_keys_that_arrive_later_are_recorded(tmp_path: Path) -> None:
    current = open_keys(settings(tmp_path))
    assert current.ring is None
    assert not keys_required_file(tmp_path).exists()
    keys_file(tmp_path).write_text("keys: {}")
    fresh = open_keys(settings(tmp_path))
    assert fresh.ring == KeyRing()
    assert keys_required_file(tmp_path).exists(), "a server without any key is closed too"


@pytest.mark.parametrize("content", ["keys: {}", "keys: [", "nonsense"])
def test_file_that_appears_closes_a_running_server(tmp_path: Path, content: str) -> None:
    current = open_keys(settings(tmp_path))
    keys_file(tmp_path).write_text(content)
    current.refresh(0.0)
    assert current.ring == KeyRing()
    assert keys_required_file(tmp_path).exists()


async def test_started_keys_follow_their_file(tmp_path: Path) -> None:
    current = open_keys(settings(tmp_path))
    current.start()
    try:
        for name in ("alice", "bob"):
            assert keys(tmp_path, "add", name) == 0
            while current.ring is None or name not in current.ring.keys:
                await asyncio.sleep(0.01)
        assert current.task_failures == {}
    finally:
        await current.stop()
    await current.stop()


@pytest.mark.parametrize(
    ("host", "hosts", "insecure", "ring", "is_refused"),
    [
        ("127.0.0.1", ["muster.example"], False, None, True),
        ("127.0.0.1", ["muster.example"], True, None, False),
        ("127.0.0.1", ["muster.example"], False, KeyRing(), False),
        ("127.0.0.1", [], False, None, False),
        ("0.0.0.0", ["muster.example"], False, None, True),
    ],
)
def test_proxied_server_needs_keys(
    tmp_path: Path, host: str, hosts: list[str], insecure: bool, ring: KeyRing | None, is_refused: bool
) -> None:
    chosen = settings(tmp_path, server={"host": host}, access={"hosts": hosts, "insecure": insecure})
    if not is_refused:
        check_exposure(chosen, ring)
        return
    with pytest.raises(StartupError, match="there are no API keys"):
        check_exposure(chosen, ring)


@pytest.mark.parametrize(
    ("mode", "message"),
    [(0o600, ""), (0o400, ""), (0o644, "other users can read"), (0o660, "other users can write to")],
)
def test_mode_of_key_file_is_checked_at_start(
    tmp_path: Path, mode: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys_file(tmp_path).write_text("keys: {}")
    keys_file(tmp_path).chmod(mode)
    open_keys(settings(tmp_path))
    assert message in caplog.text
    assert bool(message) is (f"chmod 600 {keys_file(tmp_path)}" in caplog.text)


# ---- the balancer's own CURVE keys


@pytest.mark.parametrize("content", [b"", b"public: abc\n", b"\0" * 90, b"public: a\nsecret: "])
def test_torn_server_key_is_refused_with_advice(tmp_path: Path, content: bytes) -> None:
    (curve_dir(tmp_path) / "server.yaml").write_bytes(content)
    with pytest.raises(InvalidFile, match=r"server\.yaml.* Restore the file, or remove it"):
        load_server_keys(tmp_path)


@pytest.mark.parametrize("damage", [unreadable, dangling, folder, pipe])
def test_unreadable_server_key_is_refused(tmp_path: Path, damage: Any) -> None:
    load_server_keys(tmp_path)
    damage(curve_dir(tmp_path) / "server.yaml")
    with pytest.raises(InvalidFile, match=r"server\.yaml cannot be read"):
        load_server_keys(tmp_path)


# ---- a real process on a full disk


def run_on_full_disk(tmp_path: Path, program: str, *options: str) -> subprocess.CompletedProcess[str]:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    return subprocess.run(
        [sys.executable, "-m", program, "--data-dir", str(tmp_path), *options],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=fill,
    )


@pytest.mark.parametrize("program", ["loadbalancer", "controller"])
def test_first_start_on_full_disk_reports_the_cause(tmp_path: Path, program: str) -> None:
    ended = run_on_full_disk(tmp_path, program, "--port", "1")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{tmp_path}/run/internal.token: File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert existing_internal_token(tmp_path) is None


def test_key_that_cannot_be_stored_is_not_shown(tmp_path: Path) -> None:
    ended = run_on_full_disk(tmp_path, "loadbalancer.access.keys_cli", "add", "alice")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ": File too large" in ended.stderr
    assert str(tmp_path) in ended.stderr
    assert [file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")] == []
