"""The user model in BentoML: `bentoml serve scripts.bench.serving.peers_lib.apps.bentoml_app:Bench`."""

from __future__ import annotations

from typing import Any

import bentoml

from scripts.bench.serving.peers_lib.apps.user_model import BINARY, MAX_BATCH_SIZE, WORKERS, UserModel

# Its adaptive batching drops requests that wait longer than this; how long it waits for others is its own decision.
_MAX_LATENCY_MS = 60_000
if MAX_BATCH_SIZE > 1:
    _api = bentoml.api(route="/predict", batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=_MAX_LATENCY_MS)
else:
    _api = bentoml.api(route="/predict")


if BINARY:

    def predict(self: Any, instances: list[dict[str, Any]]) -> bytes:
        return self.model.predict(instances)[0]  # type: ignore[no-any-return]

else:

    def predict(self: Any, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:  # type: ignore[misc]
        return self.model.predict(instances)  # type: ignore[no-any-return]


@bentoml.service(workers=WORKERS, traffic={"timeout": 60})
class Bench:
    """JSON in; JSON or bytes out."""

    def __init__(self) -> None:
        self.model = UserModel()

    predict = _api(predict)
