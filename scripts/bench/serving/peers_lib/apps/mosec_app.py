"""The user model in MOSEC."""

from __future__ import annotations

import sys
from typing import Any

from mosec import Server, Worker

from scripts.bench.serving.peers_lib.apps.user_model import (
    BATCH_WAIT_MS,
    BINARY,
    MAX_BATCH_SIZE,
    PORT,
    WORKERS,
    UserModel,
)


class BenchWorker(Worker):  # type: ignore[misc]
    """JSON in; JSON or bytes out."""

    resp_mime_type = "application/octet-stream" if BINARY else "application/json"

    def __init__(self) -> None:
        super().__init__()
        self._model = UserModel()

    def serialize(self, data: Any) -> bytes:
        encoded: bytes = data if BINARY else super().serialize(data)
        return encoded

    def forward(self, data: Any) -> Any:
        if MAX_BATCH_SIZE > 1:
            return self._model.predict(data)
        return self._model.predict([data])[0]


if __name__ == "__main__":
    # MOSEC reads its address from the command line; its messages would be formatted for each request otherwise.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(PORT), "--log-level", "error"]
    server = Server()
    batching = {"max_batch_size": MAX_BATCH_SIZE, "max_wait_time": BATCH_WAIT_MS} if MAX_BATCH_SIZE > 1 else {}
    server.append_worker(BenchWorker, num=WORKERS, **batching)
    server.run()
