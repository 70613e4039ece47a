"""The user model as an engine of Muster."""

from __future__ import annotations

from typing import Any

from scripts.bench.serving.peers_lib.apps.user_model import UserModel


class Engine:
    """JSON in and out."""

    def load(self, device: str) -> None:  # noqa: ARG002
        self._model = UserModel()

    def predict(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._model.predict(items)


class BytesEngine(Engine):
    """JSON in, bytes out."""

    def predict(self, items: list[dict[str, Any]]) -> list[bytes]:  # type: ignore[override]
        return self._model.predict(items)
