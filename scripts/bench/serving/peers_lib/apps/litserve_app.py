"""The user model in LitServe. It reads annotations as they are: they must not become strings."""

from typing import Any

import litserve
from fastapi import Response

from scripts.bench.serving.peers_lib.apps.user_model import (
    BATCH_WAIT_MS,
    BINARY,
    MAX_BATCH_SIZE,
    PORT,
    WORKERS,
    UserModel,
)


class BenchAPI(litserve.LitAPI):  # type: ignore[misc]
    """JSON in; JSON or bytes out."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        self._model = UserModel()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def predict(self, x: Any) -> Any:
        return self._model.predict(x) if MAX_BATCH_SIZE > 1 else self._model.predict([x])[0]

    def encode_response(self, output: Any) -> Any:
        return Response(output, media_type="application/octet-stream") if BINARY else output

    def __init__(self) -> None:
        if MAX_BATCH_SIZE > 1:
            super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_WAIT_MS / 1000)
        else:
            super().__init__()


if __name__ == "__main__":
    server = litserve.LitServer(BenchAPI(), accelerator="cpu", workers_per_device=WORKERS, restart_workers=True)
    server.run(
        host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False, access_log=False, num_api_servers=1
    )
