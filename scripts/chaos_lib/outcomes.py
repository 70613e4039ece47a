"""Outcomes of requests, their totals, and the violations among them.

**Lost** is
- a job that was answered 202 and has no end once the server is idle, or that the server does not know any more;
- a plain or streamed request without an answer until its deadline, although the connection stayed open;
- a connection that broke, or a stream that ended without its last event, although no balancer died.

**Answered twice** is
- an image that one stream reports as completed twice;
- an `Idempotency-Key` with two answers that differ, or with two jobs;
- a job whose result changes from one read to the next, or a request for one job that made two.

**Wrong** is an image that differs from the reference image of its request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from scripts.chaos_lib.fault_plan import PlannedRequest


class EndState(StrEnum):
    """How a request ended for its client."""

    PENDING = "pending"
    COMPLETED = "completed"
    #: The server answered with an error, or the client may not retry.
    FAILED = "failed"
    #: The client closed the connection on purpose.
    ABORTED = "aborted"
    LOST = "lost"


@dataclass
class Outcome:
    """One request as its client observed it. Times are seconds since the start of the load."""

    request: PlannedRequest
    end: EndState = EndState.PENDING
    #: Why it failed or is lost.
    reason: str = ""
    #: The server answered 200 or 202, or died while it held the connection.
    accepted: bool = False
    images: list[bytes] = field(default_factory=list)
    job: str | None = None
    retries: Counter[str] = field(default_factory=Counter)
    duplicates: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    started: float = 0.0
    ended: float = 0.0

    def close(self, end: EndState, reason: str = "") -> None:
        """Set the end state. The first one stays, except that `LOST` replaces every other."""
        if self.end is EndState.PENDING or (end is EndState.LOST and self.end is not EndState.LOST):
            self.end, self.reason = end, reason


#: Reasons of retries and of failures.
BALANCER_DIED = "a balancer died"
BALANCER_UNREACHABLE = "no balancer was reachable"
CUT_OFF = "a balancer died, and a request without a key is not repeated"


@dataclass
class Totals:
    """Numbers of requests by outcome."""

    requests: int = 0
    accepted: int = 0
    completed: int = 0
    images: int = 0
    aborted: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    duplicates: int = 0
    wrong: int = 0


def count_outcomes(outcomes: Sequence[Outcome]) -> Totals:
    totals = Totals(requests=len(outcomes))
    for outcome in outcomes:
        totals.accepted += outcome.accepted
        totals.completed += outcome.end is EndState.COMPLETED
        totals.images += len(outcome.images)
        totals.aborted += outcome.end is EndState.ABORTED
        totals.lost += outcome.end in (EndState.LOST, EndState.PENDING)
        totals.duplicates += bool(outcome.duplicates)
        totals.wrong += len(outcome.wrong)
        totals.retried += outcome.retries
        if outcome.end is EndState.FAILED:
            totals.failed[outcome.reason] += 1
    return totals


def violations(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each violation, with request, key, seed and time."""
    found = []
    for outcome in outcomes:
        request, wrong = outcome.request, [*outcome.duplicates, *outcome.wrong]
        if outcome.end in (EndState.LOST, EndState.PENDING):
            wrong.append(f"lost: {outcome.reason or 'no end was observed'}")
        what_ran = f"{request.mode}, key {request.owner}, seed {request.seed}, {request.steps} steps, job {outcome.job}"
        found += [
            f"{request.id} ({what_ran}), {outcome.started:.1f} to {outcome.ended:.1f} s: {what}" for what in wrong
        ]
    return found
