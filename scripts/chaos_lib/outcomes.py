"""What became of each request, and what all of it adds up to. Pure.

**Lost** is
- a job that was answered 202 and has no end once everything has come to rest, or is not known any more;
- a plain or streamed request whose connection stayed up, and that was never answered, although it named the time after
  which an answer is worthless;
- a connection that broke, or a stream that ended without its last event, although no balancer died.

**Answered twice** is
- an image that a stream calls completed twice;
- an `Idempotency-Key` with two answers that differ, or with two jobs;
- a job whose result was another when it was asked for again; a request for one job that made two.

**Wrong** is an image that is not the one of its request drawn alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from scripts.chaos_lib.fault_plan import Ask


class End(StrEnum):
    """How a request ended for its client."""

    PENDING = "pending"
    COMPLETED = "completed"
    #: It was told, or had to conclude, that there will be no image.
    FAILED = "failed"
    #: The client has left on purpose.
    LEFT = "left"
    LOST = "lost"


@dataclass
class Story:
    """One request, as its client tells it. Times are seconds since the start of the load."""

    ask: Ask
    end: End = End.PENDING
    #: Why it failed or is lost.
    reason: str = ""
    #: The server took it: it answered 200 or 202, or the connection was its own to break.
    accepted: bool = False
    images: list[bytes] = field(default_factory=list)
    job: str | None = None
    retries: Counter[str] = field(default_factory=Counter)
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    def close(self, end: End, reason: str = "") -> None:
        """Its end. The first counts, but what was lost is lost, however the same request fared at another time."""
        if self.end is End.PENDING or (end is End.LOST and self.end is not End.LOST):
            self.end, self.reason = end, reason


#: Reasons to try again, and to give up.
BALANCER_DIED = "a balancer died"
BALANCER_AWAY = "no balancer was there"
CUT_OFF = "cut off by a balancer's death, and not to be repeated without a key"


@dataclass
class Totals:
    """The table's numbers."""

    asked: int = 0
    accepted: int = 0
    completed: int = 0
    images: int = 0
    left: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0
    wrong: int = 0


def add_up(stories: Sequence[Story]) -> Totals:
    """Requests by what became of them."""
    totals = Totals(asked=len(stories))
    for story in stories:
        totals.accepted += story.accepted
        totals.completed += story.end is End.COMPLETED
        totals.images += len(story.images)
        totals.left += story.end is End.LEFT
        totals.lost += story.end in (End.LOST, End.PENDING)
        totals.twice += bool(story.twice)
        totals.wrong += len(story.wrong)
        totals.retried += story.retries
        if story.end is End.FAILED:
            totals.failed[story.reason] += 1
    return totals


def faults(stories: Sequence[Story]) -> list[str]:
    """A line for each fault: whose it is, with which seed, when, and what is known."""
    told = []
    for story in stories:
        ask, wrong = story.ask, [*story.twice, *story.wrong]
        if story.end in (End.LOST, End.PENDING):
            wrong.append(f"lost: {story.reason or 'no end was seen'}")
        where = f"{ask.id} ({ask.way}, key {ask.owner}, seed {ask.seed}, {ask.steps} steps, job {story.job})"
        told += [f"{where}, {story.began:.1f} to {story.ended:.1f} s: {what}" for what in wrong]
    return told
