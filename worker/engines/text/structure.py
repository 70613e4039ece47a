"""The grammar of a whole text: reasoning, then an object of JSON, tool calls or free text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from wire.inputs import TextInputs
from wire.text import ChatPrompt, Markers, TextPrompt, ToolCallFormat
from worker.engine import TaskError
from worker.engines.text.schemas import schema_rule
from worker.engines.text.tools import tool_rules

#: Calls of one text, if one is required.
_MAX_CALLS = 16
#: Free text, and what may stand between markers and what they surround.
_TERMINALS = ["TEXT: /(.|\\n)*/", "SPACE: /[ \\n]{1,4}/"]


class TextFormat(NamedTuple):
    """How a model marks the parts of its texts."""

    reasoning: Markers | None
    tool_calls: ToolCallFormat | None
    #: Returns the id of a token that only its id matches, no text; None for any other text.
    special_id: Callable[[str], int | None]

    def marker(self, text: str) -> str:
        """Return the grammar's symbol of a marker."""
        token = self.special_id(text)
        return json.dumps(text) if token is None else f"<[{token}]>"

    def text_until(self, rule: str, marker: str) -> list[str]:
        """Return the rules for free text up to its first marker, which may be spelled by several tokens."""
        spelled = f"{rule}_spelled[lazy]: TEXT {json.dumps(marker)}"
        if self.special_id(marker) is None:
            return [f"{rule}: {rule}_spelled", spelled]
        return [f"{rule}: TEXT {self.marker(marker)} | {rule}_spelled", spelled]


def is_free(inputs: TextInputs, prompt: TextPrompt) -> bool:
    """Return whether the text may be any, apart from its tool calls."""
    return not inputs.json_schema and (not isinstance(prompt, ChatPrompt) or prompt.tool_choice in ("auto", "none"))


def text_grammar(inputs: TextInputs, prompt: TextPrompt, form: TextFormat, *, opens_reasoning: bool) -> str | None:
    """Return the grammar of a text in Lark's syntax; None for a free text.

    `opens_reasoning`: the prompt ends within the reasoning. Raises `TaskError` for a schema or tools with an error.
    """
    tools, choice = _tools(prompt, form)
    rules, answers = [], list[str]()
    if inputs.json_schema:
        rules.append(f"json: {schema_rule('json_schema', _parse(inputs.json_schema))}")
        answers.append("json")
    if tools:
        assert form.tool_calls is not None
        if form.tool_calls.style != "bare" or choice != "auto" or answers:  # nothing marks where a free text has calls
            rules += [*tool_rules(tools, choice, form.tool_calls, form.marker), *_call_rules(form, form.tool_calls)]
            answers = _tool_answers(choice, answers)
    if not answers:
        return None
    start = ["start: answer"]
    if form.reasoning is not None and (opens_reasoning or _may_reason(prompt)):
        start = ["start: reasoning answer", *_reasoning_rules(form, form.reasoning, is_open=opens_reasoning)]
    return "\n".join([*start, f"answer: {' | '.join(answers)}", *rules, *_TERMINALS])


def _may_reason(prompt: TextPrompt) -> bool:
    """False for a text whose request has turned reasoning off: a forced answer would be missing from it."""
    return isinstance(prompt, ChatPrompt) and prompt.template_arguments.get("enable_thinking") is not False


def _tool_answers(choice: str, others: list[str]) -> list[str]:
    if choice == "auto":
        return [*others, "calls"] if others else ["free_calls TEXT"]
    return ["calls" if choice == "required" else "call"]


def _tools(prompt: TextPrompt, form: TextFormat) -> tuple[list[dict[str, Any]], str]:
    """Return the tools that may be called, and the choice between them."""
    if not isinstance(prompt, ChatPrompt) or prompt.tool_choice == "none":
        return [], "none"
    if prompt.tool_choice != "auto" and not prompt.tools:
        raise TaskError("invalid", f"tool_choice: {prompt.tool_choice!r} needs tools", 400)
    if prompt.tool_choice != "auto" and form.tool_calls is None:
        raise TaskError("invalid", "this model's form of tool calls is unknown: it cannot be made to call one", 400)
    return (prompt.tools if form.tool_calls is not None else []), prompt.tool_choice


def _call_rules(form: TextFormat, calls: ToolCallFormat) -> list[str]:
    """Return the rules `call`, `calls` and, where marks begin them, `free_calls`."""
    more = _MAX_CALLS - 1
    if calls.style == "bare":
        return ["call: function", f'calls: function ("; " function){{0,{more}}}']
    begin, end = form.marker(calls.begin), f" SPACE? {form.marker(calls.end)}" if calls.end else ""
    head = form.text_until("call_head", calls.begin)
    if calls.style == "list":
        return [
            f'call: {begin} SPACE? "[" function "]"{end}',
            f"calls: {begin} call_list",
            f'call_list: SPACE? "[" function (", " function){{0,{more}}} "]"{end}',
            "free_calls: (call_head call_list)?",
            *head,
        ]
    return [
        f"call: {begin} call_body",
        f"call_body: {'SPACE? ' if calls.style == 'object' else ''}function{end}",
        f"calls: call (SPACE? call){{0,{more}}}",
        "free_calls: (call_head call_body)*",
        *head,
    ]


def _reasoning_rules(form: TextFormat, markers: Markers, *, is_open: bool) -> list[str]:
    whole = "thoughts SPACE?" if is_open else f"({form.marker(markers.begin)} thoughts SPACE?)?"
    return [f"reasoning: {whole}", *form.text_until("thoughts", markers.end)]


def _parse(schema: str) -> Any:
    try:
        return msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TaskError("invalid", f"json_schema: it is no valid JSON: {error}", 400) from error
