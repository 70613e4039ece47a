"""Keys of workers on the cluster: beside the operator's, and gone with the worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from configs.paths import curve_dir
from controller.launchers.ray.worker_keys import WorkerKeys
from loadbalancer.access import keys_cli
from loadbalancer.access.key_files import read
from loadbalancer.access.startup_checks import ALLOWED_WORKERS, load_server_keys, parse_workers
from wire.curve import read_worker_key


def allowed(data_dir: Path) -> dict[str, str]:
    found = read(curve_dir(data_dir) / ALLOWED_WORKERS, parse_workers).workers
    return {name: worker.public for name, worker in found.items()}


def test_key_is_allowed_until_it_is_removed(tmp_path: Path) -> None:
    assert keys_cli.main(["--data-dir", str(tmp_path), "add-worker", "box", str(tmp_path / "box.key")]) == 0
    keys, file = WorkerKeys(tmp_path), tmp_path / "w.key"
    file.touch(0o600)
    file.write_text(keys.create("m-1"))
    key = read_worker_key(file)
    assert key.server == load_server_keys(tmp_path).public
    assert allowed(tmp_path)["m-1"] == key.public
    keys.remove(["m-1", "unknown"])
    assert list(allowed(tmp_path)) == ["box"]


def test_first_key_makes_the_servers_keys(tmp_path: Path) -> None:
    text = WorkerKeys(tmp_path).create("m-1")
    assert load_server_keys(tmp_path).public in text


@pytest.mark.parametrize("content", ["workers: 1", "{", "workers: {m: {public: short}}"])
def test_damaged_file_is_not_replaced(tmp_path: Path, content: str) -> None:
    file = curve_dir(tmp_path) / ALLOWED_WORKERS
    file.write_text(content)
    with pytest.raises(OSError, match="workers"):
        WorkerKeys(tmp_path).create("m-1")
    assert file.read_text() == content


def test_held_lock_is_an_error_soon(tmp_path: Path) -> None:
    with FileLock(curve_dir(tmp_path) / f".{ALLOWED_WORKERS}.lock"), pytest.raises(OSError):
        WorkerKeys(tmp_path).create("m-1")
