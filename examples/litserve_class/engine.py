"""A class that was written for LitServe. One line is changed: the import."""

from __future__ import annotations

from typing import Any

import numpy as np

from muster.litserve import LitAPI  # was: from litserve import LitAPI


class SimpleLitAPI(LitAPI):
    """Squares and cubes a number with two models, in batches."""

    def setup(self, device: str) -> None:
        del device
        self.models = [lambda x: x**2, lambda x: x**3]

    def decode_request(self, request: dict[str, Any]) -> float:
        return float(request["input"])

    def batch(self, inputs: list[float]) -> np.ndarray:
        return np.stack([np.asarray(each) for each in inputs])

    def predict(self, x: np.ndarray) -> list[np.ndarray]:
        return [model(x) for model in self.models]  # type: ignore[no-untyped-call]

    def unbatch(self, output: list[np.ndarray]) -> list[tuple[float, float]]:
        square, cube = output
        return [(float(a), float(b)) for a, b in zip(square, cube, strict=True)]

    def encode_response(self, output: tuple[float, float]) -> dict[str, float]:
        return {"output": sum(output)}
