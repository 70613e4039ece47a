"""Texts are divided into reasoning, content and tool calls, however they come in parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.generation.text.output_parser import OutputParser
from loadbalancer.schema.text.pieces import ParsedCall, ParsedText, TextPiece, merged, parsed_text
from wire.text import Markers

THINK, CALL = Markers("<think>", "</think>"), Markers("<call>", "</call>")
THINK_AND_CALL = (THINK.begin, THINK.end, CALL.begin, CALL.end)
ARGUMENTS = '{"a": "}<\\"/call>", "b": [1, {"c": null}]}'
GOOD = f'{{"name": "f", "arguments": {ARGUMENTS}}}'


def parse(parts: list[str], *, parallel_calls: bool = True) -> ParsedText:
    parser = OutputParser(THINK, CALL, parallel_calls=parallel_calls)
    pieces: list[TextPiece] = []
    for part in parts:
        pieces += parser.feed(part)
    return parsed_text([*pieces, *parser.finish()])


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "calls"),
    [
        ("plain", "plain", "", []),
        ("  plain ", "  plain ", "", []),
        ("<think>\nwhy\n</think>\n\nthus", "thus", "why", []),
        ("\n<think>why", "", "why", []),
        ("thus <think>why</think>", "thus <think>why</think>", "", []),
        ("a <thin", "a <thin", "", []),
        (f"<call>{GOOD}</call>", "", "", [("f", ARGUMENTS)]),
        (f"<call>\n{GOOD}\n</call>\n<call>{GOOD}</call>\n", "", "", [("f", ARGUMENTS)] * 2),
        (f"<call>[{GOOD}, {GOOD}]</call>", "", "", [("f", ARGUMENTS)] * 2),
        (f"<think>x</think>look: <call>{GOOD}</call> done", "look: done", "x", [("f", ARGUMENTS)]),
        (f"<call>{GOOD}", "", "", [("f", ARGUMENTS)]),
        (f'<call>{{"arguments": {ARGUMENTS}, "name": "f"}}</call>', "", "", [("f", ARGUMENTS)]),
        ('<call>{"name": "f", "parameters": {}}</call>', "", "", [("f", "{}")]),
        ('<call>{"name": "f"}</call>', "", "", [("f", "{}")]),
        ('<call>{"name": "f", "arguments": null}</call>', "", "", [("f", "{}")]),
        ('<call>{"name": "f", "arguments": "{\\"a\\": 1}"}</call>', "", "", [("f", '{"a": 1}')]),
        ('<call>{"id": 12, "name": "f\\u0041", "arguments": {}, "x": [1]}</call>', "", "", [("fA", "{}")]),
        ('<call>{"name": "f", "arguments": {"a": "b', "", "", [("f", '{"a": "b')]),
        ("<call>no json</call>", "<call>no json</call>", "", []),
        ('<call>{"name": 5, "arguments": {}}</call>', '<call>{"name": 5, "arguments": {}}</call>', "", []),
        ('<call>{"nam', '<call>{"nam', "", []),
        ("<call></call>", "<call></call>", "", []),
        (f"<call><call>{GOOD}</call>", "<call>", "", [("f", ARGUMENTS)]),
        (f"<call>{GOOD} and</call>", "and</call>", "", [("f", ARGUMENTS)]),
    ],
)
def test_text_is_divided(text: str, content: str, reasoning: str, calls: list[Any]) -> None:
    expected = ParsedText(content, reasoning, [ParsedCall(*call) for call in calls])
    assert parse([text]) == expected
    assert parse(list(text)) == expected, "character by character"


#: Parts of texts that are nearly calls.
FRAGMENTS = [GOOD, *THINK_AND_CALL, '{"name": "f"', '"arguments":', '{"a": "b"}', "call>", *'}{,[] \n"a<\\5', "</"]


@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join), data=st.data())
def test_any_division_gives_the_same(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = parse([text])
    assert parse(parts) == whole
    assert all(call.name for call in whole.calls)


@given(text=st.text(alphabet='<cal>/think {}"\\n', max_size=60))
def test_text_without_calls_and_reasoning_is_kept(text: str) -> None:
    result = parse(list(text))
    if not result.calls and "<think>" not in text:
        assert result.content == text


VALUES = st.none() | st.integers(0, 99) | st.text(alphabet='"\\{}[]</aé', max_size=6) | st.just([{"a": [1]}, {}])


@given(arguments=st.dictionaries(st.sampled_from(["a", "name", "</call>"]), VALUES, max_size=3))
def test_arguments_are_passed_on_as_they_are(arguments: dict[str, Any]) -> None:
    written = json.dumps(arguments)
    text = f'<call>{{"name": "f", "arguments": {written}}}</call>'
    assert parse(list(text)).calls == [ParsedCall("f", written)]


def test_arguments_stream_after_the_name() -> None:
    parser = OutputParser(None, CALL)
    assert parser.feed('<call>{"name": "f", "arguments": ') == []
    assert merged(parser.feed('{"a": 1')) == [TextPiece("call", "f"), TextPiece("arguments", '{"a": 1')]
    assert merged(parser.feed(', "b": 2')) == [TextPiece("arguments", ', "b": 2')]
    assert merged(parser.feed("}}</call>")) == [TextPiece("arguments", "}")]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"<call>{GOOD}</call><call>{GOOD}</call>", ""),
        (f"<call>[{GOOD}, {GOOD}]</call> done", "done"),
        (f"one <call>{GOOD}</call> two <call>{GOOD}", "one two "),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_only_the_first_call_is_returned(text: str, content: str, size: int) -> None:
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    expected = ParsedText(content, "", [ParsedCall("f", ARGUMENTS)])
    assert parse(parts, parallel_calls=False) == expected
