"""The text of a conversation as the model sees it: ChatML, with tools as in Hermes and Qwen.

`chat_template.jinja` renders the same text for every server; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START, END)
#: One token each, and part of the text that the server returns.
ADDED_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
#: Ends the last message of the user if the model is to reason first.
REASON_FIRST = " /think"

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


class Segment(NamedTuple):
    """A part of a conversation."""

    text: str
    #: Written by the model: the loss is on these tokens only.
    is_answer: bool


def with_reasoning(reasoning: str, answer: str) -> str:
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def tool_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a call as the model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def tools_block(tools: Sequence[Tool]) -> str:
    """Return the part of the system message that lists the tools."""
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return f"# Tools\n\n<tools>\n{lines}\n</tools>\n\nWrite a call as JSON with name and arguments in <tool_call> tags."


def segments(messages: Sequence[Message], tools: Sequence[Tool] = (), *, reason_first: bool = False) -> list[Segment]:
    """Return the conversation in order. A message without `content` of the assistant ends it: it is to be written."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    parts = [part for part in (system, tools_block(tools) if tools else "") if part]
    rendered = [Segment(f"{START}system\n" + "\n\n".join(parts) + f"{END}\n", False)] if parts else []
    last_user = max((n for n, message in enumerate(rest) if message["role"] == "user"), default=-1)
    for number, message in enumerate(rest):
        content = message["content"]
        if message["role"] == "assistant":
            rendered += [Segment(f"{START}assistant\n", False), Segment(f"{content}{END}", True), Segment("\n", False)]
        elif message["role"] == "tool":
            rendered.append(Segment(f"{START}user\n<tool_response>\n{content}\n</tool_response>{END}\n", False))
        else:
            mark = REASON_FIRST if reason_first and number == last_user else ""
            rendered.append(Segment(f"{START}{message['role']}\n{content}{mark}{END}\n", False))
    return rendered


def prompt_text(messages: Sequence[Message], tools: Sequence[Tool] = (), *, reason_first: bool = False) -> str:
    """Return the text after which the model writes its answer."""
    parts = segments(messages, tools, reason_first=reason_first)
    return "".join(part.text for part in parts) + f"{START}assistant\n"
