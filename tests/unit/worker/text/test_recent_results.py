from __future__ import annotations

import pytest

from tests.support import text_models
from wire.text import ChatPrompt
from worker.engine import TaskError
from worker.engines.text.recent_results import RecentResults


def test_last_results_are_computed_once() -> None:
    computed: list[bytes] = []

    def compute(key: bytes) -> bytes:
        computed.append(key)
        return key * 2

    results = RecentResults[bytes](2)
    for key in (b"a", b"a", b"b", b"a", b"c", b"a", b"b"):
        assert results.get(key, lambda key=key: compute(key)) == key * 2  # type: ignore[misc]
    assert computed == [b"a", b"b", b"c", b"b"]


def test_errors_are_computed_once() -> None:
    computed = []

    def fail() -> None:
        computed.append(1)
        raise TaskError("invalid", "no", 400)

    results = RecentResults[None](2)
    errors = []
    for _ in range(3):
        with pytest.raises(TaskError) as caught:
            results.get(b"a", fail)
        errors.append(caught.value)
    assert len(computed) == 1
    assert {(error.kind, error.message, error.status) for error in errors} == {("invalid", "no", 400)}
    assert len({id(error) for error in errors}) == 3


def test_prompts_of_one_request_are_rendered_once() -> None:
    slow = text_models.tokenization(
        chat_template="{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        template_time_limit_s=0.2,
    )
    errors = []
    for _ in range(50):  # 10 s if each took its time
        with pytest.raises(TaskError) as caught:
            slow.encode(ChatPrompt([{"role": "user", "content": "Hi"}]))
        errors.append(caught.value.message)
    assert set(errors) == {"the chat template took more than 0.2 s"}
    other = text_models.tokenization()
    chats = [ChatPrompt([{"role": "user", "content": text}]) for text in ("a", "b", "a")]
    first, second, again = (other.encode(chat) for chat in chats)
    assert first == again != second
