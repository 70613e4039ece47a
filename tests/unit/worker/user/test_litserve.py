"""Classes written for LitServe: the hooks are called in LitServe's order with LitServe's arguments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy
import pytest

from muster.litserve import LitAPI, LitServer, Request, Response
from tests.support.user_engines import CallOutcome, call, run_calls, user_engine
from worker.engine import UnsupportedModel


class HTTPException(Exception):
    """As FastAPI's."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(status_code, detail)
        self.status_code = status_code
        self.detail = detail


class Square(LitAPI):
    def setup(self, device: str) -> None:
        assert self.device == device == "cpu"
        self.exponent = 2

    def decode_request(self, request: Request) -> Any:
        if request["input"] < 0:  # type: ignore[index]
            raise HTTPException(422, "input must not be negative")
        return request["input"]  # type: ignore[index]

    def predict(self, x: Any) -> Any:
        return x**self.exponent

    def encode_response(self, output: Any) -> Any:
        return {"output": output}


class Stacked(Square):
    """The default hooks stack arrays."""

    def decode_request(self, request: Request) -> Any:
        return numpy.asarray(super().decode_request(request))

    def predict(self, x: Any) -> Any:
        assert x.shape == (2,)
        return super().predict(x)


class Contexts(LitAPI):
    def decode_request(self, request: Any, context: dict[str, Any]) -> Any:  # type: ignore[override]
        context["name"] = request["name"]
        return request["x"]

    def batch(self, inputs: list[Any], context: list[dict[str, Any]]) -> Any:  # type: ignore[override]
        return [f"{x}{each['name']}" for x, each in zip(inputs, context, strict=True)]

    def predict(self, x: list[Any], context: list[dict[str, Any]]) -> Any:  # type: ignore[override]
        return {"values": x, "count": len(context)}

    def unbatch(self, output: Any) -> Any:
        return output["values"]

    def encode_response(self, output: Any, context: dict[str, Any]) -> Any:  # type: ignore[override]
        if context["name"] == "bad":
            raise HTTPException(400, "bad name")
        return [output, context["name"]]


class Tokens(LitAPI):
    def predict(self, x: str) -> Iterator[str]:
        yield from x.split()

    def encode_response(self, output: Iterator[str]) -> Iterator[dict[str, str]]:
        for token in output:
            yield {"token": token}


class TokenBatches(LitAPI):
    def predict(self, x: list[str]) -> Iterator[list[str]]:
        for index in range(2):
            yield [f"{each}{index}" for each in x]

    def encode_response(self, output: Iterator[list[str]]) -> Iterator[list[dict[str, str]]]:
        for tokens in output:
            yield [{"token": token} for token in tokens]


class Coroutines(LitAPI):
    async def decode_request(self, request: Any) -> Any:
        return request["x"]

    async def predict(self, x: int) -> int:
        return x + 1

    async def encode_response(self, output: int) -> Any:
        return {"y": output}


class AsyncTokens(LitAPI):
    async def predict(self, x: str) -> AsyncIterator[str]:
        for token in x.split():
            yield token

    async def encode_response(self, output: AsyncIterator[str]) -> AsyncIterator[str]:
        async for token in output:
            yield token.upper()


def test_single_requests() -> None:
    made = user_engine(Square)
    found = run_calls(made, [call({"input": 3}), call({"input": -1}), call({"inputs": 3})])
    assert found == [
        CallOutcome({"output": 9}),
        CallOutcome(error="input must not be negative"),
        CallOutcome(error="KeyError: 'input'"),
    ]
    assert (made.limits().max_batch_size, made.info().streams) == (1, False)


def test_batches_are_stacked_and_taken_apart() -> None:
    made = user_engine(lambda: Stacked(max_batch_size=4, batch_timeout=0.05))
    assert run_calls(made, [call({"input": 3}), call({"input": 2})]) == [
        CallOutcome({"output": 9}),
        CallOutcome({"output": 4}),
    ]
    assert made.limits() == (4, 50)


def test_configured_batch_size_decides_how_hooks_are_called() -> None:
    made = user_engine(Stacked, max_batch_size=2)
    assert run_calls(made, [call({"input": 3}), call({"input": 2})])[1] == CallOutcome({"output": 4})


def test_context_reaches_every_hook() -> None:
    made = user_engine(lambda: Contexts(max_batch_size=4))
    found = run_calls(made, [call({"x": 1, "name": "a"}), call({"x": 2, "name": "bad"}), call({"x": 3, "name": "c"})])
    assert found == [CallOutcome(["1a", "a"]), CallOutcome(error="bad name"), CallOutcome(["3c", "c"])]


def test_streams() -> None:
    made = user_engine(lambda: Tokens(stream=True))
    [found] = run_calls(made, [call("a b", stream=True)])
    assert found.chunks == ({"token": "a"}, {"token": "b"})
    batches = user_engine(lambda: TokenBatches(stream=True, max_batch_size=2))
    found, other = run_calls(batches, [call("a", stream=True), call("b", stream=True)])
    assert (found.chunks, other.chunks) == (
        ({"token": "a0"}, {"token": "a1"}),
        ({"token": "b0"}, {"token": "b1"}),
    )


def test_async_hooks() -> None:
    made = user_engine(lambda: Coroutines(enable_async=True))
    assert run_calls(made, [call({"x": 1}), call({"x": 2})]) == [CallOutcome({"y": 2}), CallOutcome({"y": 3})]
    streams = user_engine(lambda: AsyncTokens(enable_async=True, stream=True))
    [found] = run_calls(streams, [call("a b", stream=True)])
    assert found.chunks == ("A", "B")
    for engine in (made, streams):
        engine.close()


def test_response_objects_are_sent_as_bytes() -> None:
    class Page(LitAPI):
        def predict(self, x: Any) -> Any:
            return Response(content=b"raw", media_type="image/gif")

    assert run_calls(user_engine(Page), [call(1)]) == [CallOutcome(b"raw")]


def test_wrong_number_of_outputs_is_explained() -> None:
    class Short(LitAPI):
        def predict(self, x: Any) -> Any:
            return x[:1]

    found = run_calls(user_engine(lambda: Short(max_batch_size=2)), [call(1), call(2)])
    assert {each.error for each in found} == {"unbatch, or predict without it, returned 1 results for 2 items"}


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        (lambda: Tokens(), "Tokens.predict is a generator, which needs stream=True"),
        (lambda: Coroutines(enable_async=True, max_batch_size=2), "enable_async goes without batches"),
    ],
)
def test_unsupported_classes_are_explained(engine: Any, text: str) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        user_engine(engine)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"spec": object()}, "spec is not supported"),
        ({"mcp": object()}, "mcp is not supported"),
        ({"max_batch_size": 0}, "max_batch_size must be greater than 0"),
        ({"api_path": "x"}, "api_path must start with '/'"),
    ],
)
def test_unsupported_options_are_explained(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LitAPI(**options)


def test_server_says_that_it_is_not_needed() -> None:
    with pytest.raises(RuntimeError, match="LitServer is not needed"):
        LitServer(Square(), accelerator="auto")
