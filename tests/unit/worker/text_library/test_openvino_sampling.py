"""Parameters of requests in OpenVINO's terms."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.text_models import tokenization
from wire.inputs import Sampling, TextInputs
from wire.text import TokenPrompt
from worker.engines.openvino.sampling import generation_options, unsupported_inputs
from worker.engines.text.generation import Generation
from worker.engines.text_library.interface import LibraryRequest

_TOKENIZATION = tokenization()
_GREEDY = Sampling(0, temperature=0.0)


def _options(inputs: TextInputs, done: tuple[int, ...] = ()) -> dict[str, Any]:
    generation = Generation(_TOKENIZATION, inputs, TokenPrompt([50, 51]), done, 500)
    return generation_options(LibraryRequest("1.1", inputs, generation))


@pytest.mark.parametrize(
    ("inputs", "done", "expected"),
    [
        (TextInputs(_GREEDY, 20), (), {"max_new_tokens": 20, "do_sample": False, "ignore_eos": True}),
        (TextInputs(_GREEDY, 20), (60, 61), {"max_new_tokens": 18}),
        (TextInputs(_GREEDY, 1000), (), {"max_new_tokens": 498}),
        (TextInputs(_GREEDY, 20, min_tokens=5), (), {"min_new_tokens": 5, "stop_token_ids": {2}}),
        (TextInputs(_GREEDY, 20, min_tokens=5, stop_token_ids=(9,)), (60,), {"min_new_tokens": 4}),
        (TextInputs(_GREEDY, 20, logprobs=0), (), {"logprobs": 1}),
        (TextInputs(Sampling(4, temperature=0.5, top_p=0.9, top_k=7), 9), (), {"top_k": 7, "rng_seed": 4}),
        (TextInputs(Sampling(4, repetition_penalty=1.2), 9), (), {"repetition_penalty": 1.2, "temperature": 1.0}),
    ],
)
def test_options(inputs: TextInputs, done: tuple[int, ...], expected: dict[str, Any]) -> None:
    assert _options(inputs, done).items() >= expected.items()


@pytest.mark.parametrize("name", ["top_k", "rng_seed", "min_new_tokens", "stop_token_ids", "logprobs"])
def test_options_that_say_nothing_are_left_out(name: str) -> None:
    assert name not in _options(TextInputs(_GREEDY, 20))


def test_a_moved_text_draws_other_numbers() -> None:
    inputs = TextInputs(Sampling(2**63 - 1), 20)
    seeds = [_options(inputs, (60,) * done)["rng_seed"] for done in range(5)]
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (TextInputs(_GREEDY, 5), ""),
        (TextInputs(_GREEDY, 5, logprobs=0), ""),
        (TextInputs(_GREEDY, 5, logprobs=2), "without alternatives"),
        (TextInputs(Sampling(0, logit_bias=((1, 1.0),)), 5), "logit_bias"),
    ],
)
def test_what_it_does_not_take(inputs: TextInputs, text: str) -> None:
    problem = unsupported_inputs(inputs)
    assert (text in problem) == (bool(problem) or not text)
