"""Fair sharing: waiting owners get work by their weights."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadbalancer.scheduling.fair_share import FairShare
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import Task
from tests.support.scheduler import INPUTS
from wire.inputs import ImageInputs, Shape

_numbers = itertools.count()


def task(owner: str, steps: int = 8, *, weight: float = 1.0, created: float = 0.0, priority: int = 0) -> Task:
    name = f"{owner}{next(_numbers):06}"
    return Task(name, "m", INPUTS, created, 1e9, priority, owner, weight, steps=steps)


def backlog(*tasks: Task) -> ModelQueue:
    queue = ModelQueue(1_000_000)
    for each in tasks:
        queue.push(each)
    return queue


def served(queue: ModelQueue, most: int) -> list[Task]:
    """The first tasks that workers would be given."""
    taken: list[Task] = []
    while len(taken) < most and (first := queue.first()) is not None:
        queue.take(first)
        taken.append(first)
    return taken


def owners(tasks: list[Task]) -> str:
    return "".join(each.owner for each in tasks)


def test_single_request_passes_a_flood() -> None:
    queue = backlog(*(task("f") for _ in range(1000)))
    assert owners(served(queue, 10)) == "f" * 10
    single = task("s", created=50.0)
    queue.push(single)
    assert queue.position(single) <= 1
    assert "s" in owners(served(queue, 2))


def test_full_queue_accepts_owners_below_their_part() -> None:
    queue = ModelQueue(12)
    for _ in range(12):
        queue.push(task("flood"))
    assert (queue.room("flood"), queue.room("other")) == (0, 6)
    for _ in range(6):
        queue.push(task("other"))
    assert (queue.room("flood"), queue.room("other"), queue.room("third")) == (0, 0, 3)
    for owner in ("third", "fourth", "fifth"):
        assert queue.room(owner) > 0, "half of the reserve is left for newcomers"
        while queue.room(owner):
            queue.push(task(owner))
    assert (queue.count, queue.room("sixth")) == (24, 0), "twice the bound is the end"


def test_returning_owner_gets_no_credit() -> None:
    queue = backlog(*(task("a") for _ in range(100)))
    served(queue, 50)
    for _ in range(20):
        queue.push(task("b"))
    turns = owners(served(queue, 20))
    assert abs(turns.count("a") - turns.count("b")) <= 1


def test_shares_count_work_not_requests() -> None:
    queue = backlog(*(task("l", 40) for _ in range(50)), *(task("s", 10) for _ in range(200)))
    turns = owners(served(queue, 100))
    assert turns.count("s") == pytest.approx(4 * turns.count("l"), abs=4)


def test_shares_count_the_cost_of_a_size() -> None:
    costs = {Shape("64x64", 4096): 1.0, Shape("128x128", 16384): 3.0}
    queue = ModelQueue(1000, step_s=lambda size: costs[size])
    large = ImageInputs("a", 128, 128, steps=8, guidance_scale=3.0, seed=1, scheduler="ddim")
    for number in range(60):
        queue.push(task("s"))
        queue.push(Task(f"l{number}", "m", large, 0.0, 1e9, owner="l", steps=8))
    turns = owners(served(queue, 40))
    assert (turns.count("s"), turns.count("l")) == (30, 10)


def test_requeued_task_is_refunded_and_keeps_its_place() -> None:
    queue = backlog(*(task("a", created=float(n)) for n in range(3)), *(task("b", created=float(n)) for n in range(3)))
    [first] = served(queue, 1)
    assert owners(served(queue, 1)) == "b"
    queue.requeue(first)
    assert queue.first() is first, "its worker was lost at once: it is as if it had never been taken"
    queue.take(first)
    first.step = 6
    queue.requeue(first)
    # Six of its eight steps were done: its owner has had those, so it goes on before the other's next.
    assert owners(list(queue)) == "aabab"


def test_cancelled_task_costs_only_its_completed_steps() -> None:
    queue = backlog(*(task("a") for _ in range(4)), *(task("b") for _ in range(4)))
    cancelled = served(queue, 2)[0]
    queue.charge(cancelled, -cancelled.remaining_steps)
    assert owners(served(queue, 3)) == "aab"


def test_first_measurement_rescales_earlier_charges() -> None:
    cost = [1.0]
    queue = ModelQueue(1000, step_s=lambda _: cost[0])
    for _ in range(100):
        queue.push(task("a"))
    served(queue, 10)
    cost[0] = 0.01
    queue.rescale(0.01)
    for _ in range(100):
        queue.push(task("b"))
    turns = owners(served(queue, 20))
    assert abs(turns.count("a") - turns.count("b")) <= 2


def test_priority_counts_as_seconds_of_age() -> None:
    queue = ModelQueue(1000, priority_s=60.0)
    patient = task("a", created=0.0)
    queue.push(patient)
    urgent = [task("a", created=float(at), priority=1) for at in range(0, 200, 10)]
    for each in urgent:
        queue.push(each)
    line = list(queue)
    ahead = line[: line.index(patient)]
    assert ahead == [each for each in urgent if each.created < 60.0 or (each.created == 60.0 and each.id < patient.id)]


def test_isolated_task_goes_first() -> None:
    queue = backlog(task("a"), task("b"))
    lone = task("c")
    lone.on_crash(3)
    lone.on_crash(3)
    queue.push(lone)
    assert (list(queue.isolated.values()), queue.position(lone), queue.count) == ([lone], 0, 3)
    assert [queue.position(each) for each in queue] == [0, 1, 2]
    assert lone not in served(queue, 5)
    queue.take(lone)
    assert queue.count == 0
    with pytest.raises(KeyError):
        queue.position(lone)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=5),
    steps=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    turns=st.integers(50, 300),
)
def test_backlogged_owners_share_by_weight(weights: list[float], steps: list[int], turns: int) -> None:
    names = "abcde"[: len(weights)]
    queue = ModelQueue(1_000_000)
    sizes = itertools.cycle(steps)
    for name, weight in zip(names, weights, strict=True):
        for _ in range(turns):
            queue.push(task(name, next(sizes), weight=weight))
    taken = served(queue, turns)
    assert len(taken) == turns, "somebody is served as long as anybody waits"
    had = {
        name: sum(each.steps for each in taken if each.owner == name) / weight
        for name, weight in zip(names, weights, strict=True)
    }
    # The bound of start-time fair queueing: a largest task of each of the two.
    for one, other in itertools.combinations(names, 2):
        bound = max(steps) / weights[names.index(one)] + max(steps) / weights[names.index(other)]
        assert abs(had[one] - had[other]) <= bound + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    flood=st.integers(1, 200),
    before=st.integers(0, 100),
    steps=st.integers(1, 64),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_new_owner_waits_for_one_turn_of_each_other(flood: int, before: int, steps: int, weight: float) -> None:
    queue = backlog(*(task(owner, steps) for owner in "abc" for _ in range(flood)))
    served(queue, before)
    newcomer = task("n", weight=weight)
    queue.push(newcomer)
    assert newcomer in served(queue, 4)


@settings(max_examples=100, deadline=None)
@given(
    tasks=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 50)), max_size=40),
    taken=st.integers(0, 10),
)
def test_positions_are_exact_for_equal_costs(tasks: list[tuple[str, int, int]], taken: int) -> None:
    queue = ModelQueue(1000)
    for owner, priority, created in tasks:
        queue.push(task(owner, created=float(created), priority=priority))
    served(queue, taken)
    line = list(queue)
    assert [queue.position(each) for each in line] == list(range(len(line)))
    assert served(queue, len(line)) == line


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 30)), min_size=1, max_size=30))
def test_positions_lie_between_own_rank_and_queue_end(tasks: list[tuple[str, int]]) -> None:
    queue = backlog(*(task(owner, steps) for owner, steps in tasks))
    seen: dict[str, int] = {}
    for each in queue:
        rank = seen[each.owner] = seen.get(each.owner, -1) + 1
        assert rank <= queue.position(each) < queue.count


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["join", "leave", "turn", "charge"]), st.integers(-9, 20)),
        max_size=120,
    )
)
def test_first_owner_is_the_waiting_one_with_the_lowest_tag(moves: list[tuple[str, str, int]]) -> None:
    shares, waiting = FairShare(), set[str]()
    for owner, move, work in moves:
        if move == "join":
            shares.join(owner)
            waiting.add(owner)
        elif move == "leave":
            shares.leave(owner)
            waiting.discard(owner)
        else:
            shares.charge(owner, float(work), takes_turn=move == "turn")
        lowest = min(((shares.tag(each), each) for each in waiting), default=None)
        assert shares.first() == (lowest[1] if lowest else None)
    assert len(shares._heap) <= 2 * len("abcd") + 65


def test_owners_that_cannot_be_forgotten_are_not_examined_each_time() -> None:
    shares, examined = FairShare(), 0
    for number in range(5000):
        shares.join(f"o{number}")
        shares.charge(f"o{number}", 1.0, takes_turn=True)
        before = shares._tags
        shares.leave(f"o{number}")
        examined += len(before) if shares._tags is not before else 0
    assert len(shares._tags) == 5000, "each has had more than its share"
    assert examined < 4 * 5000
