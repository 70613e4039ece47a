"""Rate and concurrency limits of API keys. Pure: `now` is seconds on any monotonic clock.

The rate limit is a token bucket. Its capacity is one minute of requests, and it refills at a constant rate.
"""

from __future__ import annotations

import math

from loadbalancer.schema.errors import RateLimited

MINUTE_S = 60.0


class TokenBucket:
    """A token bucket with a capacity of `per_minute` requests. It starts full."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._tokens = float(per_minute)
        self._filled = now

    def __repr__(self) -> str:
        return f"<TokenBucket {self._tokens:.1f} of {self.per_minute}>"

    def resize(self, per_minute: int, now: float) -> None:
        """Change the limit. Used tokens stay used."""
        self._fill(now)
        self._tokens = max(self._tokens + per_minute - self.per_minute, 0.0)
        self.per_minute = per_minute

    def take(self, now: float) -> float:
        """Take a token and return 0. Without a token return the seconds until the next one."""
        self._fill(now)
        if self._tokens < 1.0:
            return (1.0 - self._tokens) * MINUTE_S / self.per_minute
        self._tokens -= 1.0
        return 0.0

    def headers(self, now: float) -> dict[str, str]:
        """Return OpenAI's rate limit headers: the limit, the remaining requests, and the time until it is full."""
        self._fill(now)
        full_s = (self.per_minute - self._tokens) * MINUTE_S / self.per_minute
        return {
            "x-ratelimit-limit-requests": str(self.per_minute),
            "x-ratelimit-remaining-requests": str(int(self._tokens)),
            "x-ratelimit-reset-requests": duration(full_s),
        }

    def _fill(self, now: float) -> None:
        passed = max(now - self._filled, 0.0)
        self._tokens = min(self._tokens + passed * self.per_minute / MINUTE_S, float(self.per_minute))
        self._filled = max(now, self._filled)


class RateLimiter:
    """Enforces the limits of all API keys."""

    def __init__(self, kind: str = "requests") -> None:
        """`kind` names the limited requests in error messages."""
        self._kind = kind
        self._buckets: dict[str, TokenBucket] = {}
        self._running: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<RateLimiter of {len(self._buckets)} keys, {len(self)} requests under way>"

    def __len__(self) -> int:
        return sum(self._running.values())

    def enter(self, owner: str, per_minute: int | None, at_once: int | None, now: float) -> None:
        """Count a request; `leave` must follow. Raises `RateLimited`, and then counts nothing."""
        running = self._running.get(owner, 0)
        if at_once is not None and running >= at_once:
            raise RateLimited(
                f"Concurrency limit reached for the API key '{owner}': {running} {self._kind} are in progress, the "
                "maximum for this key. Please try again later.",
                retry_after_s=1.0,
                headers=self.headers(owner, now),
            )
        wait_s = self._take(owner, per_minute, now)
        if wait_s > 0.0:
            raise RateLimited(
                f"Rate limit reached for the API key '{owner}' on {self._kind} per minute: {per_minute}. "
                f"Please try again in {duration(wait_s)}.",
                retry_after_s=wait_s,
                headers=self.headers(owner, now),
            )
        self._running[owner] = running + 1

    def leave(self, owner: str) -> None:
        """End a request that has entered."""
        running = self._running[owner] - 1
        if running:
            self._running[owner] = running
        else:
            del self._running[owner]

    def headers(self, owner: str, now: float) -> dict[str, str]:
        """Return the rate limit headers of a response; empty if the key has no rate limit."""
        bucket = self._buckets.get(owner)
        return bucket.headers(now) if bucket else {}

    def _take(self, owner: str, per_minute: int | None, now: float) -> float:
        if per_minute is None:
            self._buckets.pop(owner, None)
            return 0.0
        bucket = self._buckets.setdefault(owner, TokenBucket(per_minute, now))
        if bucket.per_minute != per_minute:
            bucket.resize(per_minute, now)
        return bucket.take(now)


def duration(seconds: float) -> str:
    """Format a duration as in OpenAI's headers: `120ms`, `8.64s`, `1m30s`."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    shown = f"{rest / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{shown}s" if minutes else f"{shown}s"
