"""Rate and concurrency limits of a key, on a simulated clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.access.rate_limit import RateLimiter, TokenBucket, duration
from loadbalancer.schema.errors import RateLimited


def test_burst_is_allowed_then_the_rate_applies() -> None:
    bucket = TokenBucket(6, now=100.0)
    assert [bucket.take(100.0) for _ in range(6)] == [0.0] * 6
    assert bucket.take(100.0) == pytest.approx(10.0)
    assert bucket.take(106.0) == pytest.approx(4.0)
    assert bucket.take(110.01) == 0.0
    assert bucket.take(110.01) > 0


@given(
    per_minute=st.integers(1, 1000),
    waits=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
def test_any_window_allows_at_most_burst_plus_rate(per_minute: int, waits: list[float]) -> None:
    bucket, now, passed = TokenBucket(per_minute, 0.0), 0.0, 0
    for wait_s in waits:
        now += wait_s
        refused_s = bucket.take(now)
        if refused_s:
            # The reported wait is sufficient, and hardly more than necessary.
            assert 0 < refused_s <= 60 / per_minute + 1e-6
        else:
            passed += 1
        assert 0 <= int(bucket.headers(now)["x-ratelimit-remaining-requests"]) <= per_minute
    assert passed <= per_minute * (1 + now / 60) + 1e-6


@given(per_minute=st.integers(1, 1000), used=st.integers(0, 2000))
def test_waiting_for_retry_after_is_enough(per_minute: int, used: int) -> None:
    bucket = TokenBucket(per_minute, 0.0)
    for _ in range(used):
        bucket.take(0.0)
    wait_s = bucket.take(0.0)
    assert (wait_s == 0.0) == (used < per_minute)
    if wait_s:
        assert bucket.take(math.nextafter(wait_s, math.inf) + 1e-9) == 0.0


@pytest.mark.parametrize(
    ("old", "new", "used", "left"), [(10, 20, 4, 16), (10, 5, 4, 1), (10, 5, 8, 0), (5, 50, 5, 45)]
)
def test_resize_keeps_used_tokens(old: int, new: int, used: int, left: int) -> None:
    bucket = TokenBucket(old, 0.0)
    for _ in range(used):
        assert bucket.take(0.0) == 0.0
    bucket.resize(new, 0.0)
    assert bucket.headers(0.0)["x-ratelimit-limit-requests"] == str(new)
    assert bucket.headers(0.0)["x-ratelimit-remaining-requests"] == str(left)


def test_time_before_a_new_limit_counts_at_the_old_rate() -> None:
    bucket = TokenBucket(60, 0.0)
    for _ in range(60):
        assert bucket.take(0.0) == 0.0
    bucket.resize(600, 10.0)
    assert bucket.headers(10.0)["x-ratelimit-remaining-requests"] == str(10 + 540)
    bucket.resize(60, 10.0)
    assert bucket.headers(10.0)["x-ratelimit-remaining-requests"] == "10"


def test_headers_show_what_has_come_back_since_the_last_request() -> None:
    limits = RateLimiter()
    limits.enter("a", 4, None, now=0.0)
    assert limits.headers("a", 14.0)["x-ratelimit-remaining-requests"] == "3"
    assert limits.headers("a", 14.0)["x-ratelimit-reset-requests"] == "1s"
    assert limits.headers("a", 15.0)["x-ratelimit-remaining-requests"] == "4"


def test_earlier_time_takes_nothing_and_gives_nothing_twice() -> None:
    bucket = TokenBucket(60, 100.0)
    for _ in range(30):
        assert bucket.take(100.0) == 0.0
    for now in (90.0, 100.0, 90.0, 100.0):
        assert bucket.headers(now)["x-ratelimit-remaining-requests"] == "30"


def test_header_names_equal_openai() -> None:
    limits = RateLimiter()
    limits.enter("a", 4, None, now=0.0)
    assert limits.headers("a", 0.0) == {
        "x-ratelimit-limit-requests": "4",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-requests": "15s",
    }
    assert limits.headers("b", 0.0) == {}


def test_changed_limit_of_a_key_counts_from_its_next_request() -> None:
    limits = RateLimiter()
    limits.enter("a", 10, None, now=0.0)
    for per_minute, remaining in ((5, "3"), (50, "47")):
        limits.enter("a", per_minute, None, now=0.0)
        assert limits.headers("a", 0.0)["x-ratelimit-limit-requests"] == str(per_minute)
        assert limits.headers("a", 0.0)["x-ratelimit-remaining-requests"] == remaining


def test_rejection_has_retry_after_and_counts_nothing() -> None:
    limits = RateLimiter()
    limits.enter("a", 2, 1, now=0.0)
    with pytest.raises(RateLimited) as crowded:
        limits.enter("a", 2, 1, now=0.0)
    assert crowded.value.headers["retry-after"] == "1"
    assert crowded.value.headers["x-ratelimit-remaining-requests"] == "1", "it cost nothing"
    limits.leave("a")
    limits.enter("a", 2, 1, now=0.0)
    limits.leave("a")
    with pytest.raises(RateLimited) as early:
        limits.enter("a", 2, 1, now=0.0)
    assert early.value.headers["retry-after"] == "30"
    assert "'a' on requests per minute: 2. Please try again in 30s." in early.value.message
    limits.enter("a", 2, 1, now=30.01)
    limits.enter("b", 2, 1, now=0.0)  # limits are separate per key


def test_removed_limit_is_forgotten() -> None:
    limits = RateLimiter()
    limits.enter("a", 1, None, now=0.0)
    limits.enter("a", None, None, now=0.0)
    assert limits.headers("a", 0.0) == {}
    assert repr(limits) == "<RateLimiter of 0 keys, 2 requests under way>"
    limits.leave("a")
    limits.leave("a")
    assert repr(limits) == "<RateLimiter of 0 keys, 0 requests under way>"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (1, "1s"), (8.64, "8.64s"), (60, "1m0s"), (90.5, "1m30.5s")],
)
def test_duration_format_equals_openai(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
