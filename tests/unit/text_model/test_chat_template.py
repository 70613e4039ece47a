"""The chat template renders what the model was trained on, and every form of message that OpenAI's API allows."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from scripts.text_model.chat import prompt_text, tool_call
from scripts.text_model.domain import any_question, any_tool_use, system_message, turns
from scripts.text_model.tokenizer import TEMPLATE
from scripts.text_model.tools import function_tool

ADD = function_tool("add", "Add two numbers.", {"a": "integer", "b": "integer"})
USER = {"role": "user", "content": "What is 3 + 4?"}
CALL = tool_call("add", {"a": 3, "b": 4})


def render(messages: list[Any], tools: list[Any] | None = None, **switches: bool) -> str:
    [text], _ = render_jinja_template(
        [messages], tools, chat_template=TEMPLATE.read_text(), add_generation_prompt=True, **switches
    )
    return str(text)


def test_template_renders_what_the_model_was_trained_on() -> None:
    rng = random.Random(0)
    for number in range(60):
        messages = turns([any_question(rng, held_out=False) for _ in range(rng.randint(0, 3))])
        use = any_tool_use(rng, held_out=False)
        if number % 2:
            messages.insert(0, {"role": "system", "content": system_message(rng)})
        messages.append({"role": "user", "content": use.prompt})
        if number % 3:
            messages += [{"role": "assistant", "content": use.call}, {"role": "tool", "content": use.result}]
        tools = list(use.tools) if number % 5 else []
        text = render([dict(each) for each in messages], tools or None, enable_thinking=number % 7 == 0)
        assert text == prompt_text(messages, tools, reason_first=number % 7 == 0)


@pytest.mark.parametrize("arguments", [{"a": 3, "b": 4}, json.dumps({"a": 3, "b": 4})])
@pytest.mark.parametrize("content", [None, ""])
def test_calls_of_the_api_are_rendered_as_text(arguments: object, content: str | None) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "7"}
    assistant = {"role": "assistant", "content": content, "tool_calls": [call]}
    expected = prompt_text([USER, {"role": "assistant", "content": CALL}, {**result}], [ADD])
    assert render([USER, assistant, result], [ADD]) == expected


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "3 + 4?"}]}], ""),
        ([{"role": "developer", "content": "Be brief."}, USER], "<|im_start|>system\nBe brief.<|im_end|>\n"),
        ([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER], "system\nBe brief.<|im_end|>"),
        ([USER, {"role": "assistant", "content": "<think>\n1\n</think>\n\n7"}, USER], "assistant\n7<|im_end|>"),
        ([USER, {"role": "assistant", "content": "7", "reasoning_content": "1"}, USER], "assistant\n7<|im_end|>"),
        (
            [
                USER,
                {
                    "role": "assistant",
                    "content": "Well.",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                },
            ],
            'Well.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>',
        ),
        ([USER, {"role": "assistant", "content": None}], "assistant\n<|im_end|>"),
    ],
)
def test_other_forms_of_messages(messages: list[Any], part: str) -> None:
    text = render(messages)
    assert part in text
    assert text.startswith("<|im_start|>")
    assert "user\nWhat is 3 + 4?<|im_end|>\n" in text
    assert text.endswith("<|im_start|>assistant\n")
    assert "None" not in text


def test_thinking_is_off_unless_asked_for() -> None:
    assert render([USER]) == render([USER], enable_thinking=False)
    assert "3 + 4? /think<|im_end|>" in render([USER], enable_thinking=True)
