"""One CURVE key for each worker on the cluster, allowed while the worker lives."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock

from configs.files import durable_create, durable_write, read_regular_file
from configs.paths import curve_dir
from configs.yaml_file import InvalidYaml, dump_yaml, parse_yaml
from wire.curve import AllowedWorker, AllowedWorkers, KeyPair, WorkerKey, new_pair

_ALLOWED, _SERVER = "workers.yaml", "server.yaml"
#: Changes of the file take milliseconds.
_LOCKED_FOR_S = 2.0


class WorkerKeys:
    """Adds keys to the balancer's list of allowed workers, and removes them. The balancer reads it within a second."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = curve_dir(data_dir)

    def create(self, worker: str) -> str:
        """Allow a new key with the name of the worker. Return the text of its key file. Raises `OSError`."""
        server = self._server()
        pair = new_pair()
        with self._change() as workers:
            workers[worker] = AllowedWorker(pair.public)
        return dump_yaml(msgspec.to_builtins(WorkerKey(pair.public, pair.secret, server.public)))

    def remove(self, names: Collection[str]) -> None:
        """Revoke the keys of workers that have ended. Raises `OSError`."""
        with self._change() as workers:
            for name in names:
                workers.pop(name, None)

    def _server(self) -> KeyPair:
        """Return the balancer's keys, which the first program that needs them makes."""
        path = self._folder / _SERVER
        if not path.exists():
            durable_create(path, dump_yaml(msgspec.to_builtins(new_pair())).encode())
        try:
            return msgspec.convert(_tree(path), KeyPair)
        except msgspec.ValidationError:
            raise OSError(f"{path} is no key file of this server") from None

    @contextmanager
    def _change(self) -> Iterator[dict[str, AllowedWorker]]:
        """Yield the allowed workers, and write them if they have changed. Raises `OSError`."""
        path = self._folder / _ALLOWED
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCKED_FOR_S):
            try:
                before = msgspec.convert(_tree(path) or {}, AllowedWorkers).workers
            except FileNotFoundError:
                before = {}
            except msgspec.ValidationError as error:
                raise OSError(f"{path}: {error}") from None
            workers = dict(before)
            yield workers
            if workers != before:
                durable_write(path, dump_yaml(msgspec.to_builtins(AllowedWorkers(workers))).encode())


def _tree(path: Path) -> Any:
    """Raises `OSError`, also if it is no YAML."""
    try:
        return parse_yaml(read_regular_file(path)).value
    except InvalidYaml:
        raise OSError(f"{path} is not valid YAML") from None
