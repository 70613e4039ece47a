"""What a worker offers ahead of its next steps, and when. Pure.

A batch never waits for the network if its tasks are on the worker when the step before it ends. So the worker offers
room for them shortly before: as long before as the balancer needs to answer, by measurement. Earlier in a long step, no
task is held ahead, because another worker may take it. Steps that are shorter than an answer take several batches
ahead.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from wire.inputs import Shape
from worker.batch_scheduler import Member

#: Tasks held ahead at most, however short the steps are.
MAX_AHEAD = 256
#: Before the first measurement.
_DEFAULT_LEAD_S = 0.005
#: The clock of the thread that sends offers ticks in milliseconds.
_MIN_LEAD_S = 0.002
_MAX_LEAD_S = 0.1
#: Answers that count, and the part of them that comes in time.
_RECENT_ANSWERS = 32
_IN_TIME = 0.9
_MARGIN = 1.25
#: Steps of each batch that count: the shortest is expected, because an early offer costs less than a late one.
_RECENT_STEPS = 5
_MAX_BATCHES = 256
#: Messages about the start of a shorter step may leave with its results.
_SHORT_STEP_S = 0.001


class Offer(NamedTuple):
    """Room for tasks beyond those that the loop can run at once."""

    ahead: int = 0
    #: Time from which it holds; 0: now, and until another replaces it. One with a time ends with its step.
    at: float = 0.0


class RoundTrips:
    """The time from an offer to the tasks that it brings, while tasks wait in the balancer's queue.

    The client's thread and the loop's call it. Each attribute is written at once, and a lost sample does no harm.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_RECENT_ANSWERS)
        #: Time of an offer that no task has answered yet. It tells nothing while no task waits in the queue.
        self.offered_at: float | None = None
        #: Tasks that waited in the queue when the last tasks were sent.
        self.queued = 0
        #: Seconds by which an offer should precede the step that needs its tasks.
        self.lead_s = _DEFAULT_LEAD_S

    def on_offer(self, now: float, *, is_new: bool) -> None:
        """Note an offer. If it is not new, it may be answered by tasks that were sent for an earlier one."""
        if is_new or self.offered_at is None:
            self.offered_at = now

    def on_assign(self, queued: int, now: float) -> None:
        """Take in tasks. Without a queue they came when they were submitted, which tells nothing about the network."""
        offered_at, self.offered_at = self.offered_at, None
        if offered_at is not None and self.queued and queued:
            self._seconds.append(now - offered_at)
            slowest = sorted(self._seconds)[math.ceil(_IN_TIME * len(self._seconds)) - 1]
            self.lead_s = min(_MARGIN * slowest + _MIN_LEAD_S, _MAX_LEAD_S)
        self.queued = queued

    def on_no_answer(self) -> None:
        """Note that the expected tasks did not come: others have taken them."""
        self.queued = 0


class PlannedStep(NamedTuple):
    """What is sent before a step."""

    offer: Offer
    #: As far as is known, the step ends at once.
    is_short: bool = False


class OfferPlanner:
    """Decides the offer of each step, and how long a batch waits for tasks that are on their way."""

    def __init__(self, round_trips: RoundTrips) -> None:
        self._round_trips = round_trips
        #: Seconds of the latest steps of each shape and batch, and of the loops around them.
        self._recent: dict[tuple[Shape, int], tuple[deque[float], deque[float]]] = {}

    def on_step(self, shape: Shape, tasks: int, step_s: float, loop_s: float) -> None:
        """Learn the duration of a step, and of the loop from messages received to results sent."""
        recent = self._recent.get((shape, tasks))
        if recent is None:
            if len(self._recent) >= _MAX_BATCHES:
                self._recent.clear()
            recent = self._recent[shape, tasks] = deque(maxlen=_RECENT_STEPS), deque(maxlen=_RECENT_STEPS)
        steps, loops = recent
        steps.append(step_s)
        loops.append(loop_s)

    def plan(self, group: Sequence[Member], now: float) -> PlannedStep:
        """Return the offer for a step of `group` that starts now; tasks that wait on the worker already count.

        The rows that end within this step are replaced at the next. Where several steps are made before the balancer
        answers, also those that end in these, and the tasks that will have taken their places by then.
        """
        recent = self._recent.get((group[0].shape, len(group)))
        if recent is None:
            return PlannedStep(Offer())
        lead_s, (recent_steps, recent_loops) = self._round_trips.lead_s, recent
        steps_ahead = int(lead_s / max(min(recent_loops), 1e-6))
        steps = 1 << steps_ahead.bit_length()  # rounded up, so that the offer rarely changes
        ahead = 0
        for member in group:
            row = member.row
            total = row.steps
            left = total - row.step
            if left <= steps:  # its successors are taken to be as long
                ahead += 1 + (steps - left) // max(total, 1)
        ahead = min(ahead, MAX_AHEAD)
        at = now + min(recent_steps) - lead_s if steps == 1 and ahead else 0.0
        return PlannedStep(Offer(ahead, at), max(recent_steps) < _SHORT_STEP_S)

    def wait_s(self, held: int, slots: int, step_s: float) -> float:
        """Return how long a batch of `held` tasks should wait for others that have been offered room.

        0 if none are on their way, or if the wait would cost more than the empty places.
        """
        trips = self._round_trips
        coming = min(slots - held, trips.queued)
        if coming <= 0 or trips.offered_at is None or coming * step_s <= slots * trips.lead_s:
            return 0.0
        return trips.lead_s
