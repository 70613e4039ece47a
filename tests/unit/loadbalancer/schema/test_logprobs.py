from __future__ import annotations

import pytest

from loadbalancer.schema.text.logprobs import TokenOffsets, completion_logprobs
from wire.text import TokenLogprob

TOP = [(b"a", -0.5), (b"b", -1.0)]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [((b"a", -0.5), {"a": -0.5, "b": -1.0}), ((b"z", -7.0), {"a": -0.5, "b": -1.0, "z": -7.0})],
)
def test_alternatives_of_completions_have_the_chosen_token(
    chosen: tuple[bytes, float], expected: dict[str, float]
) -> None:
    found = completion_logprobs([TokenLogprob(*chosen, TOP)], TokenOffsets(), 2)
    assert found.top_logprobs == [expected]
    assert completion_logprobs([TokenLogprob(*chosen)], TokenOffsets(), 0).top_logprobs is None


def test_characters_of_several_tokens() -> None:
    """Their tokens have one place and keys of their own, also where a stream divides them."""
    text = "a🙂é!"
    tokens = [b"a", b"\xf0\x9f", b"\x99\x82", "é".encode()[:1], "é".encode()[1:] + b"!"]
    alternatives = [(b"\xf0\x9f", -0.5), (b"\xe2", -1.0)]
    offsets = TokenOffsets()
    parts = [
        completion_logprobs([TokenLogprob(token, -0.5, alternatives) for token in part], offsets, 2)
        for part in (tokens[:2], tokens[2:4], tokens[4:])
    ]
    places = [place for part in parts for place in part.text_offset]
    assert places == [0, 1, 1, 2, 2]
    assert [text[place] for place in places] == ["a", "🙂", "🙂", "é", "é"]
    assert parts[0].tokens == ["a", "bytes:\\xf0\\x9f"]
    assert parts[0].top_logprobs is not None
    assert parts[0].top_logprobs[1] == {"bytes:\\xf0\\x9f": -0.5, "bytes:\\xe2": -1.0}
