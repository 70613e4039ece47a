from __future__ import annotations

import functools
import json
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.model_settings import Model
from configs.text_settings import TextGeneration, TextLimits, ToolFormatName
from tests.support import text_models
from wire.inputs import Sampling, TextInputs
from wire.text import ChatPrompt, Markers, PlainPrompt, SamplingDefaults, TokenPrompt, ToolCallFormat
from worker.engine import TaskError, UnsupportedModel
from worker.engines.text.generation import Generation
from worker.engines.text.markers import find_reasoning
from worker.engines.text.time_limit import TimeLimitExceeded, call_within
from worker.engines.text.tokenization import Tokenization, load_tokenization
from worker.engines.text.tool_formats import TOOL_FORMATS, find_tool_calls


@functools.cache
def tokenization(*, byte_fallback: bool = False) -> Tokenization:
    return text_models.tokenization(byte_fallback=byte_fallback)


@given(st.text("aZ é🙂你 \n<|_", max_size=20), st.booleans())
def test_bytes_of_tokens_make_their_text(text: str, byte_fallback: bool) -> None:
    own = tokenization(byte_fallback=byte_fallback)
    tokens = own.tokenizer.encode(text, add_special_tokens=False)
    found = b"".join(own.token_bytes[token] for token in tokens)
    assert found.decode().removeprefix(" " if byte_fallback else "") == own.tokenizer.backend_tokenizer.decode(
        tokens, skip_special_tokens=False
    )


def test_bytes_of_special_and_unknown_tokens() -> None:
    assert tokenization().token_bytes[2] == b"<|im_end|>"
    assert tokenization().token_bytes[999_999] == b""


THINK, CALL = Markers("<think>", "</think>"), ToolCallFormat("<tool_call>", "</tool_call>")
HERMES = '{% if tools %}<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>{% endif %}'
#: As Llama 3.1 writes a call.
LLAMA = (
    """{% if tools %}{{ '{"name": "' + tool_call.name + '", ' }}"""
    """{{ '"parameters": '}}{{ tool_call.arguments | tojson }}{{ "}" }}{% endif %}"""
)


@pytest.mark.parametrize(
    ("template", "reasoning", "calls"),
    [
        ("{{ messages }}", None, None),
        (HERMES, None, CALL),
        (HERMES.replace('"', '\\"'), None, CALL),
        (HERMES.replace("tools", "functions"), None, None),
        (HERMES + "<function=name><parameter=a>", None, None),
        ("{{ content.split('</think>') }}<think>", THINK, None),
        ("{{ content.split('</think>') }}", None, None),
        (
            '{% if tools %}[TOOL_CALLS][{\'{"name": "\' + name + \'", "arguments": \'}]{% endif %}',
            None,
            TOOL_FORMATS["mistral"],
        ),
        ("{% if tools %}[TOOL_CALLS]{{ name + '[ARGS]' + arguments }}{% endif %}", None, TOOL_FORMATS["mistral_args"]),
        (
            "{% if tools %}[TOOL_CALLS]{{ name + '[CALL_ID]' + id + '[ARGS]' + arguments }}{% endif %}",
            None,
            ToolCallFormat("[TOOL_CALLS]", "", "named", before_id="[CALL_ID]", before_arguments="[ARGS]"),
        ),
        (LLAMA, None, TOOL_FORMATS["llama3_json"]),
        (LLAMA.replace("tool_call.arguments", "tool.parameters"), None, None),
        (LLAMA.replace("'}}{{ tool_call.arguments", "' + call.function.arguments"), None, TOOL_FORMATS["llama3_json"]),
        ("{% if tools %}respond with <|tool_call|> followed by a JSON list{% endif %}", None, TOOL_FORMATS["granite"]),
        (HERMES.replace("tool_call>", "tool_calls>"), None, TOOL_FORMATS["jamba"]),
    ],
)
def test_templates_show_the_markers(template: str, reasoning: Markers | None, calls: ToolCallFormat | None) -> None:
    assert (find_reasoning(template, ()), find_tool_calls(template)) == (reasoning, calls)


def test_tokens_show_the_markers_of_reasoning() -> None:
    assert find_reasoning("", ["<think>", "</think>"]) == THINK


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (("<c>", "</c>"), ToolCallFormat("<c>", "</c>")),
        (("<c>", ""), ToolCallFormat("<c>", "", "list")),
        *TOOL_FORMATS.items(),
    ],
)
def test_settings_name_the_markers(setting: Any, expected: ToolCallFormat) -> None:
    settings = TextGeneration(reasoning=("<r>", "</r>"), tool_calls=setting)
    info = text_models.tokenization(settings=settings).info(100)
    assert (info.reasoning, info.tool_calls) == (Markers("<r>", "</r>"), expected)


def test_every_configured_format_is_known() -> None:
    assert set(get_args(ToolFormatName)) == set(TOOL_FORMATS)


def test_markers_have_a_text_even_if_they_are_special_tokens() -> None:
    settings = TextGeneration(reasoning=("<|im_start|>", "<|endoftext|>"))
    text = Generation(
        text_models.tokenization(settings=settings), TextInputs(Sampling(0), 9), PlainPrompt("a"), (), 100
    )
    for token in (1, 300, 0):
        text.accept(token)
    output = text.take()
    assert output is not None
    assert output.text.startswith("<|im_start|>")
    assert output.text.endswith("<|endoftext|>")


def test_reasoning_that_the_prompt_opens_is_a_part_of_the_text() -> None:
    own = text_models.tokenization(chat_template=text_models.CHATML + "{{- '<think>\\n' }}")
    user = {"role": "user", "content": "Hi"}

    def first(prompt: ChatPrompt) -> str:
        text = Generation(own, TextInputs(Sampling(0), 9), prompt, (), 1000)
        text.accept(own.encode(PlainPrompt("a"))[0])
        output = text.take()
        assert output is not None
        return output.text

    assert first(ChatPrompt([user])) == "<think>a"
    plain = text_models.CHATML
    own = text_models.tokenization(chat_template=plain)
    assert first(ChatPrompt([user])) == "a"
    assert first(ChatPrompt([user, {"role": "assistant", "content": "x"}], add_generation_prompt=False)) == "a"
    thoughts = {"role": "assistant", "content": "<think>\nx"}
    assert first(ChatPrompt([user, thoughts], add_generation_prompt=False)) == "<think>a"


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({}, {2}),
        ({"eos_token_id": 0}, {0, 2}),
        ({"eos_token_id": [0, 1]}, {0, 1, 2}),
        ({"eos_token_id": None}, {2}),
    ],
)
def test_end_tokens_are_those_of_tokenizer_and_model(config: dict[str, Any], ends: set[int]) -> None:
    assert text_models.tokenization(generation_config=config).eos_ids == ends


def test_the_authors_defaults_are_reported() -> None:
    config = {"temperature": 0.6, "top_k": 20.0, "top_p": 2, "min_p": "x", "repetition_penalty": True}
    assert text_models.tokenization(generation_config=config).info(9).defaults == SamplingDefaults(0.6, top_k=20)


def test_prompts_far_beyond_the_context_are_not_tokenized() -> None:
    settings = TextGeneration(limits=TextLimits(max_prompt_chars=100_000_000))
    own = text_models.tokenization(settings=settings)
    for prompt in (PlainPrompt("ab " * 1_000_000), ChatPrompt([{"role": "user", "content": "ab " * 1_000_000}])):
        with pytest.raises(TaskError, match=r"context length is 100 tokens.* has more than .* tokens"):
            own.encode_prompt(prompt, 100)


def test_long_prompts_of_few_tokens_are_taken() -> None:
    own = tokenization()
    text = "<|endoftext|>" * 20
    assert own.encode_prompt(PlainPrompt(text), 21).tokens == [0] * 20
    with pytest.raises(TaskError, match=r"context length is 20 tokens.* has 20 tokens"):
        own.encode_prompt(PlainPrompt(text), 20)


def test_prompts_beyond_the_context_are_not_kept() -> None:
    own, size = text_models.tokenization(), 50_000
    tracemalloc.start()
    try:
        for first in range(16):
            with pytest.raises(TaskError, match=f"has {size} tokens"):
                Generation(own, TextInputs(Sampling(0), 1), TokenPrompt([first] * size), (), 100)
        assert tracemalloc.get_traced_memory()[0] < 8 * size  # that of one
    finally:
        tracemalloc.stop()


def test_prompts_that_are_no_text() -> None:
    with pytest.raises(TaskError, match="no valid Unicode"):
        tokenization().encode(PlainPrompt("\ud800"))
    with pytest.raises(TaskError, match="the prompt has no tokens"):
        tokenization().encode(PlainPrompt(""))
    limited = text_models.tokenization(settings=TextGeneration(limits=TextLimits(max_prompt_chars=3)))
    with pytest.raises(TaskError, match="the prompt has 4 characters; at most 3"):
        limited.encode(PlainPrompt("abcd"))


def test_models_are_loaded_from_folders(tmp_path: Path) -> None:
    own = load_tokenization(Model(engine="text", path=str(text_models.save_model(tmp_path))))
    assert own.encode(PlainPrompt("The dog")) == tokenization().encode(PlainPrompt("The dog"))
    assert own.eos_ids == {2}
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 2]}))
    assert load_tokenization(Model(engine="text", path=str(tmp_path))).eos_ids == {1, 2}


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("builtin:nothing", "no built-in model 'nothing'"),
        ("/nothing/here", "no such folder or file"),
        ("{folder}", "the tokenizer of .* cannot be read"),
        ("{folder}/weights.safetensors", "a language model is a folder, a hub id or a .gguf file"),
    ],
)
def test_models_that_are_none(tmp_path: Path, path: str, problem: str) -> None:
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(UnsupportedModel, match=problem):
        load_tokenization(Model(engine="text", path=path.format(folder=tmp_path)))


def test_time_limits_return_and_raise_what_the_function_does() -> None:
    assert call_within(30, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        call_within(30, lambda: 1 // 0)
    threads = set(threading.enumerate())

    def endless() -> None:
        while True:
            try:
                time.sleep(0.001)
            except Exception:
                continue

    with pytest.raises(TimeLimitExceeded):
        call_within(0.05, endless)
    assert set(threading.enumerate()) <= threads
