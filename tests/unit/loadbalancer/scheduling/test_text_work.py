"""The expected work of texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.scheduling.text_work import NO_PROMPT, PromptSteps, TextWork
from wire.text import TextCounters

LENGTHS = st.lists(st.integers(1, 5000), max_size=100)


@given(own=LENGTHS, others=LENGTHS, bound=st.integers(1, 10_000))
def test_expected_length_is_within_bounds(own: list[int], others: list[int], bound: int) -> None:
    work = TextWork()
    for owner, lengths in (("own", own), ("other", others)):
        for length in lengths:
            work.on_result(owner, length)
    expected = work.expected_tokens("own", bound)
    assert 1 <= expected <= bound
    if own or others:
        assert expected <= max([*own, *others])


@pytest.mark.parametrize(
    ("own", "others", "bound", "expected"),
    [
        ([], [], 1000, 128),
        ([], [], 10, 10),
        ([], [100] * 10, 1000, 100),
        ([], [100] * 10, 50, 50),
        ([10] * 64, [1000] * 448, 2000, 106),
        ([10] * 8, [90] * 8, 2000, 30),
    ],
    ids=["nothing", "short bound", "of others", "bound of others", "own", "both"],
)
def test_own_results_count_more_than_those_of_others(
    own: list[int], others: list[int], bound: int, expected: int
) -> None:
    work = TextWork()
    for length in others:
        work.on_result("other", length)
    for length in own:
        work.on_result("own", length)
    assert work.expected_tokens("own", bound) == expected


def test_prompts_are_measured_by_what_was_computed() -> None:
    work = TextWork()
    assert work.prompt_steps(1000, single_s=0.1, full_batch_s=0.05) == NO_PROMPT
    work.update([TextCounters(prompt_tokens=900, cached_tokens=500, recomputed_tokens=100, prefill_s=1.0)])
    assert work.prompt_token_s == pytest.approx(0.002)
    assert work.prompt_steps(1000, single_s=0.1, full_batch_s=0.05) == PromptSteps(20, 40)
    work.update([])
    assert work.prompt_token_s == pytest.approx(0.002), "no worker is connected"


def test_bytes_per_token_are_learnt() -> None:
    work = TextWork()
    assert work.prompt_tokens(400) == 100
    for _ in range(200):
        work.on_prompt(1000, 500)
    assert work.prompt_tokens(400) == pytest.approx(200, rel=0.02)
