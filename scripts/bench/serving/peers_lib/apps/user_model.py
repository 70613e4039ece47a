"""The user model that every server runs. It needs the standard library only.

The environment says which: `PEERS_MODEL` is `noop`, `accelerator` or `large`. Each worker leaves a file with its
process id in `PEERS_FOLDER`; the accelerator also appends a line per batch to the file `computed` there.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

#: Seconds of a step of the simulated accelerator: T0_S + T1_S * batch.
T0_S, T1_S = 0.05, 0.005
LARGE_BYTES = 1_500_000

MODEL = os.environ.get("PEERS_MODEL", "noop")
WORKERS = int(os.environ.get("PEERS_WORKERS", "1"))
MAX_BATCH_SIZE = int(os.environ.get("PEERS_BATCH", "1"))
BATCH_WAIT_MS = int(os.environ.get("PEERS_WAIT_MS", "5"))
PORT = int(os.environ.get("PEERS_PORT", "8000"))

#: Results are bytes, not JSON.
BINARY = MODEL == "large"


class UserModel:
    """Returns each item; `large` returns 1.5 MB instead, and `accelerator` takes the time of a step before."""

    def __init__(self) -> None:
        folder = Path(os.environ["PEERS_FOLDER"])
        (folder / f"worker-{os.getpid()}").touch()
        self._counter = os.open(folder / "computed", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._counts = MODEL == "accelerator"
        # An accelerator runs one step at a time, in however many threads a server calls it.
        self._device = threading.Lock()
        self._large = bytes(range(250)) * (LARGE_BYTES // 250)

    def predict(self, items: list[Any]) -> list[Any]:
        if self._counts:
            os.write(self._counter, b"1" * len(items) + b"\n")
            with self._device:
                time.sleep(T0_S + T1_S * len(items))
        return [self._large] * len(items) if BINARY else items
