from __future__ import annotations

from itertools import pairwise

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
        ([b" \xf0\x9f", b"\xa6", b"\x93", "x"], " \U0001f993", [b" \xf0\x9f", b"\xa6", b"\x93"], "x"),
        (["a", b"\xfd", "b"], "a\ufffd", ["a", b"\xfd"], "b"),
        (["x", "a", b"\xe2\x82"], "a\ufffd", ["a", b"\xe2\x82"], ""),
        (["<think>", "x", "</think>", "a", "<|im_end|>", b"\xfd", "b", "c"], "a\ufffdb", ["a", b"\xfd", "b"], "c"),
        (["<|im_end|>", "i", "s"], "i", ["i"], "s"),
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


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3), max_size=8), st.data())
def test_each_token_belongs_to_one_part(texts: list[str], data: st.DataObject) -> None:
    """A text may be cut within a token, which a stop text that was held back does. No token is lost then."""
    waiting, whole = WaitingTokens(), "".join(texts)
    waiting.add(tokens(*texts))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    places = [0, *cuts, len(whole)]
    found = [each for start, end in pairwise(places) for each in waiting.take(whole[start:end])]
    assert found == tokens(*texts)


def test_texts_that_are_not_found_leave_few_tokens() -> None:
    waiting = WaitingTokens()
    for _ in range(1500):
        waiting.add(tokens("a"))
        assert not waiting.take("b")
    waiting.add(tokens("c"))
    assert len(waiting.take("a" * 1000 + "c")) == 1001
    assert not waiting.take("a")


def test_text_that_begins_and_ends_within_tokens() -> None:
    waiting = WaitingTokens()
    waiting.add(tokens(" The", " sum", "<|im_end|>", " is"))
    assert [list(waiting.take(text)) for text in ("The ", "su", "m", " i", "s")] == [
        tokens(" The", " sum"),
        [],
        [],
        tokens(" is"),
        [],
    ]


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=8))
def test_bytes_that_are_no_characters_have_their_tokens(parts: list[bytes]) -> None:
    waiting = WaitingTokens()
    waiting.add(tokens(*parts))
    assert list(waiting.take(b"".join(parts).decode(errors="replace"))) == tokens(*parts)


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
