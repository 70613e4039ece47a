"""The user model in Ray Serve."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from scripts.bench.serving.peers_lib.apps.user_model import (
    BATCH_WAIT_MS,
    BINARY,
    MAX_BATCH_SIZE,
    MODEL,
    PORT,
    WORKERS,
    UserModel,
)


class Bench:
    """JSON in; JSON or bytes out."""

    def __init__(self) -> None:
        self._model = UserModel()

    async def _predict(self, items: list[Any]) -> list[Any]:
        if MODEL == "accelerator":  # the loop must stay free for what comes meanwhile
            return await asyncio.to_thread(self._model.predict, items)
        return self._model.predict(items)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_MS / 1000)  # type: ignore[untyped-decorator]
    async def _predict_batched(self, items: list[Any]) -> list[Any]:
        return await self._predict(items)

    async def __call__(self, request: Request) -> Any:
        item = await request.json()
        result = await self._predict_batched(item) if MAX_BATCH_SIZE > 1 else (await self._predict([item]))[0]
        return Response(result, media_type="application/octet-stream") if BINARY else result


def main() -> None:
    environment = {name: value for name, value in os.environ.items() if name.startswith(("PEERS_", "PYTHONPATH"))}
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        _temp_dir=os.environ["PEERS_FOLDER"],
        object_store_memory=256 * 2**20,
        logging_level="error",
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    deployment = serve.deployment(Bench, num_replicas=WORKERS, max_ongoing_requests=1024)
    serve.run(deployment.options(ray_actor_options={"num_cpus": 0}).bind(), route_prefix="/")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
