from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.generation.text.response_items import ResponseItems
from loadbalancer.generation.text.waiting_tokens import WaitingTokens
from loadbalancer.schema.text.pieces import TextPiece
from loadbalancer.schema.text.response_answer import MessageItem
from loadbalancer.schema.text.response_events import OutputTextDelta
from wire.text import TokenLogprob


def tokens(*texts: str | bytes) -> list[TokenLogprob]:
    return [TokenLogprob(text.encode() if isinstance(text, str) else text, -0.5) for text in texts]


@pytest.mark.parametrize(
    ("given", "text", "expected", "rest"),
    [
        (["a", "b", "c"], "ab", ["a", "b"], "c"),
        (["<think>", "x", "</think>", "so"], "so", ["so"], ""),
        (["Hello", " wor", "ld"], "Hello wo", ["Hello", " wor"], "ld"),
        ([b"\xc3", b"\xa4", "x"], "\xe4", [b"\xc3", b"\xa4"], "x"),
        (["a"], "b", [], "a"),
        ([], "b", [], ""),
        (["a"], "", [], "a"),
    ],
)
def test_tokens_of_a_text(given: list[str | bytes], text: str, expected: list[str | bytes], rest: str) -> None:
    waiting = WaitingTokens()
    waiting.add(tokens(*given))
    assert list(waiting.take(text)) == tokens(*expected)
    assert [each.token.decode() for each in waiting.take(rest)] == ([rest] if rest else [])


@given(st.lists(st.text(min_size=1, max_size=3), max_size=8), st.data())
def test_each_token_belongs_to_one_part(texts: list[str], data: st.DataObject) -> None:
    waiting, whole = WaitingTokens(), "".join(texts)
    waiting.add(tokens(*texts))
    cut = data.draw(st.integers(0, len(whole)))
    found = [*waiting.take(whole[:cut]), *waiting.take(whole[cut:])]
    if cut in (0, len(whole)):
        assert found == tokens(*texts)
    assert len(found) <= len(texts)


def test_logprobs_are_those_of_the_message() -> None:
    """Reasoning that says the same before takes its own tokens."""
    items, given = ResponseItems("00"), tokens("<think>", "7", "</think>", "\n", "7", ".", "<|im_end|>")
    events = items.add([TextPiece("reasoning", "7"), TextPiece("content", "7.")], given)
    [delta] = [event for event in events if isinstance(event, OutputTextDelta)]
    assert [each.token for each in delta.logprobs] == ["7", "."]
    items.finish("completed")
    message = items.items[1]
    assert isinstance(message, MessageItem)
    assert message.content[0].logprobs == delta.logprobs
