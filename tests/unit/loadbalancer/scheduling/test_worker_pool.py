"""The first available worker is found without a look at each: the same one as in a sorted list of all."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from configs.sections import Workers
from loadbalancer.scheduling.worker_pool import Worker
from loadbalancer.scheduling.worker_registry import WorkerRegistry
from tests.support.scheduler import CURVES, task
from wire.inputs import NO_SHAPE, Shape
from wire.messages import PROTOCOL, Bye, Capacity, Finished, Heartbeat, Hello, Started, StepCurve

NAMES = st.sampled_from("abcd")
CURVE = CURVES[0]


class Registry(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.registry = WorkerRegistry(Workers())
        self.now = 0.0
        self.made = 0

    def worker(self, name: str) -> Worker | None:
        worker = self.registry.workers.get(name)
        if worker is not None:
            self.registry.pools["m"].on_message(worker, Bye(""), self.now)
        return worker

    @rule(name=NAMES, slots=st.integers(0, 3), ahead=st.integers(0, 2))
    def connect(self, name: str, slots: int, ahead: int) -> None:
        worker, _ = self.registry.connect(Hello(PROTOCOL, name, "m", "sim:0", 1), self.now)
        self.registry.pools["m"].on_message(worker, Capacity(slots, ahead), self.now)

    @rule(name=NAMES)
    def disconnect(self, name: str) -> None:
        self.registry.disconnect(name)

    @rule(name=NAMES, slots=st.integers(0, 3), ahead=st.integers(0, 2))
    def change_capacity(self, name: str, slots: int, ahead: int) -> None:
        if (worker := self.worker(name)) is not None:
            self.registry.pools["m"].on_message(worker, Capacity(slots, ahead), self.now)

    @rule(count=st.integers(1, 40))
    def assign(self, count: int) -> None:
        for _ in range(count):
            worker = self.registry.pools["m"].first_available(self.now)
            if worker is None:
                break
            self.made += 1
            worker.assign(f"t{self.made}", 1, self.now)

    @rule(name=NAMES, released=st.booleans(), count=st.integers(1, 3))
    def report(self, name: str, released: bool, count: int) -> None:
        worker = self.worker(name)
        for held in list(worker.assigned)[:count] if worker is not None else ():
            assert worker is not None
            message = Finished(held, 1, ()) if released else Started(held, 1)
            assert self.registry.pools["m"].on_message(worker, message, self.now)
            assert self.registry.pools["m"].on_message(worker, message, self.now) is not released

    @rule(name=NAMES, speed=st.sampled_from([0.1, 0.5]))
    def beat(self, name: str, speed: float) -> None:
        if (worker := self.worker(name)) is not None:
            self.registry.pools["m"].on_message(
                worker, Heartbeat(0, curves=[StepCurve(CURVE.shape, 2, [(1, speed)])]), self.now
            )

    @rule(name=st.sampled_from(["x", "y"]), reserves=st.booleans())
    def isolate(self, name: str, reserves: bool) -> None:
        if reserves:
            self.registry.reserve(task(name), self.now)
        else:
            self.registry.cancel_reservation(name)

    @precondition(lambda self: self.registry.workers)
    @rule(name=NAMES)
    def hang(self, name: str) -> None:
        if (worker := self.worker(name)) is not None and worker.assigned:
            worker.mark_stuck(self.now + 0.1)

    @rule(seconds=st.sampled_from([0.2, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.registry.offer_all()

    @invariant()
    def first_is_that_of_the_list(self) -> None:
        available = self.registry.available("m", self.now)
        assert self.registry.pools["m"].first_available(self.now) is (available[0] if available else None)

    @invariant()
    def sums_are_those_of_the_workers(self) -> None:
        pool, workers = self.registry.pools["m"], self.registry.serving("m")
        assert pool.slots == sum(worker.slots for worker in workers)
        for shape in (CURVE.shape, NO_SHAPE, Shape("other", 2)):
            assert pool.steps_per_s(shape) == sum(worker.step_times.steps_per_s(shape) for worker in workers)
            single = [step_s for worker in workers if (step_s := worker.step_times.batch_step_s(shape, 1)) > 0]
            assert pool.fastest_step_s(shape) == min(single, default=0.0)
            shortest = [worker.step_times.bounds_s(shape, worker.slots)[0] for worker in workers]
            assert pool.shortest_step_s(shape) == min(shortest, default=0.0)


Registry.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRegistry = Registry.TestCase


def test_unknown_models_have_no_workers_and_leave_no_trace() -> None:
    registry = WorkerRegistry(Workers())
    assert registry.serving("unknown") == []
    assert registry.pools["unknown"].first_available(0.0) is None
    assert registry.pools["unknown"] is not registry.pools["unknown"]


def test_outdated_entries_do_not_pile_up() -> None:
    registry = WorkerRegistry(Workers())
    worker, _ = registry.connect(Hello(PROTOCOL, "w", "m", "sim:0", 1), 0.0)
    registry.pools["m"].on_message(worker, Capacity(4, 0), 0.0)
    for number in range(1000):
        worker.assign(f"t{number}", 1, 0.0)
        assert registry.pools["m"].on_message(worker, Finished(f"t{number}", 1, ()), 0.0)
    assert len(registry.pools["m"]._free) < 100


def test_silent_worker_is_available_with_its_next_message() -> None:
    registry = WorkerRegistry(Workers())
    worker, _ = registry.connect(Hello(PROTOCOL, "w", "m", "sim:0", 1), 0.0)
    registry.pools["m"].on_message(worker, Capacity(1, 0), 0.0)
    assert registry.pools["m"].first_available(100.0) is None
    registry.pools["m"].on_message(worker, Bye(""), 100.0)
    assert registry.pools["m"].first_available(100.0) is worker
