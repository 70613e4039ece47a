"""`from muster.litserve import LitAPI` in place of `from litserve import LitAPI`: the class then runs in Muster.

The hooks are those of LitServe 0.2: `setup`, `decode_request`, `batch`, `predict`, `unbatch` and `encode_response`,
with `stream`, `context`, `max_batch_size`, `batch_timeout` and `enable_async`. The server itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class LitAPI:
    """Source-compatible with `litserve.LitAPI`, as far as the hooks go."""

    def __init__(
        self,
        max_batch_size: int = 1,
        batch_timeout: float = 0.0,
        api_path: str = "/predict",
        stream: bool = False,
        loop: Any = "auto",
        spec: Any = None,
        mcp: Any = None,
        enable_async: bool = False,
    ) -> None:
        """Raises `ValueError` for options without meaning or without an equivalent in Muster."""
        if max_batch_size <= 0:
            raise ValueError("max_batch_size must be greater than 0")
        if batch_timeout < 0:
            raise ValueError("batch_timeout must be greater than or equal to 0")
        if not api_path.startswith("/"):
            raise ValueError("api_path must start with '/'")
        for name, value, default in (("loop", loop, "auto"), ("spec", spec, None), ("mcp", mcp, None)):
            if value not in (None, default):
                raise ValueError(f"{name} is not supported: Muster schedules batches itself and has its own APIs")
        self.max_batch_size = max_batch_size
        self.batch_timeout = batch_timeout
        self.api_path = api_path
        self.stream = stream
        self.enable_async = enable_async
        #: Set before `setup`.
        self.device: str | None = None

    def setup(self, device: str) -> None:
        """Load the model."""

    def decode_request(self, request: Any) -> Any:
        """Return the model's input for the JSON value of a request."""
        return request

    def batch(self, inputs: list[Any]) -> Any:
        """Stack tensors and arrays; other inputs stay a list."""
        first = inputs[0]
        if hasattr(first, "__torch_function__"):
            import torch

            return torch.stack(inputs)
        if type(first).__name__ == "ndarray":
            import numpy

            return numpy.stack(inputs)
        return inputs

    def predict(self, x: Any) -> Any:
        """Return the output, one per input of a batch; with `stream` yield them."""
        raise NotImplementedError("predict is not implemented")

    def unbatch(self, output: Any) -> Iterable[Any]:
        """Return one output per input; for a stream, yield such a list for each value."""
        if self.stream:
            return _unbatch_stream(output)
        return list(output)

    def encode_response(self, output: Any) -> Any:
        """Return the value of the response; for a stream, yield them."""
        return output

    def log(self, key: str, value: Any) -> None:
        """Write the value to the worker's log."""
        print(f"{key}: {value}")

    def health(self) -> bool:
        """Not called: Muster replaces a worker that hangs or dies by itself."""
        return True


def _unbatch_stream(outputs: Iterable[Any]) -> Iterator[list[Any]]:
    for output in outputs:
        yield list(output)


class Request:
    """Annotation of `decode_request` in LitServe: the parsed JSON."""


class Response:
    """Bytes or text with a media type, as a result of `encode_response`."""

    def __init__(self, content: bytes | str = b"", media_type: str | None = None) -> None:
        self.body = content.encode() if isinstance(content, str) else content
        self.media_type = media_type or ("text/plain" if isinstance(content, str) else "application/octet-stream")


class LitServer:
    """Refuses with an explanation: the configuration of Muster says what `LitServer` said."""

    def __init__(self, *apis: Any, **options: Any) -> None:
        """Raises `RuntimeError`."""
        del apis, options
        raise RuntimeError(
            "LitServer is not needed: name the class in the configuration (engine: FILE.py:CLASS) and start Muster"
        )
