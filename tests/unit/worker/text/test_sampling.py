"""From logits to tokens: each parameter against a plain computation of one row, and noise against its distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.inputs import Sampling
from worker.engines.text.noise import gumbel_noise, noise_keys
from worker.engines.text.sampling import SampledRow, TokenCounts, choose

_CPU = torch.device("cpu")
_VOCABULARY = 600


def logits(rows: int, *, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, _VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def kept_tokens(row: torch.Tensor, sampling: Sampling) -> set[int]:
    """Return the tokens that may be chosen, computed one by one in float64."""
    scaled = (row.double() / sampling.temperature).tolist()
    top = max(scaled)
    left = [token for token, value in enumerate(scaled) if value >= top + math.log(sampling.min_p or 1e-300)]
    left.sort(key=lambda token: -scaled[token])
    if sampling.top_k:
        left = left[: sampling.top_k]
    total, before, result = sum(math.exp(scaled[token] - top) for token in left), 0.0, set[int]()
    for token in left:
        if before >= sampling.top_p * total and result:
            break
        result.add(token)
        before += math.exp(scaled[token] - top)
    return result


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1, temperature=1.0),
        Sampling(1, temperature=0.5, top_k=3),
        Sampling(1, temperature=1.5, top_p=0.5),
        Sampling(1, temperature=4.0, top_p=0.95),
        Sampling(1, temperature=1.0, min_p=0.2),
        Sampling(1, temperature=1.2, top_k=40, top_p=0.6, min_p=0.01),
        Sampling(1, temperature=1.0, top_k=100_000),
        Sampling(1, temperature=1.0, top_p=1e-9),
    ],
)
def test_only_kept_tokens_are_chosen(sampling: Sampling) -> None:
    row = logits(1)[0]
    kept = kept_tokens(row, sampling)
    rows = [SampledRow(sampling, position) for position in range(600)]
    chosen = [choice.token for choice in choose(row.expand(600, -1), rows)]
    assert set(chosen) <= kept
    assert len(set(chosen)) >= min(len(kept), 3)


def test_tokens_are_as_frequent_as_they_are_probable() -> None:
    row = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf])
    rows = [SampledRow(Sampling(seed, temperature=0.8), position) for seed in range(100) for position in range(100)]
    chosen = torch.tensor([choice.token for choice in choose(row.expand(len(rows), -1), rows)])
    frequencies = torch.bincount(chosen, minlength=5) / len(rows)
    assert torch.allclose(frequencies, (row / 0.8).softmax(-1), atol=0.02)


_parameters = st.builds(
    Sampling,
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([0, 1, 7, 500]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    logit_bias=st.sampled_from([(), ((5, 3.0), (5, 1.0), (10_000, 1.0))]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_parameters, min_size=1, max_size=8), st.integers(0, 1000))
def test_row_does_not_depend_on_others(samplings: list[Sampling], seed: int) -> None:
    values = logits(len(samplings), seed=seed)
    before = values.clone()
    rows = [
        SampledRow(
            sampling, 3 + place, forbidden=(place,), counts=counts([1, 2], [4, 4, 9]), logprobs=place % 3 or None
        )
        for place, sampling in enumerate(samplings)
    ]
    together = choose(values, rows)
    assert torch.equal(values, before)
    for place, row in enumerate(rows):
        [single] = choose(values[place : place + 1], [row])
        assert single.token == together[place].token
        assert single.logprob == pytest.approx(together[place].logprob, abs=1e-4)
        assert [token for token, _ in single.top] == [token for token, _ in together[place].top]


def counts(prompt: Sequence[int], generated: Sequence[int]) -> TokenCounts:
    result = TokenCounts(prompt, _VOCABULARY, _CPU)
    for number in range(len(generated) + 1):
        result.follow(generated[:number])
    return result


def test_penalties_count_the_text() -> None:
    row = torch.zeros(1, _VOCABULARY)
    row[0, [1, 4, 9, 20]] = torch.tensor([3.0, 4.0, -1.0, 2.5])

    def best(sampling: Sampling) -> int:
        return choose(row, [SampledRow(sampling, 3, counts=counts([1], [4, 4, 9]))])[0].token

    assert best(Sampling(0, temperature=0.0)) == 4
    assert best(Sampling(0, temperature=0.0, presence_penalty=1.5)) == 1, "not counted in the prompt"
    assert best(Sampling(0, temperature=0.0, frequency_penalty=0.6)) == 1, "4 occurs twice"
    assert best(Sampling(0, temperature=0.0, frequency_penalty=0.4)) == 4
    assert best(Sampling(0, temperature=0.0, repetition_penalty=1.7)) == 20, "the prompt counts"


class Only:
    """A grammar that allows some tokens."""

    def __init__(self, *tokens: int) -> None:
        self._tokens = tokens

    def fill_mask(self, bitmask: Any, row: int) -> None:
        for token in self._tokens:
            value = 1 << token % 32
            bitmask[row, token // 32] |= value - 2**32 if value >= 2**31 else value


def test_grammars_mask_their_own_rows() -> None:
    values = logits(4)
    plain = choose(values, [SampledRow(Sampling(0, temperature=0.0), 0)] * 4)
    rows = [
        SampledRow(Sampling(0, temperature=0.0), 0),
        SampledRow(Sampling(0, temperature=0.0), 0, grammar=Only(31)),
        SampledRow(Sampling(0, temperature=1.0), 0, grammar=Only(599, 63)),
        SampledRow(Sampling(0, temperature=0.0), 0),
    ]
    chosen = [choice.token for choice in choose(values, rows)]
    assert chosen[0] == plain[0].token
    assert chosen[1] == 31
    assert chosen[2] in (599, 63)
    assert chosen[3] == plain[3].token


def test_forbidden_tokens_are_not_chosen() -> None:
    values = torch.zeros(2, _VOCABULARY)
    values[:, [7, 8]] = torch.tensor([9.0, 8.0])
    rows = [
        SampledRow(Sampling(0, temperature=0.0), 0, forbidden=(7, 10**6)),
        SampledRow(Sampling(0), 0, forbidden=(7,)),
    ]
    assert all(choice.token != 7 for choice in choose(values, rows))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_row_that_is_not_finite_is_marked(bad: float) -> None:
    values = logits(3)
    values[1, 5] = bad
    for temperature in (0.0, 1.0):
        choices = choose(values, [SampledRow(Sampling(0, temperature=temperature, top_p=0.9), 0)] * 3)
        assert [choice.is_finite for choice in choices] == [True, False, True]


def test_log_probabilities_are_of_the_logits() -> None:
    values = logits(2)
    rows = [
        SampledRow(Sampling(0, temperature=0.0, logit_bias=((3, 100.0),)), 0, logprobs=2),
        SampledRow(Sampling(0, temperature=0.0), 0, logprobs=0),
    ]
    choices = choose(values, rows)
    expected = values.log_softmax(-1)
    assert choices[0].token == 3
    assert choices[0].logprob == pytest.approx(float(expected[0, 3]), abs=1e-4)
    best = expected[0].topk(2)
    assert [token for token, _ in choices[0].top] == best.indices.tolist()
    assert list(choices[1].top) == []


def test_noise_has_known_values() -> None:
    """Another worker continues with the same noise: it must never change."""
    assert noise_keys(0, 0) == (1293516399, -1492722385)
    keys = torch.tensor([noise_keys(2**63 - 1, 10**6)], dtype=torch.int32)
    assert gumbel_noise(keys, 100_000)[0, [0, 1, 99_999]].tolist() == pytest.approx(
        [2.5307481, -0.0689441, 0.8971286], abs=1e-6
    )


def test_noise_is_finite_and_of_its_distribution() -> None:
    keys = torch.tensor([noise_keys(seed, seed % 7) for seed in range(50)], dtype=torch.int32)
    noise = gumbel_noise(keys, 20_000)
    assert bool(torch.isfinite(noise).all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.01)
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.05


@pytest.mark.parametrize("vocabulary", [5, 256, 257, 600, 1024])
def test_greedy_token_is_the_first_of_the_highest(vocabulary: int) -> None:
    """The vocabulary is searched in parts, whose last may be short; the highest logits may be equal."""
    for first, second in ((0, vocabulary - 1), (vocabulary - 2, vocabulary - 1), (vocabulary // 2, vocabulary // 2)):
        row = torch.full((2, vocabulary), -math.inf)
        row[0, [first, second]] = 2.5
        row[1] = torch.arange(vocabulary) % 3
        choices = choose(row, [SampledRow(Sampling(0, temperature=0.0), 0)] * 2)
        assert [(choice.token, choice.is_finite) for choice in choices] == [(first, True), (2, True)]


@pytest.mark.parametrize("place", [0, 300, 599])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logit_that_is_not_finite_is_reported(place: int, value: float) -> None:
    row = logits(2)
    row[1, place] = value
    choices = choose(row, [SampledRow(Sampling(0, temperature=0.0), 0)] * 2)
    assert [choice.is_finite for choice in choices] == [True, False]
