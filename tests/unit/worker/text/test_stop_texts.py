from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.text.stop_texts import StopTexts


def whole(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop text that is complete first, character by character."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@pytest.mark.parametrize(
    ("pieces", "stops", "sent", "stop"),
    [
        (["Hello", " world"], [], ["Hello", " world"], None),
        (["ab", "c"], ["bc"], ["a", ""], "bc"),
        (["ab", "d"], ["bc"], ["a", "bd"], None),
        (["aab"], ["ab", "b"], ["a"], "ab"),
        (["abcabd"], ["abd", "c"], ["ab"], "c"),
        (["\n", "\n", "x"], ["\n\n"], ["", ""], "\n\n"),
        (["", "a"], ["", "b"], ["", "a"], None),
    ],
)
def test_texts_end_before_the_first_stop_text(
    pieces: list[str], stops: list[str], sent: list[str], stop: str | None
) -> None:
    texts, results = StopTexts(stops), []
    for piece in pieces:
        result = texts.accept(piece)
        results.append(result[0])
        if result[1] is not None:
            break
    assert (results, result[1]) == (sent, stop)


SHORT = st.text("ab\n🙂", max_size=4)


@given(st.lists(SHORT, max_size=12), st.lists(SHORT, max_size=3))
def test_how_a_text_is_cut_makes_no_difference(pieces: list[str], stops: list[str]) -> None:
    texts, sent, stop = StopTexts(stops), "", None
    for piece in pieces:
        text, stop = texts.accept(piece)
        sent += text
        if stop is not None:
            break
    else:
        sent += texts.flush()
    assert (sent, stop) == whole("".join(pieces), stops)


@given(st.lists(SHORT, max_size=12), st.lists(SHORT.filter(bool), min_size=1, max_size=3))
def test_only_the_start_of_a_stop_text_is_held_back(pieces: list[str], stops: list[str]) -> None:
    texts, sent, received = StopTexts(stops), "", ""
    for piece in pieces:
        text, stop = texts.accept(piece)
        received, sent = received + piece, sent + text
        if stop is not None:
            return
        held = received.removeprefix(sent)
        assert not held or any(stop.startswith(held) for stop in stops)
