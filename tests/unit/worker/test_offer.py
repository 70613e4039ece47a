"""What a worker offers ahead of its next step, and how long a batch waits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.inputs import ImageInputs, Shape
from wire.messages import Assignment
from worker.batch_scheduler import Member
from worker.offer import MAX_AHEAD, Offer, OfferPlanner, RoundTrips

SIZE = Shape("64x64", 4096)
INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")
#: The lead of round trips of 6.4 ms.
LEAD_S = 0.01


@dataclass
class FakeRow:
    step: int
    steps: int
    collected_bytes: int = 0

    def take_chunks(self) -> tuple[()]:
        return ()

    def take_tokens(self) -> None:
        """It generates no text."""


def group(*rows: tuple[int, int]) -> list[Member]:
    return [Member(Assignment(f"t{i}", 1, INPUTS), "key", SIZE, FakeRow(*row)) for i, row in enumerate(rows)]


def measured(seconds: float = 0.0064, queued: int = 50) -> RoundTrips:
    trips = RoundTrips()
    trips.on_assign(queued, 0.0)
    for start in range(10):
        trips.on_offer(float(start), is_new=True)
        trips.on_assign(queued, start + seconds)
    return trips


def planner(step_s: float, tasks: int, trips: RoundTrips | None = None) -> OfferPlanner:
    made = OfferPlanner(trips or measured())
    made.on_step(SIZE, tasks, step_s, step_s)
    return made


@pytest.mark.parametrize(
    ("rows", "step_s", "offer"),
    [
        ([(0, 20), (18, 20), (19, 20)], 0.11, Offer(1, 100.1)),
        ([(0, 20), (1, 20)], 0.11, Offer(0)),  # none ends: nothing is ahead
        (
            [(0, 4), (1, 4), (2, 4), (3, 4)],
            0.004,
            Offer(4),
        ),  # an answer takes 2.5 steps: at once
        ([(0, 1)], 0.00001, Offer(MAX_AHEAD)),
        ([(0, 1000)], 0.00001, Offer(1)),  # it ends within them, its successor does not
    ],
)
def test_offer_for_a_step(rows: list[tuple[int, int]], step_s: float, offer: Offer) -> None:
    made = planner(step_s, len(rows)).plan(group(*rows), 100.0).offer
    assert made.ahead == offer.ahead
    assert made.at == pytest.approx(offer.at)


def test_no_offer_before_a_batch_of_this_size_was_measured() -> None:
    made = planner(0.1, 2)
    assert made.plan(group((0, 1)), 0.0).offer == Offer()
    assert made.plan(group((0, 1), (0, 1)), 0.0).offer.ahead == 2


def test_shortest_of_recent_steps_is_expected() -> None:
    made = planner(0.05, 1)
    for _ in range(4):
        made.on_step(SIZE, 1, 0.2, 0.2)
    assert made.plan(group((0, 1)), 0.0).offer.at == pytest.approx(0.05 - LEAD_S)
    made.on_step(SIZE, 1, 0.2, 0.2)
    assert made.plan(group((0, 1)), 0.0).offer.at == pytest.approx(0.2 - LEAD_S)


@pytest.mark.parametrize(("seconds", "is_short"), [([], False), ([0.0001], True), ([0.0001, 0.002], False)])
def test_step_is_short_if_none_took_long(seconds: list[float], is_short: bool) -> None:
    made = OfferPlanner(RoundTrips())
    for each in seconds:
        made.on_step(SIZE, 1, each, each)
    assert made.plan(group((0, 1)), 0.0).is_short is is_short


@pytest.mark.parametrize(
    ("held", "queued", "pending", "step_s", "wait_s"),
    [
        (3, 50, True, 0.11, LEAD_S),
        (12, 50, True, 0.11, 0.0),  # the batch is full
        (3, 0, True, 0.11, 0.0),  # nobody waits: a lone request starts at once
        (3, 50, False, 0.11, 0.0),  # nothing is on its way
        (11, 1, True, 0.11, 0.0),  # an empty place costs less than the wait
        (11, 50, True, 0.2, LEAD_S),
        (1, 50, True, 0.001, 0.0),  # short steps never wait
    ],
)
def test_wait_for_tasks_on_their_way(held: int, queued: int, pending: bool, step_s: float, wait_s: float) -> None:
    trips = measured(queued=50)
    trips.on_assign(queued, 20.0)
    if pending:
        trips.on_offer(20.0, is_new=True)
    assert OfferPlanner(trips).wait_s(held, 12, step_s) == pytest.approx(wait_s)


def test_wait_ends_when_nobody_answers() -> None:
    trips = measured()
    trips.on_offer(20.0, is_new=True)
    trips.on_no_answer()
    assert OfferPlanner(trips).wait_s(3, 12, 0.11) == 0.0


@pytest.mark.parametrize(
    ("before", "queued", "counts"),
    [(5, 5, True), (0, 5, False), (5, 0, False), (0, 0, False)],
)
def test_only_answers_with_a_queue_are_measured(before: int, queued: int, counts: bool) -> None:
    trips = RoundTrips()
    default_s = trips.lead_s
    trips.on_assign(before, 0.0)
    trips.on_offer(1.0, is_new=True)
    trips.on_assign(queued, 1.02)
    assert trips.lead_s == pytest.approx(0.027 if counts else default_s)


def test_later_offer_replaces_an_earlier_one_only_if_it_is_new() -> None:
    trips = RoundTrips()
    trips.on_assign(5, 0.0)
    trips.on_offer(1.0, is_new=False)
    trips.on_offer(1.5, is_new=False)
    trips.on_assign(5, 1.02)
    assert trips.lead_s == pytest.approx(0.027)
    trips.on_offer(2.0, is_new=False)
    trips.on_offer(2.09, is_new=True)
    trips.on_assign(5, 2.11)
    assert trips.lead_s == pytest.approx(0.027), "20 ms again"


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 9)), max_size=100))
def test_lead_is_bounded(answers: list[tuple[float, int]]) -> None:
    trips, now = RoundTrips(), 0.0
    for seconds, queued in answers:
        trips.on_offer(now, is_new=True)
        now += seconds
        trips.on_assign(queued, now)
        assert 0.002 <= trips.lead_s <= 0.1


@given(
    doublings=st.integers(1, 6),
    places=st.lists(st.integers(1, 60).flatmap(lambda total: st.tuples(st.integers(0, total - 1), st.just(total)))),
)
def test_offer_counts_the_ends_of_successors(doublings: int, places: list[tuple[int, int]]) -> None:
    steps, ends = 2**doublings, 0  # made before the balancer answers, rounded up
    for step, total in places:
        for _ in range(steps):
            step += 1
            if step == total:
                ends, step = ends + 1, 0
    if places:
        offer = planner(LEAD_S / (0.75 * steps), len(places)).plan(group(*places), 0.0).offer
        assert offer == Offer(min(ends, MAX_AHEAD))


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(6, 9)), min_size=1, max_size=40),
    step_s=st.floats(1e-6, 10.0),
)
def test_offer_is_bounded_and_within_the_step(rows: list[tuple[int, int]], step_s: float) -> None:
    offer = planner(step_s, len(rows)).plan(group(*rows), 5.0).offer
    assert 0 <= offer.ahead <= MAX_AHEAD
    assert offer.at == 0.0 or 5.0 <= offer.at <= 5.0 + step_s
