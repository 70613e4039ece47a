"""Texts are divided into reasoning, content and tool calls, however they come in parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.generation.text.output_parser import OutputParser
from loadbalancer.schema.text.pieces import ParsedCall, ParsedText, TextPiece, merged, parsed_text
from wire.text import Markers, ToolCallFormat

THINK, CALL = Markers("<think>", "</think>"), ToolCallFormat("<call>", "</call>")
THINK_AND_CALL = (THINK.begin, THINK.end, CALL.begin, CALL.end)
ARGUMENTS = '{"a": "}<\\"/call>", "b": [1, {"c": null}]}'
GOOD = f'{{"name": "f", "arguments": {ARGUMENTS}}}'


BARE = ToolCallFormat("", "", "bare", "parameters")
LIST = ToolCallFormat("[CALLS]", "", "list")
NAMED = ToolCallFormat("[CALLS]", "", "named", before_arguments="[ARGS]")
WITH_ID = ToolCallFormat("[CALLS]", "", "named", before_id="[ID]", before_arguments="[ARGS]")
ENCLOSED = ToolCallFormat("<f>", "</f>", "named")
BARE_CALL = f'{{"name": "f", "parameters": {ARGUMENTS}}}'


def parse(parts: list[str], *, parallel_calls: bool = True, form: ToolCallFormat = CALL) -> ParsedText:
    parser = OutputParser(THINK, form, parallel_calls=parallel_calls)
    pieces: list[TextPiece] = []
    for part in parts:
        pieces += parser.feed(part)
    return parsed_text([*pieces, *parser.finish()])


@pytest.mark.parametrize(
    ("text", "form", "is_in_call"),
    [
        ("<call>", CALL, False),
        ('<call>{"name": "f", ', CALL, False),
        ('<call>{"name": "f", "arguments": {', CALL, True),
        (f'<call>{{"name": "f", "arguments": {ARGUMENTS[:-1]}', CALL, True),
        (f'<call>{{"name": "f", "arguments": {ARGUMENTS}', CALL, False),
        (f"<call>{GOOD}</call> and more", CALL, False),
        (f'<call>{GOOD}</call><call>{{"name": "g", "arguments": {{"a"', CALL, True),
        ('[CALLS]f[ARGS]{"a": ', NAMED, True),
        (f"[CALLS]f[ARGS]{ARGUMENTS}", NAMED, False),
    ],
)
def test_texts_that_end_in_a_call(text: str, form: ToolCallFormat, is_in_call: bool) -> None:
    parser = OutputParser(THINK, form)
    parser.feed(text)
    assert parser.is_in_call == is_in_call
    first_only = OutputParser(THINK, form, parallel_calls=False)
    first_only.feed(text)
    assert first_only.is_in_call == (is_in_call and text.count("<call>") < 2)


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


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (BARE, BARE_CALL, "", [("f", ARGUMENTS)]),
        (BARE, f"\n{BARE_CALL}; {BARE_CALL}", "", [("f", ARGUMENTS)] * 2),
        (BARE, f'{{"type": "function", "name": "f", "parameters": {ARGUMENTS}}}', "", [("f", ARGUMENTS)]),
        (BARE, GOOD, "", [("f", ARGUMENTS)]),
        (BARE, f'{{"parameters": {ARGUMENTS}, "name": "f"}}', "", [("f", ARGUMENTS)]),
        (BARE, f"<think>x</think>{BARE_CALL}", "", [("f", ARGUMENTS)]),
        (BARE, f"{BARE_CALL} and more", "and more", [("f", ARGUMENTS)]),
        (BARE, BARE_CALL[:-9], "", [("f", ARGUMENTS[:-8])]),
        (BARE, '{"sum": 7}', '{"sum": 7}', []),
        (BARE, ' \n{"sum": 7}', ' \n{"sum": 7}', []),
        (BARE, '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
        (BARE, '{"name": "Ada"}', '{"name": "Ada"}', []),
        (BARE, '{"name": "Ada"', '{"name": "Ada"', []),
        (BARE, f"Call {BARE_CALL}", f"Call {BARE_CALL}", []),
        (BARE, '<think>x</think>\n{"sum": 7}', '{"sum": 7}', []),
        (BARE, "{}", "{}", []),
        (BARE, "", "", []),
        (LIST, f"[CALLS][{GOOD}, {GOOD}]", "", [("f", ARGUMENTS)] * 2),
        (NAMED, f"[CALLS]f[ARGS]{ARGUMENTS}", "", [("f", ARGUMENTS)]),
        (NAMED, f"Well. [CALLS]f[ARGS]{ARGUMENTS}[CALLS]g{{}}", "Well. ", [("f", ARGUMENTS), ("g", "{}")]),
        (NAMED, f"[CALLS] f [ARGS] {ARGUMENTS} so", "so", [("f", ARGUMENTS)]),
        (NAMED, '[CALLS]f[ARGS]{"a": 1', "", [("f", '{"a": 1')]),
        (NAMED, "[CALLS]f[AR", "[CALLS]f[AR", []),
        (NAMED, "[CALLS]no name[ARGS]{}", "[CALLS]no name[ARGS]{}", []),
        (NAMED, "[CALLS]" + "x" * 600, "[CALLS]" + "x" * 600, []),
        (WITH_ID, f"[CALLS]f[ID]abcdefghi[ARGS]{ARGUMENTS}", "", [("f", ARGUMENTS)]),
        (ENCLOSED, f"<f>f{ARGUMENTS}</f>\n<f>g{{}}</f>", "", [("f", ARGUMENTS), ("g", "{}")]),
    ],
)
def test_formats_of_other_models(form: ToolCallFormat, text: str, content: str, calls: list[Any]) -> None:
    result = parse([text], form=form)
    assert (result.content, result.calls) == (content, [ParsedCall(*call) for call in calls])
    assert parse(list(text), form=form) == result, "character by character"


@given(data=st.data(), form=st.sampled_from([BARE, LIST, NAMED, WITH_ID, ENCLOSED]))
def test_any_division_of_any_format(data: st.DataObject, form: ToolCallFormat) -> None:
    fragments = [*form.marks, BARE_CALL, GOOD, "f", ARGUMENTS, ";", "{", "}", '"name"', "[", " ", "x"]
    text = data.draw(st.lists(st.sampled_from(fragments), max_size=10).map("".join))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(parts, form=form) == parse([text], form=form)


def test_arguments_of_one_part_are_one_piece() -> None:
    parser = OutputParser(None, CALL)
    kinds = [piece.kind for piece in parser.feed(f"well <call>{GOOD}</call><call>{GOOD}")]
    assert kinds == ["content", "call", "arguments", "call", "arguments"]


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
