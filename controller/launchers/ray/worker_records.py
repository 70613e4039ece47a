"""A record on disk for each worker on the cluster, from which the next controller adopts it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from configs.files import atomic_write
from configs.paths import private_dir, run_dir
from host.types import WorkerProcess


class ActorRecord(msgspec.Struct, frozen=True):
    """What Ray does not know of a worker. Times are Unix seconds."""

    id: str
    model: str
    device: str
    #: Ray's id of the node.
    node: str
    pid: int
    started: float
    drained: float | None = None
    generation: str = ""

    def process(self) -> WorkerProcess:
        """Return it with times on this program's clock."""
        offset = time.monotonic() - time.time()
        drained_at = None if self.drained is None else self.drained + offset
        return WorkerProcess(
            self.id, self.model, self.device, self.pid, self.started + offset, drained_at, generation=self.generation
        )


def record_of(process: WorkerProcess, node: str) -> ActorRecord:
    offset = time.time() - time.monotonic()
    drained = None if process.drained_at is None else process.drained_at + offset
    return ActorRecord(
        process.id,
        process.model,
        process.device,
        node,
        process.pid,
        process.started_at + offset,
        drained,
        process.generation,
    )


class ActorRecords:
    """The records of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = private_dir(run_dir(data_dir) / "ray")

    def load(self) -> list[ActorRecord]:
        """Return all records; one that cannot be read is deleted."""
        found = []
        for file in sorted(self._folder.glob("*.json")):
            try:
                found.append(msgspec.json.decode(file.read_bytes(), type=ActorRecord))
            except (msgspec.MsgspecError, OSError):
                self._delete(file)
        return found

    def write(self, record: ActorRecord) -> None:
        """Raises `OSError`."""
        atomic_write(self._folder / f"{record.id}.json", msgspec.json.encode(record))

    def delete(self, worker: str) -> None:
        self._delete(self._folder / f"{worker}.json")

    def _delete(self, file: Path) -> None:
        with contextlib.suppress(OSError):  # the disk is read-only, or the folder is gone
            file.unlink()
