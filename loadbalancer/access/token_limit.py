"""Limits of API keys on tokens per minute. Pure: `now` is seconds on any monotonic clock.

A request is charged the tokens that it is expected to take, and at its end those that it has taken.
"""

from __future__ import annotations

from loadbalancer.access.rate_limit import MINUTE_S, duration
from loadbalancer.schema.errors import RateLimited


class TokenBudget:
    """The tokens of one key. It starts full and refills at a constant rate. The end of a request may overdraw it."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._filled = now

    def __repr__(self) -> str:
        return f"<TokenBudget {self._left:.0f} of {self.per_minute}>"

    def resize(self, per_minute: int, now: float) -> None:
        """Change the limit. Used tokens stay used."""
        self._fill(now)
        self._left += per_minute - self.per_minute
        self.per_minute = per_minute

    def charge(self, tokens: int, now: float) -> float:
        """Take the tokens and return 0. Where they are not there, return the seconds until they are.

        A request of more tokens than a minute has needs a full budget.
        """
        self._fill(now)
        missing = min(tokens, self.per_minute) - self._left
        if missing > 0:
            return missing * MINUTE_S / self.per_minute
        self._left -= tokens
        return 0.0

    def correct(self, tokens: int, now: float) -> None:
        """Give back so many tokens, or take them if they are negative."""
        self._fill(now)
        self._left = min(self._left + tokens, float(self.per_minute))

    def headers(self, now: float) -> dict[str, str]:
        """Return OpenAI's headers: the limit, the remaining tokens, and the time until it is full."""
        self._fill(now)
        full_s = (self.per_minute - self._left) * MINUTE_S / self.per_minute
        return {
            "x-ratelimit-limit-tokens": str(self.per_minute),
            "x-ratelimit-remaining-tokens": str(max(int(self._left), 0)),
            "x-ratelimit-reset-tokens": duration(full_s),
        }

    def _fill(self, now: float) -> None:
        passed = max(now - self._filled, 0.0)
        self._left = min(self._left + passed * self.per_minute / MINUTE_S, float(self.per_minute))
        self._filled = max(now, self._filled)


class TokenLimiter:
    """Enforces the limits of all API keys that have one."""

    def __init__(self) -> None:
        self._budgets: dict[str, TokenBudget] = {}

    def __repr__(self) -> str:
        return f"<TokenLimiter of {len(self._budgets)} keys>"

    def charge(self, owner: str, per_minute: int | None, tokens: int, now: float) -> None:
        """Charge the expected tokens of a request. Raises `RateLimited`, and then charges nothing."""
        if per_minute is None:
            self._budgets.pop(owner, None)
            return
        budget = self._budgets.get(owner)
        if budget is None:
            budget = self._budgets[owner] = TokenBudget(per_minute, now)
        elif budget.per_minute != per_minute:
            budget.resize(per_minute, now)
        wait_s = budget.charge(tokens, now)
        if wait_s > 0.0:
            raise RateLimited(
                f"Rate limit reached for the API key '{owner}' on tokens per minute: {per_minute}. This request is "
                f"expected to take {tokens}. Please try again in {duration(wait_s)}.",
                retry_after_s=wait_s,
                headers=budget.headers(now),
            )

    def correct(self, owner: str, charged: int, used: int, now: float) -> None:
        """A request has ended that was charged so many tokens, and has used others."""
        budget = self._budgets.get(owner)
        if budget is not None:
            budget.correct(charged - used, now)

    def headers(self, owner: str, now: float) -> dict[str, str]:
        """Return the headers of a response; empty if the key has no limit."""
        budget = self._budgets.get(owner)
        return budget.headers(now) if budget is not None else {}
