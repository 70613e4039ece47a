"""Limits of keys on tokens per minute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.access.token_limit import TokenLimiter
from loadbalancer.schema.errors import RateLimited


def test_expected_tokens_are_charged_then_corrected() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 100, 60, 0.0)
    assert limiter.headers("a", 0.0) == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "40",
        "x-ratelimit-reset-tokens": "36s",
    }
    with pytest.raises(RateLimited, match="expected to take 50") as refused:
        limiter.charge("a", 100, 50, 0.0)
    assert refused.value.headers["retry-after"] == "6"
    limiter.correct("a", 60, 20, 0.0)
    limiter.charge("a", 100, 50, 0.0)
    assert limiter.headers("a", 0.0)["x-ratelimit-remaining-tokens"] == "30"


def test_end_of_a_request_may_overdraw() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 100, 10, 0.0)
    limiter.correct("a", 10, 210, 0.0)
    with pytest.raises(RateLimited) as refused:
        limiter.charge("a", 100, 1, 0.0)
    assert refused.value.headers["retry-after"] == "67"
    assert refused.value.headers["x-ratelimit-remaining-tokens"] == "0"
    limiter.charge("a", 100, 1, 67.0)


def test_request_of_more_than_a_minute_needs_a_full_budget() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 100, 500, 0.0)
    with pytest.raises(RateLimited):
        limiter.charge("a", 100, 500, 299.0)
    limiter.charge("a", 100, 500, 301.0)


def test_used_tokens_stay_used_when_the_limit_changes() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 100, 90, 0.0)
    limiter.charge("a", 200, 100, 0.0)
    assert limiter.headers("a", 0.0)["x-ratelimit-remaining-tokens"] == "10"
    with pytest.raises(RateLimited):
        limiter.charge("a", 50, 1, 0.0)


def test_time_before_a_new_limit_counts_at_the_old_rate() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 60, 60, 0.0)
    limiter.charge("a", 600, 1, 10.0)
    assert limiter.headers("a", 10.0)["x-ratelimit-remaining-tokens"] == str(10 + 540 - 1)


def test_headers_show_what_has_come_back_since_the_last_request() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 60, 50, 0.0)
    assert limiter.headers("a", 20.0)["x-ratelimit-remaining-tokens"] == "30"
    assert limiter.headers("a", 20.0)["x-ratelimit-reset-tokens"] == "30s"


def test_correction_counts_from_what_has_come_back_and_never_exceeds_the_limit() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 60, 50, 0.0)
    limiter.correct("a", 50, 80, 55.0)  # 60 of 60 are there again: the time left over is no credit
    assert limiter.headers("a", 55.0)["x-ratelimit-remaining-tokens"] == "30"
    limiter.charge("a", 60, 20, 60.0)
    limiter.correct("a", 20, 0, 110.0)
    assert limiter.headers("a", 110.0)["x-ratelimit-remaining-tokens"] == "60"


def test_earlier_time_takes_nothing_and_gives_nothing_twice() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 60, 30, 100.0)
    for now in (90.0, 100.0, 90.0, 100.0):
        assert limiter.headers("a", now)["x-ratelimit-remaining-tokens"] == "30"


def test_keys_have_budgets_of_their_own() -> None:
    limiter = TokenLimiter()
    limiter.charge("a", 100, 100, 0.0)
    limiter.charge("b", 100, 100, 0.0)
    limiter.charge("c", None, 10**9, 0.0)
    assert limiter.headers("c", 0.0) == {}
    limiter.charge("a", None, 100, 0.0)
    limiter.charge("a", 100, 100, 0.0)


@given(
    st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 60), st.integers(1, 2000), st.integers(0, 2000)), max_size=30)
)
def test_use_is_bounded_by_rate_and_last_request(limit: int, requests: list[tuple[float, int, int]]) -> None:
    limiter, now, used, last = TokenLimiter(), 0.0, 0, 0
    for wait, expected, actual in requests:
        now += wait
        try:
            limiter.charge("a", limit, expected, now)
        except RateLimited:
            continue
        limiter.correct("a", expected, actual, now)
        used, last = used + actual, max(last, actual)
    assert used <= limit * (1 + now / 60) + last + 1e-6 * used
