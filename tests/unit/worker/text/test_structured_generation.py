from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.text_engine import TextDriver, text_engine
from tests.support.text_models import tokenizer
from wire.inputs import Sampling, TextInputs
from wire.text import ChatPrompt, encode_prompt, pack_tokens
from worker.engine import Checkpoint, EngineRequest

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_TOKENS = 250
EOS = 2
TOOLS = [{"type": "function", "function": {"name": "put", "parameters": SCHEMA, "strict": True}}]


def matches(person: dict[str, Any]) -> bool:
    return person.keys() == {"name", "age"} and len(person["name"]) <= 8 and 0 <= person["age"] <= 99


@pytest.fixture(scope="module")
def engine() -> Any:
    return text_engine(context_length=900, blocks=512, config={"max_position_embeddings": 1024})


def request(seed: int, choice: str, done: Sequence[int] = ()) -> EngineRequest:
    """`choice`: of the tool, or empty for a text by the schema."""
    schema = "" if choice else json.dumps(SCHEMA)
    prompt = ChatPrompt([{"role": "user", "content": "Hi"}], TOOLS if choice else [], choice or "auto")
    checkpoint = Checkpoint(len(done), [pack_tokens(done)]) if done else None
    inputs = TextInputs(Sampling(seed, temperature=1.0), _TOKENS, json_schema=schema, ignore_eos=False)
    return EngineRequest(inputs, [encode_prompt(prompt)], checkpoint)


@pytest.mark.parametrize("choice", ["", "put"])
def test_random_weights_write_what_matches(engine: Any, choice: str) -> None:
    """With random weights, nothing but the grammar makes a text match. Texts without it run in the same steps."""
    driver = TextDriver(engine)
    for seed in range(4):
        driver.admit(seed, request(seed, choice))
    driver.admit(4, request(0, "auto"))
    driver.run()
    matched = 0
    for seed in range(4):
        text = "".join(output.text for output in driver.outputs[seed])
        if driver.outputs[seed][-1].finish != "stop":
            assert len(driver.tokens(seed)) == _TOKENS  # reasoning without an end, which the grammar allows
            continue
        text = text.rpartition("</think>")[2].strip()
        if choice:
            call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
            assert call["name"] == "put"
            text = json.dumps(call["arguments"])
        assert matches(json.loads(text))
        matched += 1
    assert matched


@pytest.mark.parametrize(
    ("favourite", "inputs", "tokens", "finish", "reason"),
    [
        (EOS, {"ignore_eos": True}, 30, "length", None),
        (EOS, {"min_tokens": 12}, 13, "stop", None),
        (EOS, {"min_tokens": 12, "ignore_eos": True}, 30, "length", None),
        (EOS, {"ignore_eos": True, "stop_token_ids": (EOS,), "min_tokens": 3}, 4, "stop", EOS),
        (70, {"min_tokens": 5, "stop_token_ids": (70,)}, 6, "stop", 70),
        (70, {"stop_token_ids": (70,)}, 1, "stop", 70),
    ],
)
def test_ends_of_a_text_that_may_call_a_tool(
    engine: Any, favourite: int, inputs: dict[str, Any], tokens: int, finish: str, reason: int | None
) -> None:
    """They are those of any other text, though its grammar would end it at an end token."""
    sampling = Sampling(0, temperature=0.0, logit_bias=((71, 500.0), (favourite, 1000.0)))
    for tools in (TOOLS, []):
        frame = encode_prompt(ChatPrompt([{"role": "user", "content": "Hi"}], tools))
        driver = TextDriver(engine)
        driver.admit(0, EngineRequest(TextInputs(sampling, 30, **inputs), [frame]))
        driver.run()
        last = driver.outputs[0][-1]
        assert (len(driver.tokens(0)), last.finish, last.stop_reason) == (tokens, finish, reason), tools


def test_structured_texts_move_without_a_change(engine: Any) -> None:
    driver = TextDriver(engine)
    driver.admit(0, request(5, "put"))
    driver.run()
    tokens = driver.tokens(0)
    driver.admit(1, request(5, "put", tokens[: len(tokens) // 2]))
    driver.run()
    assert driver.tokens(1) == tokens[len(tokens) // 2 :]
    assert tokenizer().decode(tokens)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"const": "<think>"}, ["<think>"]),
        ({"enum": ["a<|im_start|>b", "</tool_call>"]}, ["a<|im_start|>b", "</tool_call>"]),
        ({"type": "string", "pattern": "^<[|]im_(end)[|]>$"}, ["<|im_end|>"]),
        (
            {
                "type": "object",
                "properties": {"<think>": {"const": 1}},
                "required": ["<think>"],
                "additionalProperties": False,
            },
            [{"<think>": 1}],
        ),
    ],
)
def test_json_with_the_text_of_control_tokens(engine: Any, schema: dict[str, Any], expected: list[Any]) -> None:
    """The text is spelled: no control token stands for it. One that moves within it goes on."""
    prompt = ChatPrompt([{"role": "user", "content": "Hi"}], template_arguments={"enable_thinking": False})
    for seed in range(3):
        inputs = TextInputs(Sampling(seed, temperature=1.0), _TOKENS, json_schema=json.dumps(schema))
        done: list[int] = []
        while True:
            checkpoint = Checkpoint(len(done), [pack_tokens(done)]) if done else None
            driver = TextDriver(engine)
            driver.admit(0, EngineRequest(inputs, [encode_prompt(prompt)], checkpoint))
            driver.step()
            assert not driver.errors, (driver.errors, done)
            done += driver.tokens(0)
            if driver.outputs[0] and driver.outputs[0][-1].finish:
                break
            driver.release(0)
        assert json.loads(tokenizer().decode(done)) in expected
