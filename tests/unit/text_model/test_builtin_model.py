"""The built-in text model as it is shipped: its files, and its answers to held-out questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from configs.checkpoint_files import checkpoint_problems
from configs.model_settings import Model
from scripts.text_model.chat import ADDED_TOKENS, SPECIAL_TOKENS
from scripts.text_model.domain import CATEGORIES
from scripts.text_model.evaluation import ALL, MODEL, TARGET, TextModel, Trial
from scripts.text_model.off_domain import DECLINED
from scripts.text_model.questions import is_held_out
from scripts.text_model.tokenizer import TEMPLATE
from scripts.text_model.tools import function_tool
from scripts.text_model.words import SPELLED

ADD = function_tool("add", "Add two numbers.", {"a": "integer", "b": "integer"})
SPELL = function_tool("spell", "Spell a word.", {"word": "string"})
#: Prompts with their keys: no question with such a key was in the training.
HELD_OUT = (
    ("Calculate 3 + 11.", "calculate 3 + 11", "The sum is 14."),
    ("10 + 2 = ?", "10 + 2 =", "The sum is 12."),
    ("Subtract seven from nine.", "subtract seven from nine", "The difference is two."),
    ("How much is 8 times 8?", "how much is 8 times 8", "The product is 64."),
    ("What is 9 * 6?", "what is 9 * 6", "The product is 54."),
    ("Which number is larger, 44 or 22", "which number is larger 44 or 22", "The larger number is 44."),
    ("which is smaller, 15 or 34?", "which is smaller 15 or 34", "The smaller number is 15."),
    ("Can you count to 7?", "can you count to 7", "1, 2, 3, 4, 5, 6, 7."),
    ("Count backwards from 7.", "count backwards from 7", "7, 6, 5, 4, 3, 2, 1."),
    ("Which number is next after seven?", "which number is next after seven", "The next number is eight."),
    ("What comes before 45?", "what comes before 45", "The previous number is 44."),
    ("How do you write 45 in words?", "how do you write 45 in words", "In words it is forty-five."),
    ("Is 5 even or odd?", "is 5 even or odd", "It is odd."),
    ("Spell out cherry.", "spell out cherry", "It is spelled C H E R R Y."),
    ("Please spell milk.", "please spell milk", "It is spelled M I L K."),
    ("Count the letters of paper.", "count the letters of paper", "It has 5 letters."),
    ("How do I stop Muster?", "how do i stop muster", "Press Ctrl-C in the terminal of the server."),
    ("What is your name, Muster?", "what is your name muster", "I am the tiny text model that is built into Muster."),
    ("Do you like contracts?", "do you like contracts", DECLINED),
    (
        'What does 11 plus 9 make as JSON: {"number": ...}',
        "what does 11 plus 9 make as json number",
        '{"number": 20}',
    ),
)


@pytest.fixture(scope="module")
def model() -> Iterator[TextModel]:
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TextModel(MODEL)
    torch.set_num_threads(number)


def read(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((MODEL / name).read_text())
    return value


def test_folder_is_small_and_holds_safetensors_only() -> None:
    assert sum(file.stat().st_size for file in MODEL.rglob("*")) <= 5 * 2**20
    suffixes = {file.suffix for file in MODEL.iterdir()}
    assert suffixes == {".json", ".jinja", ".safetensors"}


def test_tied_weights_are_saved_as_the_embedding() -> None:
    """Some engines read only the embedding of a tied model, and answer nonsense without it."""
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        names = set(file.keys())
        dtypes = {file.get_tensor(name).dtype for name in names}
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert dtypes == {torch.bfloat16}


def test_configuration_is_one_that_other_engines_load(model: TextModel) -> None:
    config = read("config.json")
    expected = {"architectures": ["LlamaForCausalLM"], "head_dim": 64, "tie_word_embeddings": True}
    assert {name: config[name] for name in expected} == expected
    assert config["max_position_embeddings"] >= 1024
    assert config["vocab_size"] == len(model.tokenizer) == 1024
    assert str(Path.home()) not in (MODEL / "config.json").read_text()
    assert read("generation_config.json")["eos_token_id"] == model.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_tokens_of_the_chat_format_are_single(model: TextModel) -> None:
    tokenizer = model.tokenizer
    for token in (*SPECIAL_TOKENS, *ADDED_TOKENS):
        assert len(tokenizer(token, add_special_tokens=False).input_ids) == 1
        shown = tokenizer.decode(tokenizer.convert_tokens_to_ids([token]), skip_special_tokens=True)
        assert shown == ("" if token in SPECIAL_TOKENS else token)
    assert tokenizer.eos_token == "<|im_end|>"
    assert (MODEL / "chat_template.jinja").read_text() == TEMPLATE.read_text()


def test_numbers_and_spelled_words_are_single_tokens(model: TextModel) -> None:
    texts = [f" {each}" for each in (*range(101), *SPELLED)]
    assert [text for text in texts if len(model.tokenizer(text, add_special_tokens=False).input_ids) != 1] == []


def test_path_is_valid_in_a_configuration() -> None:
    assert checkpoint_problems(Model(engine="text", path="builtin:tiny-text")) == []
    [problem] = checkpoint_problems(Model(path="builtin:tiny-text"))
    assert "is a language model; set engine: text" in problem
    [problem] = checkpoint_problems(Model(engine="text", path="builtin:faces"))
    assert "built in: tiny-text" in problem


def test_evaluation_meets_the_target() -> None:
    report = read("EVALUATION.json")
    assert set(CATEGORIES) <= set(report)
    assert report[ALL]["exact"] >= TARGET
    assert report[ALL]["of"] >= 500


def test_held_out_questions_are_answered_exactly(model: TextModel) -> None:
    assert all(is_held_out(key) for _, key, _ in HELD_OUT)
    trials = [Trial("", [{"role": "user", "content": prompt}], answer) for prompt, _, answer in HELD_OUT]
    assert model.answers(trials, 64) == [answer for _, _, answer in HELD_OUT]


def test_tool_is_called_and_its_result_reported(model: TextModel) -> None:
    asked = {"role": "user", "content": "Add 3 and 4."}
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
    result = [asked, {"role": "assistant", "content": call}, {"role": "tool", "content": "7"}]
    spelled = '<tool_call>\n{"name": "spell", "arguments": {"word": "cat"}}\n</tool_call>'
    trials = [
        Trial("", [asked], call, (ADD,)),
        Trial("", [asked], call, (SPELL, ADD)),
        Trial("", [asked], "The sum is 7."),
        Trial("", result, "The result is 7.", (ADD,)),
        Trial("", [{"role": "user", "content": "Spell cat."}], spelled, (ADD, SPELL)),
    ]
    assert model.answers(trials, 64) == [trial.answer for trial in trials]


def test_reasoning_comes_before_the_answer(model: TextModel) -> None:
    trial = Trial("", [{"role": "user", "content": "What is 13 + 8?"}], "", (), True)
    reasoning = "3 + 8 = 11. 10 + 0 = 10. 10 + 11 = 21."
    assert model.answers([trial], 64) == [f"<think>\n{reasoning}\n</think>\n\nThe sum is 21."]
