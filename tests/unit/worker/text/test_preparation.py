"""Texts whose prompts were prepared in another thread: equal tokens, and equal errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.support.text_engine import TextDriver, request, text_engine
from wire.inputs import Sampling
from wire.text import PlainPrompt, encode_prompt
from worker.engine import EngineRequest, TaskError
from worker.engines.text.generation import Generation

SAMPLED = Sampling(7, temperature=1.0)
PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def engine() -> Any:
    return text_engine()


def prepared(engine: Any, task: EngineRequest) -> EngineRequest:
    """Prepare the task in another thread, as the loop does."""
    with ThreadPoolExecutor(1) as pool:
        return replace(task, prepared=pool.submit(engine.prepare, task).result())


def tokens(engine: Any, task: EngineRequest) -> list[int]:
    driver = TextDriver(engine)
    driver.admit(0, task)
    driver.run()
    return driver.tokens(0)


@pytest.mark.parametrize("done", [(), (9, 8, 7)])
def test_prepared_texts_have_equal_tokens(engine: Any, done: tuple[int, ...]) -> None:
    task = request(PROMPT, 12, SAMPLED, done)
    ready = prepared(engine, task)
    assert isinstance(ready.prepared, Generation)
    assert tokens(engine, ready) == tokens(engine, task)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"sources": [encode_prompt(PlainPrompt("a long prompt " * 400))]}, True),
        ({"inputs": msgspec.structs.replace(request(PROMPT, 4).inputs, json_schema="{}")}, True),
        ({"checkpoint": request(PROMPT, 4, done=(1, 2)).checkpoint}, True),
        ({"sources": []}, False),
    ],
)
def test_only_what_takes_long_is_prepared(engine: Any, changes: dict[str, Any], expected: bool) -> None:
    assert engine.needs_preparation(replace(request(PROMPT, 4), **changes)) is expected


def test_errors_are_those_of_the_admission(engine: Any) -> None:
    task = replace(request(PROMPT, 4), sources=[b"nothing"])
    ready = prepared(engine, task)
    assert isinstance(ready.prepared, TaskError)
    answers = engine.admit([task, ready])
    assert all(isinstance(answer, TaskError) for answer in answers)
    assert {answer.message for answer in answers} == {ready.prepared.message}
