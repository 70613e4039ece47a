"""Tokens chosen in vLLM's batch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.text_models import tokenization
from wire.inputs import Sampling, TextInputs
from wire.text import TokenPrompt
from worker.engines.text.generation import Generation
from worker.engines.text_library.interface import LibraryRequest
from worker.engines.vllm.token_chooser import TokenChooser

_TOKENIZATION = tokenization()
_VOCABULARY = 512
_SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"good": {"enum": ["yes", "no"]}},
        "required": ["good"],
        "additionalProperties": False,
    }
)


def _request(name: str, done: Sequence[int] = (), sampling: Sampling | None = None, **inputs: Any) -> LibraryRequest:
    texts = TextInputs(sampling or Sampling(0, temperature=0.0), 100, **inputs)
    return LibraryRequest(name, texts, Generation(_TOKENIZATION, texts, TokenPrompt([50, 51]), done, 500))


def _logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, _VOCABULARY, generator=torch.Generator().manual_seed(seed))


def _chosen(chooser: TokenChooser, logits: torch.Tensor) -> list[int]:
    """Return the tokens that a greedy sampler takes after the chooser."""
    chosen: list[int] = chooser.force_choices(logits.clone()).argmax(-1).tolist()
    return chosen


@pytest.mark.parametrize(
    ("before", "removed", "added", "moved", "after"),
    [
        ({}, [], [(0, "a"), (1, "b")], [], {0: "a", 1: "b"}),
        ({0: "a", 1: "b"}, [0], [], [(1, 0, False)], {0: "b"}),
        ({0: "a", 1: "b", 2: "c"}, [], [], [(2, 1, False)], {0: "a", 1: "c"}),
        ({0: "a", 1: "b"}, [], [], [(0, 1, True)], {0: "b", 1: "a"}),
        ({0: "a", 1: "b"}, [1], [(1, "c")], [], {0: "a", 1: "c"}),
        ({0: "a"}, [], [(0, "c")], [], {0: "c"}),
        ({0: "a", 1: "b"}, [1, 0], [], [], {}),
    ],
)
def test_follows_the_batch(
    before: dict[int, str],
    removed: list[int],
    added: list[tuple[int, str]],
    moved: list[tuple[int, int, bool]],
    after: dict[int, str],
) -> None:
    chooser = TokenChooser()
    for number, name in enumerate("abc"):
        # Its bias shows which request a row was taken for.
        chooser.add(_request(name, sampling=Sampling(0, temperature=0.0, logit_bias=((100 + number, 90.0),))))
    chooser.update_batch([], list(before.items()), [])
    chooser.update_batch(removed, added, moved)
    expected = [100 + "abc".index(after[place]) for place in range(len(after))]
    if expected:
        assert _chosen(chooser, _logits(len(after))) == expected
    else:
        assert torch.equal(chooser.force_choices(_logits(3)), _logits(3))


@given(
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    penalty=st.sampled_from([0.0, 1.5]),
    tokens=st.lists(st.integers(40, 90), min_size=1, max_size=6),
    others=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_a_moved_text_gets_the_same_token(
    seed: int, temperature: float, penalty: float, tokens: list[int], others: int
) -> None:
    sampling = Sampling(seed, temperature=temperature, presence_penalty=penalty, frequency_penalty=penalty)
    logits, stayed, moved = _logits(1, seed % 1000), TokenChooser(), TokenChooser()
    request = _request("stayed", sampling=sampling)
    stayed.add(request)
    stayed.update_batch([], [(0, "stayed")], [])
    for token in tokens:
        _chosen(stayed, logits)
        request.generation.accept(token)
    moved.add(_request("moved", tokens, sampling))
    for number in range(others):
        moved.add(_request(f"other {number}"))
    moved.update_batch([], [(0, "moved"), *((number + 1, f"other {number}") for number in range(others))], [])
    batch = torch.cat([logits, _logits(others, 7)])
    assert _chosen(moved, batch)[0] == _chosen(stayed, logits)[0]


def _json_text(sampling: Sampling, done: Sequence[int] = ()) -> list[int]:
    """Return the tokens of a text that a model with random logits writes after `done`."""
    chooser = TokenChooser()
    request = _request("a", done, sampling, json_schema=_SCHEMA)
    chooser.add(request)
    chooser.update_batch([], [(0, "a")], [])
    while not request.generation.is_finished:
        [token] = _chosen(chooser, _logits(1, len(request.generation.tokens)))
        request.generation.accept(token)
    return request.generation.tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_that_moves_within_its_grammar(temperature: float) -> None:
    sampling = Sampling(3, temperature=temperature)
    whole = _json_text(sampling)
    value = json.loads(_TOKENIZATION.tokenizer.decode(whole, skip_special_tokens=True))
    assert value.keys() == {"good"}
    for cut in range(1, len(whole), 2):
        assert _json_text(sampling, whole[:cut]) == whole


def test_forbidden_tokens_are_not_chosen() -> None:
    chooser, logits = TokenChooser(), _logits(1)
    best = int(logits.argmax())
    chooser.add(_request("a", min_tokens=5, stop_token_ids=(best,)))
    chooser.update_batch([], [(0, "a")], [])
    assert _chosen(chooser, logits)[0] != best


def test_reports_log_probabilities_of_the_model() -> None:
    chooser, logits = TokenChooser(), _logits(1)
    chooser.add(_request("a", logprobs=2))
    chooser.update_batch([], [(0, "a")], [])
    [token] = _chosen(chooser, logits)
    choice = chooser.take("a")
    assert choice.token == token
    assert choice.logprob == pytest.approx(float(logits.log_softmax(-1)[0, token]), abs=1e-5)
    assert [each for each, _ in choice.top] == logits.topk(2).indices[0].tolist()


def test_logits_of_another_number_of_texts_are_an_error() -> None:
    chooser = TokenChooser()
    chooser.add(_request("a"))
    chooser.update_batch([], [(0, "a")], [])
    with pytest.raises(RuntimeError, match="2 texts"):
        chooser.force_choices(_logits(2))


@pytest.mark.parametrize(
    ("logits", "is_uniform"),
    [
        (torch.zeros(1, _VOCABULARY), True),
        (torch.full((1, _VOCABULARY), 3.0), True),
        (torch.full((1, _VOCABULARY), math.nan), True),
        (_logits(1), False),
    ],
)
def test_finds_a_model_without_weights(logits: torch.Tensor, is_uniform: bool) -> None:
    chooser = TokenChooser()
    chooser.add(_request("a"))
    chooser.update_batch([], [(0, "a")], [])
    chooser.force_choices(logits.clone())
    assert chooser.is_uniform == is_uniform
