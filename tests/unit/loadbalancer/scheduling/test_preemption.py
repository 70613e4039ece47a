"""Preemption and rebalancing: cases, then random batches, in which moves terminate."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.sections import Workers
from loadbalancer.scheduling.preemption import MAX_PREEMPTIONS, MIN_STAY_S, preemptions, rebalancing
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.worker_pool import Worker
from loadbalancer.scheduling.worker_registry import WorkerRegistry
from wire.inputs import ImageInputs, Shape
from wire.messages import PROTOCOL, EngineInfo, Heartbeat, Hello, StepCurve

INPUTS = ImageInputs("a seven", 64, 64, steps=40, guidance_scale=3.0, seed=1, scheduler="ddim")
#: A step of b tasks takes 8 + 3 b milliseconds; or always as long, however many share it; or as long as each by itself.
SOME = [(b, 0.008 + 0.003 * b) for b in (1, 2, 4, 8, 16)]
FLAT = [(b, 0.05) for b in (1, 16)]
NO_GAIN = [(b, 0.1 * b) for b in (1, 16)]


class Scene:
    """Workers with running tasks, as the dispatcher would have them."""

    def __init__(self) -> None:
        self.registry = WorkerRegistry(Workers())
        self.tasks: dict[str, Task] = {}
        self.queue = ModelQueue(100)

    def worker(
        self, name: str, *, slots: int = 12, curve: list[tuple[int, float]] | None = None, checkpoints: bool = True
    ) -> Worker:
        worker = Worker(Hello(PROTOCOL, name, "m", "sim:0", 1, [], EngineInfo(checkpoints=checkpoints)), 0.0, slots)
        worker.on_heartbeat(Heartbeat(0, curves=[StepCurve(Shape("64x64", 4096), slots, curve)] if curve else []), 0.0)
        self.registry.add(worker)
        return worker

    def runs(self, name: str, worker: str, **changes: object) -> Task:
        task = self.task(
            name, **{"state": TaskState.RUNNING, "worker": worker, "attempt": 1, "started": 0.0, **changes}
        )
        self.registry.workers[worker].assign(name, 1, 0.0)
        return task

    def waits(self, name: str, **changes: object) -> Task:
        task = self.task(name, **changes)
        self.queue.push(task)
        return task

    def task(self, name: str, **changes: object) -> Task:
        task = self.tasks[name] = Task(name, "m", INPUTS, 0.0, 1e9, steps=40)
        for key, value in changes.items():
            setattr(task, key, value)
        return task

    def preemptions(self, margin: int = 1, now: float = 1.0) -> list[str]:
        moves = preemptions(self.queue, self.registry.serving("m"), self.tasks, margin, now)
        assert all(self.tasks[move.task].worker == move.worker for move in moves)
        return [move.task for move in moves]

    def rebalancing(self, now: float = 1.0) -> list[tuple[str, str]]:
        return [(move.worker, move.task) for move in rebalancing(self.registry, "m", self.tasks, now)]


def test_lowest_priority_then_progress_is_preempted() -> None:
    scene = Scene()
    scene.worker("w")
    scene.runs("far", "w", step=30)
    scene.runs("near", "w", step=3)
    scene.runs("middling", "w", priority=1, step=0)
    scene.waits("urgent", priority=2)
    assert scene.preemptions() == ["near"]
    scene.waits("urgent too", priority=2)
    assert scene.preemptions() == ["near", "far"]
    scene.tasks["near"].preempt_requested = True
    assert scene.preemptions() == ["far"], "one is on its way already"
    scene.tasks["far"].preempt_requested = True
    assert scene.preemptions() == []


@pytest.mark.parametrize(
    ("running", "waiting", "margin", "gives_way"),
    [
        ({}, {"priority": 1}, 1, True),
        ({}, {"priority": 1}, 2, False),
        ({}, {"priority": 0}, 1, False),
        ({"priority": -1}, {}, 1, True),
        ({"priority": 1}, {}, 1, False),
        # Age counts too: it would only be sent out again before the other.
        ({"created": 0.0}, {"created": 59.0, "priority": 1}, 1, True),
        ({"created": 0.0}, {"created": 61.0, "priority": 1}, 1, False),
        # Between owners there are shares, not priorities.
        ({"owner": "other"}, {"priority": 9}, 1, False),
        # It must not be moved at all, or not now.
        ({"isolated": True}, {"priority": 9}, 1, False),
        ({"state": TaskState.ASSIGNED}, {"priority": 9}, 1, False),
        ({"preempt_count": 1, "started": 0.0}, {"priority": 9}, 1, False),
        ({"preempt_count": 1, "started": 1.0 - MIN_STAY_S}, {"priority": 9}, 1, True),
        ({"preempt_count": MAX_PREEMPTIONS, "started": -1e6}, {"priority": 9}, 1, False),
    ],
)
def test_which_task_is_preempted(
    running: dict[str, object], waiting: dict[str, object], margin: int, gives_way: bool
) -> None:
    scene = Scene()
    scene.worker("w")
    scene.runs("runs", "w", **running)
    scene.waits("waits", **waiting)
    assert scene.preemptions(margin) == (["runs"] if gives_way else [])


@pytest.mark.parametrize("way", ["no checkpoints", "draining", "reserved"])
def test_unsuitable_workers_are_not_preempted(way: str) -> None:
    scene = Scene()
    worker = scene.worker("w", checkpoints=way != "no checkpoints")
    worker.draining = way == "draining"
    worker.reserved_for = "another" if way == "reserved" else None
    scene.runs("runs", "w")
    scene.waits("waits", priority=9)
    assert scene.preemptions() == []


def test_owner_preempts_only_for_its_own_turn() -> None:
    scene = Scene()
    scene.worker("w")
    first = scene.waits("first", owner="a")
    scene.queue.take(first)
    scene.queue.remove(scene.waits("gone", owner="b"))
    scene.waits("b", owner="b")
    scene.waits("urgent", owner="a", priority=9)
    scene.runs("runs", "w", owner="a", step=35)
    assert scene.queue.first() is scene.tasks["b"]
    assert scene.preemptions() == [], "five steps given back leave the owner behind the other, who would get the slot"
    scene.tasks["runs"].step = 0
    scene.tasks["runs"].steps = 41
    assert scene.preemptions() == ["runs"]


@pytest.mark.parametrize(
    ("curve", "crowd", "moved"),
    [
        (SOME, 12, 6),
        (SOME, 2, 0),  # it would save a fifth of a third of a second
        (FLAT, 12, 0),  # a smaller batch is no faster
        (NO_GAIN, 12, 6),
        (NO_GAIN, 2, 1),
        (NO_GAIN, 1, 0),
        (None, 12, 0),  # nothing is known
    ],
)
def test_idle_worker_gets_tasks_that_finish_sooner_there(
    curve: list[tuple[int, float]] | None, crowd: int, moved: int
) -> None:
    scene = Scene()
    scene.worker("crowded", curve=curve)
    scene.worker("idle", curve=curve)
    for number in range(crowd):
        scene.runs(f"t{number:02}", "crowded", step=number)
    moves = scene.rebalancing()
    assert moves == [("crowded", f"t{number:02}") for number in range(moved)], "those with most left to do"


@pytest.mark.parametrize(("held", "moved"), [(1, 5), (2, 5), (3, 4), (4, 0)])
def test_tasks_of_the_emptier_worker_are_counted_in(held: int, moved: int) -> None:
    """What the move saves is compared with what all the tasks take now, those of the emptier worker as well."""
    scene = Scene()
    scene.worker("crowded", curve=NO_GAIN)
    scene.worker("emptier", curve=NO_GAIN)
    for number in range(12):
        scene.runs(f"t{number:02}", "crowded", step=number)
    for number in range(held):
        scene.runs(f"e{number:02}", "emptier")
    assert scene.rebalancing() == [("crowded", f"t{number:02}") for number in range(moved)]


def test_reserved_worker_gets_no_tasks() -> None:
    scene = Scene()
    scene.worker("crowded", curve=SOME)
    scene.worker("idle", curve=SOME).reserved_for = "another"
    for number in range(12):
        scene.runs(f"t{number:02}", "crowded")
    assert scene.rebalancing() == []


def test_slow_new_worker_gets_no_running_tasks() -> None:
    scene = Scene()
    scene.worker("quick", curve=SOME)
    scene.worker("slow", curve=[(tasks, 4 * seconds) for tasks, seconds in SOME])
    for number in range(12):
        scene.runs(f"t{number:02}", "quick")
    assert scene.rebalancing() == []


def test_no_rebalancing_while_moves_are_pending() -> None:
    scene = Scene()
    scene.worker("crowded", curve=SOME)
    scene.worker("idle", curve=SOME)
    for number in range(12):
        scene.runs(f"t{number:02}", "crowded")
    scene.tasks["t03"].preempt_requested = True
    assert scene.rebalancing() == []
    scene.tasks["t03"].preempt_requested = False
    assert len(scene.rebalancing()) == 6
    for task in scene.tasks.values():
        task.step = 38
    assert scene.rebalancing() == []


@settings(max_examples=60, deadline=None)
@given(
    crowds=st.lists(st.integers(0, 12), min_size=2, max_size=4),
    pace=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=4, max_size=4),
    curve=st.sampled_from([SOME, FLAT, NO_GAIN]),
    steps=st.lists(st.integers(0, 39), min_size=48, max_size=48),
)
def test_rebalancing_terminates(
    crowds: list[int], pace: list[float], curve: list[tuple[int, float]], steps: list[int]
) -> None:
    """With nobody coming or finishing, tasks move a bounded number of times, each towards the emptier worker."""
    scene = Scene()
    for number, crowd in enumerate(crowds):
        scene.worker(f"w{number}", curve=[(tasks, seconds * pace[number]) for tasks, seconds in curve])
        for _ in range(crowd):
            scene.runs(f"t{len(scene.tasks):02}", f"w{number}", step=steps[len(scene.tasks)])
    now = 0.0
    for _ in range(100):
        now += MIN_STAY_S
        moves = rebalancing(scene.registry, "m", scene.tasks, now)
        if not moves:
            return
        for move in moves:
            task = scene.tasks[move.task]
            del scene.registry.workers[move.worker].assigned[task.id]
            target = scene.registry.available("m", 0.0)[0]
            assert target.id != move.worker, "it is sent where it was meant to go"
            target.assign(task.id, 1, now)
            task.worker, task.started, task.preempt_count = target.id, now, task.preempt_count + 1
            assert task.preempt_count <= MAX_PREEMPTIONS
    pytest.fail("tasks moved on and on")
