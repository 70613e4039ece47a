"""Calls the hooks of a LitServe class: decode_request, batch, predict, unbatch and encode_response.

The order and arguments are those of LitServe 0.2.19. `batch` and `unbatch` are only called when `max_batch_size` is
above 1; a hook with an argument named `context` gets a dict per request, which all hooks of that request share.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from worker.engine import TaskError
from worker.engines.user.failures import call_error
from worker.engines.user.runners import count_problem


class LitServeItem(NamedTuple):
    """A decoded request and its context."""

    value: Any
    context: dict[str, Any]


class LitServeHooks:
    """The hooks of one instance, as the functions that runners take."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._decode = _with_context(api.decode_request)
        self._predict = _with_context(api.predict)
        self._encode = _with_context(api.encode_response)
        self._batch = _with_context(getattr(api, "batch", _stack))
        self._unbatch = _with_context(api.unbatch) if hasattr(api, "unbatch") else _unbatch

    def setup(self, device: str) -> None:
        """Set `device` as LitServe does, then call `setup`."""
        pre_setup = getattr(self._api, "pre_setup", None)
        if callable(pre_setup):  # of the real LitAPI: it chooses the default of unbatch
            pre_setup()
        self._api.device = device
        self._api.setup(device)

    def decode(self, request: Any) -> LitServeItem:
        """Raises any exception of the hook."""
        context: dict[str, Any] = {}
        return LitServeItem(self._decode(request, context), context)

    def predict(self, item: LitServeItem) -> Any:
        """Return the response of one request."""
        return self._encode(self._predict(item.value, item.context), item.context)

    def predict_batch(self, items: Sequence[LitServeItem]) -> list[Any]:
        """Return a response or an exception for each request."""
        contexts = [item.context for item in items]
        batch = self._batch([item.value for item in items], contexts)
        outputs = self._unbatch(self._predict(batch, contexts), contexts)
        if problem := count_problem(outputs, len(items)):
            return [TaskError("error", f"unbatch, or predict without it, {problem}")] * len(items)
        return [self._encode_one(output, context) for output, context in zip(outputs, contexts, strict=True)]

    def stream(self, item: LitServeItem) -> Iterator[Any]:
        """Return the chunks of one request."""
        values: Iterator[Any] = self._encode(self._predict(item.value, item.context), item.context)
        return values

    def stream_batch(self, items: Sequence[LitServeItem]) -> Iterator[Any]:
        """Return lists with a chunk for each request."""
        contexts = [item.context for item in items]
        batch = self._batch([item.value for item in items], contexts)
        unbatched = self._unbatch(self._predict(batch, contexts), contexts)
        values: Iterator[Any] = self._encode(unbatched, contexts)
        return values

    async def predict_async(self, item: LitServeItem) -> Any:
        """Return the response of one request, whose hooks may be coroutines."""
        output = await _resolve(self._predict((await _resolve(item.value)), item.context))
        return await _resolve(self._encode(output, item.context))

    async def stream_async(self, item: LitServeItem) -> Any:
        """Yield the chunks of one request, whose hooks may be async generators."""
        values = self._predict(await _resolve(item.value), item.context)
        chunks = await _resolve(self._encode(values, item.context))
        if hasattr(chunks, "__aiter__"):
            async for chunk in chunks:
                yield chunk
            return
        for chunk in chunks:
            yield chunk

    def _encode_one(self, output: Any, context: Any) -> Any:
        try:
            return self._encode(output, context)
        except Exception as error:
            return call_error(error)


async def _resolve(value: Any) -> Any:
    """Return the result of a coroutine, or the value itself."""
    return await value if inspect.isawaitable(value) else value


def _with_context(hook: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return a function of a value and its context, which the hook gets only if it has an argument for it."""
    if "context" in inspect.signature(hook).parameters:
        return lambda value, context: hook(value, context=context)
    return lambda value, _: hook(value)


def _stack(inputs: Sequence[Any]) -> Any:
    """Stack tensors and arrays, for a class without `batch`."""
    first = inputs[0]
    if hasattr(first, "__torch_function__"):
        return sys.modules["torch"].stack(inputs)
    if type(first).__name__ == "ndarray":
        return sys.modules["numpy"].stack(inputs)
    return inputs


def _unbatch(output: Any, context: Any) -> Any:
    del context
    return list(output)
