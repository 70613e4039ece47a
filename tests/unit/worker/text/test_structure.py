from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import text_models
from wire.inputs import Sampling, TextInputs
from wire.text import ChatPrompt, PlainPrompt, TextPrompt, ToolCallFormat
from worker.engine import TaskError
from worker.engines.text.generation import Generation
from worker.engines.text.grammar import Grammar, Grammars
from worker.engines.text.structure import TextFormat, text_grammar
from worker.engines.text.tokenization import Tokenization

EOS = 2
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("get", "get_more")
]
CALL = '<tool_call>\n{"name": "get", "arguments": {"city": "X"}}\n</tool_call>'
OTHER_CALL = CALL.replace("get", "get_more")
REASONING = "<think>\nWell ...\n</think>\n\n"
ARRAY = '{"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}'


@functools.cache
def tokenization() -> Tokenization:
    return text_models.tokenization()


def chat(choice: str = "auto", tools: list[dict[str, Any]] | None = None, **arguments: Any) -> ChatPrompt:
    messages = [{"role": "user", "content": "Hi"}]
    return ChatPrompt(messages, TOOLS if tools is None else tools, choice, arguments)


def inputs(schema: str = "", **values: Any) -> TextInputs:
    return TextInputs(Sampling(0), 200, json_schema=schema, **values)


def generation(prompt: TextPrompt, schema: str = "", **values: Any) -> Generation:
    return Generation(tokenization(), inputs(schema, **values), prompt, (), 500_000)


def ids(text: str) -> list[int]:
    return list(tokenization().tokenizer.encode(text, add_special_tokens=False))


def allowed(grammar: Grammar | None, words: int = 20) -> set[int]:
    """The tokens that may come next."""
    assert grammar is not None
    bitmask = torch.full((2, words), -1, dtype=torch.int32)
    grammar.fill_mask(bitmask, 1)
    bits = np.unpackbits(bitmask[1].numpy().view(np.uint8), bitorder="little")
    assert bitmask[0].eq(-1).all()
    return set(np.flatnonzero(bits).tolist())


def follow(text: Generation, tokens: list[int]) -> str:
    """What of these tokens the grammar allows, as a text. It ends with '|' where an end token may follow."""
    taken = []
    for token in tokens:
        if text.is_finished or token not in allowed(text.grammar):
            break
        text.accept(token)
        taken.append(token)
    may_end = text.is_finished or EOS in allowed(text.grammar)
    return str(tokenization().tokenizer.decode(taken)) + ("|" if may_end else "")


@pytest.mark.parametrize(
    ("prompt", "schema", "text", "followed"),
    [
        (chat(tools=[]), "{}", '{"a": [1, "é 🙂"]}', '{"a": [1, "é 🙂"]}|'),
        (chat(tools=[]), "{}", "[1]", ""),
        (chat(tools=[]), "{}", REASONING + '{"a": 1}', REASONING + '{"a": 1}|'),
        (chat(tools=[], enable_thinking=True), "{}", REASONING + '{"a": 1}', REASONING + '{"a": 1}|'),
        (chat(tools=[], enable_thinking=False), "{}", REASONING, ""),
        (chat(tools=[], enable_thinking=False), "{}", '{"a": 1}', '{"a": 1}|'),
        (chat("required", enable_thinking=False), "", REASONING, ""),
        (PlainPrompt("JSON:"), "{}", REASONING, ""),
        (PlainPrompt("JSON:"), "{}", '{"a": 1}', '{"a": 1}|'),
        (chat(tools=[]), ARRAY, '["a", "b"]', '["a", "b"]|'),
        (chat(tools=[]), ARRAY, '["a", "c"]', '["a", "'),
        (chat(tools=[]), ARRAY, '["a","b","a"]', '["a","b'),
        (chat(), "", "Hello", "Hello|"),
        (chat(), "", f"Hello {CALL}", f"Hello {CALL}|"),
        (chat(), "", f"{REASONING}{CALL}\n{OTHER_CALL} Done.", f"{REASONING}{CALL}\n{OTHER_CALL} Done.|"),
        (chat(), "", CALL.replace("get", "put"), '<tool_call>\n{"name": "'),
        (chat(), "", CALL.replace('"X"', "1"), '<tool_call>\n{"name": "get", "arguments": {"city": '),
        (chat("required"), "", "Hello", ""),
        (chat("required"), "", CALL, f"{CALL}|"),
        (chat("required"), "", f"{REASONING}{CALL}\n{OTHER_CALL}", f"{REASONING}{CALL}\n{OTHER_CALL}|"),
        (chat("get"), "", CALL + CALL, f"{CALL}|"),
        (chat("get_more"), "", CALL, '<tool_call>\n{"name": "get'),
        (chat(), "{}", '{"a": 1}', '{"a": 1}|'),
        (chat(), "{}", CALL, f"{CALL}|"),
        (chat(), "{}", "Hello", ""),
    ],
)
def test_texts_follow_their_grammar(prompt: TextPrompt, schema: str, text: str, followed: str) -> None:
    assert follow(generation(prompt, schema), ids(text)) == followed


def test_the_end_of_the_grammar_ends_the_text() -> None:
    text = generation(chat(tools=[]), "{}")
    for token in ids('{"a": 1}'):
        text.accept(token)
    output = text.take()
    assert output is not None
    assert (output.text, output.finish, output.stop_reason) == ('{"a": 1}', "stop", None)


@pytest.mark.parametrize("marker_tokens", [True, False])
def test_a_call_spelled_by_other_tokens_is_a_call(marker_tokens: bool) -> None:
    spelled = ids("<tool_call>") if marker_tokens else [token for char in "<tool_call>" for token in ids(char)]
    text = generation(chat())
    assert follow(text, [*ids("Hi "), *spelled]) == "Hi <tool_call>"
    assert EOS not in allowed(text.grammar)


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_texts_without_tools_are_free(choice: str) -> None:
    assert generation(chat(choice, [])).grammar is None
    assert generation(chat("none")).grammar is None
    assert generation(PlainPrompt("a")).grammar is None


def test_resumed_texts_go_on_in_their_grammar() -> None:
    tokens = ids(CALL)
    for cut in range(len(tokens)):
        undisturbed = generation(chat("required"))
        for token in tokens[:cut]:
            undisturbed.accept(token)
        resumed = Generation(tokenization(), inputs(), chat("required"), tokens[:cut], 2000)
        assert allowed(resumed.grammar) == allowed(undisturbed.grammar)


def test_a_token_outside_the_grammar_fails_the_text() -> None:
    with pytest.raises(TaskError, match="the text left its grammar"):
        generation(chat(tools=[]), "{}").accept(ids("x")[0])


def test_masks_are_as_wide_as_the_model() -> None:
    grammar = generation(chat(tools=[]), "{}").grammar
    narrow = -(-tokenization().vocabulary // 32)
    assert allowed(grammar, narrow) == allowed(grammar, narrow + 9)
    assert allowed(grammar, 3) == {token for token in allowed(grammar) if token < 96}


def test_grammars_come_before_minimum_lengths() -> None:
    assert not generation(chat("required"), min_tokens=100).forbidden
    assert set(generation(chat(), min_tokens=100, stop_token_ids=(7,)).forbidden) == {EOS}
    assert set(generation(chat("none"), min_tokens=100, stop_token_ids=(7,)).forbidden) == {EOS, 7}


def test_engines_without_grammars_take_free_texts() -> None:
    free = Generation(tokenization(), inputs(), chat(), (), 2000, has_grammars=False)
    assert free.grammar is None
    for prompt, schema in ((chat("required"), ""), (chat("get"), ""), (chat(), "{}")):
        with pytest.raises(TaskError, match="neither structured output nor forced tool calls"):
            Generation(tokenization(), inputs(schema), prompt, (), 2000, has_grammars=False)


def test_tokenizers_without_grammars_take_free_texts() -> None:
    own = Tokenization(text_models.unigram_tokenizer())
    assert Generation(own, inputs(), chat(), (), 20_000).grammar is None
    for prompt, schema in ((chat("get"), ""), (PlainPrompt("a"), "{}")):
        with pytest.raises(TaskError, match="neither structured output nor forced tool calls for its kind"):
            Generation(own, inputs(schema), prompt, (), 20_000)


def function(**values: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **values}}]


@pytest.mark.parametrize(
    ("prompt", "schema", "problem"),
    [
        (chat(tools=[]), "{", "json_schema: it is no valid JSON"),
        (chat(tools=[]), "[]", "json_schema: .* must be an object"),
        (chat(tools=[]), "true", "json_schema: .* must be an object"),
        (chat(tools=[]), '{"type": "objct"}', "json_schema: .* Invalid type: objct"),
        (chat(tools=[]), '{"not": {}}', 'these keywords are not supported: \\["not"\\]'),
        (chat(tools=[]), '{"oneOf": [{"minimum": 1}, {"minimum": 2}]}', "oneOf with overlapping choices are not"),
        (chat(tools=[]), '{"type": "string", "pattern": "("}', "json_schema: .* unclosed group"),
        (chat(tools=[]), '{"$ref": "#/$defs/x"}', "json_schema: .*/\\$defs/x"),
        (chat(tools=[]), '{"$ref": "http://example.com/x"}', "json_schema: .*example.com"),
        (chat(tools=[]), '{"a":' * 500 + "1" + "}" * 500, "json_schema: .*recursion"),
        (chat(tools=[]), '{"a":' * 100_000 + "1" + "}" * 100_000, "json_schema: it is no valid JSON"),
        (chat(tools=[]), json.dumps({"properties": {f"p{i}": {} for i in range(600)}}), "more than 512 properties"),
        (chat("required", []), "", "'required' needs tools"),
        (chat("put"), "", "there is no tool 'put'"),
        (chat(tools=function(parameters={"type": "objct"})), "", "tools: function 'f': .* Invalid type: objct"),
        (chat(tools=function(parameters=[])), "", ""),
        (chat(tools=function(parameters={"not": {}}, strict=True)), "", "keywords are not supported"),
        (chat(tools=function(name='f"')), "", "tools: a name must consist of"),
        (chat(tools=[{"type": "function"}]), "", "tools: number 0 must have a function"),
        (
            chat(tools=function(parameters={"properties": {"a": {"const": "x" * 300_000}}})),
            "",
            "more than 262144 characters",
        ),
    ],
)
def test_bad_schemas_and_tools_are_refused(prompt: TextPrompt, schema: str, problem: str) -> None:
    if not problem:
        assert generation(prompt, schema).grammar is not None
        return
    with pytest.raises(TaskError, match=problem) as caught:
        generation(prompt, schema)
    assert (caught.value.kind, caught.value.status) == ("invalid", 400)


@pytest.mark.parametrize(
    "schema",
    [
        {"$schema": "https://unknown.example/schema", "type": "integer"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "integer"},
        {"type": "integer", "x-vendor": 1, "description": "A number.", "x-guidance": {"whitespace_pattern": "("}},
    ],
)
def test_annotations_of_schemas_have_no_effect(schema: dict[str, Any]) -> None:
    assert follow(generation(chat(tools=[]), json.dumps(schema)), ids("12")) == "12|"


def test_unsupported_keywords_of_tools_are_ignored() -> None:
    tools = function(parameters={"type": "object", "properties": {"a": {"oneOf": [{"type": "string", "not": {}}, {}]}}})
    text = CALL.replace("get", "f").replace("city", "a")
    assert follow(generation(chat("f", tools)), ids(text)) == f"{text}|"


@pytest.mark.parametrize(
    ("parameters", "arguments", "is_call"),
    [
        (None, {}, True),
        (None, {"a": 1}, False),
        ({}, {"a": 1}, False),
        ({"type": "object", "properties": {"a": {}}}, {"a": 1}, True),
        ({"properties": {"a": {}}}, {"a": 1}, True),
        ({"type": "object", "properties": {"a": {}}}, {"b": 1}, False),
        ({"type": "object", "additionalProperties": True}, {"b": 1}, True),
        ({"type": "object", "anyOf": [{"required": ["b"]}]}, {"b": 1}, True),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "object"}}}, {"b": 1}, True),
    ],
)
def test_only_named_arguments_are_generated(
    parameters: dict[str, Any] | None, arguments: dict[str, Any], is_call: bool
) -> None:
    tools = function() if parameters is None else function(parameters=parameters)
    call = f'<tool_call>{{"name": "f", "arguments": {json.dumps(arguments)}}}</tool_call>'
    assert (follow(generation(chat("f", tools)), ids(call)) == f"{call}|") is is_call


@pytest.mark.parametrize(
    ("space", "is_kept"), [("", True), (" ", True), ("\n    ", True), ("\n\t", True), ("  ", False), ("\n\n", False)]
)
def test_white_space_in_json_is_that_of_writers(space: str, is_kept: bool) -> None:
    written = f'{{{space}"a":{space}1}}'
    assert (follow(generation(chat(tools=[]), "{}"), ids(written)) == f"{written}|") is is_kept


def test_indentation_in_json_is_bounded() -> None:
    text = generation(chat(tools=[]), "{}")
    assert len(follow(text, [*ids("{\n"), *ids(" ") * 100])) <= 66


ARGUMENTS = '{"city": "X"}'
MARK = "<|im_start|>"


@pytest.mark.parametrize(
    ("form", "call"),
    [
        (ToolCallFormat(MARK, "", "list"), f'{MARK}[{{"name": "get", "arguments": {ARGUMENTS}}}]'),
        (ToolCallFormat("<c>", "</c>", "list"), f'<c>[{{"name": "get", "arguments": {ARGUMENTS}}}]</c>'),
        (ToolCallFormat(MARK, "", "named", before_arguments="[ARGS]"), f"{MARK}get[ARGS]{ARGUMENTS}"),
        (ToolCallFormat("[C]", "", "named", "arguments", "[ID]", MARK), f"[C]get[ID]abcdefghi{MARK}{ARGUMENTS}"),
        (ToolCallFormat("<c>", "</c>", "named"), f"<c>get{ARGUMENTS}</c>"),
        (ToolCallFormat("", "", "bare", "parameters"), f'{{"name": "get", "parameters": {ARGUMENTS}}}'),
    ],
)
def test_formats_of_calls(form: ToolCallFormat, call: str) -> None:
    """As models of different families write them; a mark may be a special token."""
    own = tokenization()
    added = {token: each.content for token, each in own.tokenizer.added_tokens_decoder.items()}
    grammars = Grammars(own.tokenizer.backend_tokenizer, own.vocabulary, own.eos_ids, added)
    for choice, start in (("auto", "Hi "), ("required", ""), ("get", "")):
        lark = text_grammar(inputs(), chat(choice), TextFormat(None, form, grammars.special_id), opens_reasoning=False)
        if form.style == "bare" and choice == "auto":
            assert lark is None, "nothing marks where a call begins"
            continue
        assert lark is not None
        grammar = grammars.compile(lark, is_free=choice == "auto")
        for token in ids(start + call):
            assert token in allowed(grammar)
            grammar.accept(token)
        assert EOS in allowed(grammar)


def test_object_of_the_most_optional_properties() -> None:
    """Each property may come next, which makes the rows of the parser long."""
    schema = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(512)}}
    text = '{"p511": "a"}'
    assert follow(generation(chat(tools=[]), json.dumps(schema)), ids(text)) == f"{text}|"


def test_bare_calls_beside_a_schema() -> None:
    form = TextFormat(None, ToolCallFormat("", "", "bare", "parameters"), lambda text: None)
    lark = text_grammar(inputs('{"type": "integer"}'), chat(), form, opens_reasoning=False)
    assert lark is not None
    assert "answer: json | calls" in lark


def test_a_prompt_within_the_reasoning() -> None:
    own = text_models.tokenization(chat_template=text_models.CHATML + "{{- '<think>\\n' }}")
    text = Generation(own, inputs("{}"), chat(tools=[]), (), 2000)
    tokens = list(own.tokenizer.encode('Well.\n</think>\n{"a": 1}', add_special_tokens=False))
    pieces = []
    for token in tokens:
        assert token in allowed(text.grammar)
        text.accept(token)
        output = text.take()
        assert output is not None
        pieces.append(output.text)
    assert "".join(pieces) == '<think>Well.\n</think>\n{"a": 1}'
    assert text.is_finished
    resumed = Generation(own, inputs("{}"), chat(tools=[]), tokens[:1], 2000)
    resumed.accept(tokens[1])
    output = resumed.take()
    assert output is not None
    assert output.text == pieces[1]
