from __future__ import annotations

import pytest

from tests.support import text_models
from wire.text import ChatPrompt
from worker.engine import TaskError
from worker.engines.text.recent_results import RecentResults, TransientError


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


@pytest.mark.parametrize(("transient_s", "attempts"), [(0.0, 3), (600.0, 1)])
def test_errors_of_a_busy_moment_are_kept_for_a_time(transient_s: float, attempts: int) -> None:
    computed = []

    def fail_twice() -> str:
        computed.append(1)
        if len(computed) < 3:
            raise TransientError("invalid", "it took too long", 400)
        return "a prompt"

    results = RecentResults[str](2, transient_s=transient_s)
    for _ in range(2):
        with pytest.raises(TransientError, match="too long"):
            results.get(b"a", fail_twice)
    if transient_s:
        with pytest.raises(TransientError):
            results.get(b"a", fail_twice)
    else:
        assert results.get(b"a", fail_twice) == results.get(b"a", fail_twice) == "a prompt"
    assert len(computed) == attempts


@pytest.mark.parametrize(
    ("template", "is_transient"),
    [
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", True),
        ("{{ raise_exception('no') }}", False),
    ],
)
def test_only_errors_that_depend_on_time_are_transient(template: str, is_transient: bool) -> None:
    tokenization = text_models.tokenization(chat_template=template, template_time_limit_s=0.2 if is_transient else 30.0)
    with pytest.raises(TaskError) as caught:
        tokenization.encode(ChatPrompt([{"role": "user", "content": "Hi"}]))
    assert isinstance(caught.value, TransientError) is is_transient


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
